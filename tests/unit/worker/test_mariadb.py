"""Databases of several workers on one server, as a machine with two workers has it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from databases import Server
from officegrid.core.errors import ProgramError, UnavailableError
from officegrid.worker.mariadb import LOADED, SOCKET_VARIABLE, Databases, _ask

DIGEST = "ab" * 32
ROWS = 5000
DUMP = "CREATE TABLE places (code INT);\n" + "".join(
    f"INSERT INTO places VALUES ({n});\n" for n in range(ROWS)
)


@pytest.fixture
def dump(tmp_path: Path, mariadb: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(SOCKET_VARIABLE, str(mariadb.socket))
    path = tmp_path / "places.sql"
    path.write_text(DUMP)
    _drop_all()  # what other files' tests have left on the server, which all of a run share
    yield path
    _drop_all()


def _drop_all() -> None:
    for name in _names():
        _ask(f"DROP DATABASE `{name}`")


def _rows(name: str) -> int:
    return int(_ask(f"SELECT count(*) FROM `{name}`.places"))


def _names() -> set[str]:
    return set(_ask(r"SHOW DATABASES LIKE 'grid\_%'").split())


def test_workers_on_one_server_load_and_drop_without_disturbing_one_another(
    tmp_path: Path, dump: Path
) -> None:
    workers = [Databases(tmp_path / name / "databases") for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        loading = [pool.submit(one.ready, DIGEST, dump, lambda: True) for one in workers]
        first, second = [one.result(60) for one in loading]
    assert first != second
    assert _names() == {first, second}
    assert (_rows(first), _rows(second)) == (ROWS, ROWS)
    again = Databases(tmp_path / "a" / "databases")
    assert again.ready(DIGEST, tmp_path / "not needed", lambda: True) == first
    assert again.known() == [DIGEST]
    again.drop(DIGEST)
    assert again.known() == []
    assert _names() == {second}
    workers[1].drop(DIGEST)
    assert _names() == set()


def test_a_machine_that_was_renamed_leaves_no_database_behind(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Databases(tmp_path / "databases").ready(DIGEST, dump, lambda: True)
    monkeypatch.setattr("platform.node", lambda: "renamed")
    databases = Databases(tmp_path / "databases")
    after = databases.ready(DIGEST, dump, lambda: True)
    assert before != after
    assert _names() == {after}


def test_a_clash_is_no_fault_of_the_dump_but_a_table_that_it_makes_twice_is(
    tmp_path: Path, dump: Path
) -> None:
    databases = Databases(tmp_path / "databases")
    name = databases.ready(DIGEST, dump, lambda: True)
    with pytest.raises(UnavailableError, match="Somebody else"):
        _ask(f"CREATE DATABASE `{name}`")
    dump.write_text("CREATE TABLE places (code INT);\n" * 2)
    with pytest.raises(ProgramError, match="does not load"):
        databases.ready("cd" * 32, dump, lambda: True)


def test_a_dump_of_such_a_database_loads_once_like_any_other(tmp_path: Path, dump: Path) -> None:
    dump.write_text(
        f"{DUMP}CREATE TABLE {LOADED} (digest CHAR(64) PRIMARY KEY);\n"
        f"INSERT INTO {LOADED} VALUES ('{'ef' * 32}');\n"
    )
    databases = Databases(tmp_path / "databases")
    name = databases.ready(DIGEST, dump, lambda: True)
    assert databases.ready(DIGEST, tmp_path / "not needed", lambda: True) == name


def test_a_disk_that_refuses_the_note_loads_nothing(tmp_path: Path, dump: Path) -> None:
    (tmp_path / "databases").touch()
    with pytest.raises(OSError, match="databases"):
        Databases(tmp_path / "databases").ready(DIGEST, dump, lambda: True)
    assert _names() == set()
