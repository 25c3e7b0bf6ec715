"""A delivery that is killed at every statement: the table is the old or the new one, and running
the delivery again makes it the new one, with no row twice.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from officegrid.data.sql.target import DELIVERIES, Mode
from sqlkit import KINDS, Database, database

CHILD = Path(__file__).with_name("sql_crash_child.py")
ROWS = 800
KILLED = "-9"
OLD = [(1, "one"), (2, "two"), (3, "three")]
NEW = [(2 * i + 2, f"new {i}") for i in range(ROWS)]
KEPT = {"append": [(1, "one"), (3, "three")], "upsert": [(1, "one"), (3, "three")]}


class Child:
    """The process that makes deliveries."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def run(self, db: Database, mode: Mode, delivery: str, **more: Any) -> str:
        """Exit code of one delivery as text; what it said, if it failed."""
        order = {"url": db.url, "mode": mode, "rows": ROWS, "id": delivery, **more}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        said = self._line()
        return f"{said} {self._line()}" if ":" in said else said

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    found = Child()
    yield found
    found.close()


def begin(db: Database, mode: Mode) -> list[tuple[Any, ...]]:
    """The table as it is before the delivery; its rows."""
    if mode == "create":
        db.run("DROP TABLE IF EXISTS t")
        return []
    db.run("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, a VARCHAR(20))")
    db.run("DELETE FROM t")
    old = OLD if mode != "append" else [(1, "one"), (3, "three")]
    db.run("INSERT INTO t VALUES " + ",".join(f"({i},'{a}')" for i, a in old))
    return old


def rows(db: Database) -> list[tuple[Any, ...]]:
    if "t" not in db.tables():
        return []
    return sorted((int(i), a) for i, a in db.run("SELECT id, a FROM t"))


def wait_until_dead(db: Database) -> None:
    """Servers finish what a dead client has sent, and only then notice."""
    if db.kind == "sqlite":
        return
    sql = db.pick(
        "SELECT COUNT(*) FROM information_schema.processlist "
        "WHERE db = DATABASE() AND id <> CONNECTION_ID()",
        "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'officegrid'", "",
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while db.run(sql) != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _noted(db: Database, delivery: str) -> bool:
    if DELIVERIES not in db.tables():
        return False
    return bool(db.run(f"SELECT 1 FROM {DELIVERIES} WHERE delivery_id = %s", delivery))


def check_old_or_new(db: Database, mode: Mode, old: list[Any], delivery: str) -> bool:
    """Whether it is the new one."""
    new = sorted(KEPT.get(mode, []) + NEW)
    found = rows(db)
    assert found in (old, new), f"{len(found)} rows"
    noted = _noted(db, delivery)
    swaps = db.kind == "mariadb" and mode in ("create", "replace")
    if not swaps:  # there the note comes before the swap, see docs/sql.md
        assert noted == (found == new)
    return found == new


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    kind = request.param
    server = None if kind == "sqlite" else request.getfixturevalue(kind)
    with database(kind, server, tmp_path) as found:
        yield found


@pytest.mark.parametrize("mode", ["create", "append", "upsert", "replace"])
def test_killed_at_every_statement(db: Database, mode: Mode, child: Child) -> None:
    outcomes = set()
    for number in range(1, 200):
        delivery = f"{mode}-{number}"
        old = begin(db, mode)
        ended = child.run(db, mode, delivery, die_at=number)
        wait_until_dead(db)
        outcomes.add(check_old_or_new(db, mode, old, delivery))
        assert child.run(db, mode, delivery) == "0"
        assert rows(db) == sorted(KEPT.get(mode, []) + NEW)
        assert db.tables() == {"t", DELIVERIES}
        if ended == "0":
            break
        assert ended == KILLED
    assert number > 5
    assert outcomes == {True, False}


def test_killed_at_any_moment(db: Database, child: Child) -> None:
    seed = int(os.environ.get("OFFICEGRID_KILL_SEED", "0")) or random.randrange(10**6)
    print(f"OFFICEGRID_KILL_SEED={seed}")
    chance = random.Random(seed)
    for number in range(8):
        mode: Mode = chance.choice(["append", "upsert", "replace"])
        delivery = f"any-{number}"
        old = begin(db, mode)
        child.run(db, mode, delivery, die_after_ms=chance.uniform(1, 60))
        wait_until_dead(db)
        check_old_or_new(db, mode, old, delivery)
        assert child.run(db, mode, delivery) == "0"
        assert rows(db) == sorted(KEPT.get(mode, []) + NEW)
        assert db.tables() == {"t", DELIVERIES}


def test_what_a_dead_run_left_is_swept_by_the_next_one(
    mariadb: Any, tmp_path: Path, child: Child
) -> None:
    """Killed while loading; its delivery never comes again, but another one does."""
    with database("mariadb", mariadb, tmp_path) as db:
        for number in range(2, 60, 3):
            dead, other = f"dead-{number}", f"other-{number}"
            begin(db, "replace")
            ended = child.run(db, "replace", dead, die_at=number)
            wait_until_dead(db)
            noted = _noted(db, dead)
            assert child.run(db, "replace", other) == "0"
            if noted and db.tables() != {"t", DELIVERIES}:
                # Complete, and waiting for its own next run to put it in place.
                assert child.run(db, "replace", dead) == "0"
            assert db.tables() == {"t", DELIVERIES}
            if ended == "0":
                break
        assert number > 5
