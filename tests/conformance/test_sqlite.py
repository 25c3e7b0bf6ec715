"""The storage contract on SQLite, and what is particular to SQLite."""

# The shipped cases are imported after pytest has been told to explain their assertions.
# ruff: noqa: E402

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "officegrid.testing.storage_conformance",
    "officegrid.testing.storage_oracle",
    "officegrid.testing.storage_cases_ledger",
    "officegrid.testing.storage_cases_work",
    "officegrid.testing.storage_cases_catalogue",
    "officegrid.testing.storage_cases_transactions",
)

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import create_engine

from officegrid.core.errors import ConflictError, OfficeGridError, UnavailableError, VersionError
from officegrid.storage import catalogue_sql, ledger_view_sql, migrate, schema
from officegrid.storage.api import Image, JoinCode, Machine
from officegrid.storage.sqlite import SqliteStorage, library_warning
from officegrid.testing.storage_conformance import StorageConformance
from officegrid.testing.storage_edits import new_job


class TestSqlite(StorageConformance):
    @pytest.fixture
    def storage_factory(self, tmp_path: Path) -> Callable[[], SqliteStorage]:
        return lambda: SqliteStorage(tmp_path / "grid.sqlite")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SqliteStorage]:
    opened = SqliteStorage(tmp_path / "grid.sqlite")
    yield opened
    opened.close()


# opening


def test_a_second_process_is_refused_and_told_who_has_it(
    storage: SqliteStorage, tmp_path: Path
) -> None:
    program = (
        "import sys; from officegrid.storage.sqlite import SqliteStorage\n"
        "from officegrid.core.errors import ConflictError\n"
        "try: SqliteStorage(sys.argv[1])\n"
        "except ConflictError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(storage.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"process {os.getpid()}" in answer.stdout
    storage.close()
    SqliteStorage(tmp_path / "grid.sqlite").close()


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    with pytest.raises(ConflictError, match="another program"):
        SqliteStorage(foreign)
    text = tmp_path / "text.sqlite"
    text.write_bytes(b"not a database at all, not by any means" * 100)
    with pytest.raises(UnavailableError, match="not an SQLite database"):
        SqliteStorage(text)


def test_the_log_is_synced_and_only_the_writer_may_checkpoint(storage: SqliteStorage) -> None:
    def pragma(connection: sqlite3.Connection, name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma(storage._writer, "journal_mode") == "wal"
    assert pragma(storage._writer, "synchronous") == 2
    with storage._reader() as reader:
        assert pragma(reader, "query_only") == 1
        with pytest.raises(sqlite3.OperationalError, match=r"readonly|I/O error"):
            reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def test_an_old_library_gives_a_warning(
    storage: SqliteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    assert "3.51.3" in (library_warning() or "")
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 3))
    assert library_warning() is None


# schema and migrations


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        name: re.sub(r"[\s\"]+", "", sql).lower()
        for name, sql in found
        if not name.startswith(("sqlite_", "alembic_"))
    }


def test_the_migrations_lead_to_the_schema(storage: SqliteStorage, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'direct.sqlite'}")
    schema.METADATA.create_all(engine)
    engine.dispose()
    with sqlite3.connect(tmp_path / "direct.sqlite") as direct:
        assert _tables(storage._writer) == _tables(direct)
    direct.close()


NEXT = "9999"  # a revision after the newest one


def _newer_scripts(folder: Path) -> Path:
    scripts = folder / "migrations"
    shutil.copytree(migrate.SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / f"v{NEXT}_more.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = '{NEXT}'\ndown_revision = '{schema.HEAD}'\n\n"
        "def upgrade():\n"
        "    op.add_column('jobs', sa.Column('colour', sa.Text()))\n"
        "    fail = sa.text(\"SELECT 1 FROM settings WHERE key = 'poison'\")\n"
        "    if op.get_bind().execute(fail).first():\n"
        "        raise RuntimeError('half-way')\n"
    )
    return scripts


def test_an_older_database_is_copied_then_migrated(tmp_path: Path) -> None:
    path = tmp_path / "grid.sqlite"
    storage = SqliteStorage(path)
    storage.write(lambda tx: tx.put_setting("kept", "yes"))
    scripts = _newer_scripts(tmp_path)
    copy = migrate.bring_up_to_date(storage._writer, path, scripts=scripts, head=NEXT)
    assert "colour" in _tables(storage._writer)["jobs"]
    assert storage.read(lambda tx: tx.setting("kept")) == "yes"
    storage.close()
    assert copy is not None
    with sqlite3.connect(copy) as old:
        assert migrate.version_of(old) == schema.HEAD
        assert "colour" not in _tables(old)["jobs"]
        assert old.execute("SELECT value FROM settings").fetchall() == [("yes",)]
    old.close()
    with pytest.raises(VersionError, match="newer than this program"):
        SqliteStorage(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "grid.sqlite"
    storage = SqliteStorage(path)
    storage.write(lambda tx: tx.put_setting("poison", "yes"))
    before = _tables(storage._writer)
    with pytest.raises(RuntimeError, match="half-way"):
        migrate.bring_up_to_date(storage._writer, path, scripts=_newer_scripts(tmp_path), head=NEXT)
    assert _tables(storage._writer) == before
    assert migrate.version_of(storage._writer) == schema.HEAD
    storage.write(lambda tx: tx.put_setting("usable", "yes"))
    storage.close()


def _as_it_was_at_0001(path: Path) -> None:
    """A database of the first schema with a machine, a join code and a setting in it."""
    connection = sqlite3.connect(path, isolation_level=None)
    migrate.bring_up_to_date(connection, path, head="0001")
    machine = ("m1", "pc-1", "worker", "hash-1", 3.5, '{"cpus":4}', "s", 9.0, "working", 1)
    connection.execute(f"INSERT INTO machines VALUES ({', '.join('?' * 10)})", machine)
    connection.execute("INSERT INTO join_codes VALUES ('code', 'agent', 2, 100.0, 1.0)")
    connection.execute("INSERT INTO settings VALUES ('machine_counter', '1')")
    connection.close()


def test_a_database_of_the_first_schema_is_upgraded_with_its_machines(tmp_path: Path) -> None:
    path = tmp_path / "grid.sqlite"
    _as_it_was_at_0001(path)
    storage = SqliteStorage(path)
    assert storage.backup == tmp_path / "grid.sqlite.schema-0001.backup"
    expected = Machine(
        "m1", "pc-1", "worker", "hash-1", 3.5, {"cpus": 4}, "s", 9.0, "working", revoked=True
    )
    assert storage.read(lambda tx: tx.machine("m1")) == expected
    assert storage.read(lambda tx: tx.machine_by_token("hash-1")) == expected
    code = storage.write(lambda tx: tx.use_join_code("code", 2.0))
    assert code == JoinCode("code", "agent", 1, 100.0, 1.0)
    assert storage.read(lambda tx: tx.setting("machine_counter")) == "1"
    storage.write(lambda tx: tx.touch_machine("m1", drain=True, stats={"starts": 1}))
    storage.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'direct.sqlite'}")
    schema.METADATA.create_all(engine)
    engine.dispose()
    with sqlite3.connect(path) as upgraded, sqlite3.connect(tmp_path / "direct.sqlite") as direct:
        assert _tables(upgraded) == _tables(direct)
    upgraded.close()
    direct.close()
    with sqlite3.connect(tmp_path / "grid.sqlite.schema-0001.backup") as copy:
        assert migrate.version_of(copy) == "0001"
        assert "drain" not in _tables(copy)["machines"]
        assert copy.execute("SELECT name FROM machines").fetchall() == [("pc-1",)]
    copy.close()


def test_a_database_of_the_second_schema_gets_images_and_keeps_its_desktops(
    tmp_path: Path,
) -> None:
    path = tmp_path / "grid.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate.bring_up_to_date(connection, path, head="0002")
    columns = (
        "id, name, role, token_hash, created_at, facts, session, last_seen, state, revoked, host,"
        "status, stats, drain"
    )
    rows = [
        ("m1", "pc-1", "agent", "h1", 3.5, "{}", "", 9.0, "idle", 0, None, '{"at":9.0}',
         '{"starts":2}', 1),
        ("m2", "pc-1/vm", "worker", "h2", 4.5, '{"cpus":2}', "s", 8.0, "working", 0, "m1", "{}",
         "{}", 0),
    ]  # fmt: skip
    for row in rows:
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO machines ({columns}) VALUES ({marks})", row)
    connection.close()
    storage = SqliteStorage(path)
    agent = Machine("m1", "pc-1", "agent", "h1", 3.5, last_seen=9.0, state="idle", drain=True,
                    status={"at": 9.0}, stats={"starts": 2})  # fmt: skip
    assert storage.read(lambda tx: tx.machine("m1")) == agent
    workers = storage.read(lambda tx: tx.machines_on("m1"))
    assert [(one.id, one.cloned_from, one.facts) for one in workers] == [("m2", None, {"cpus": 2})]
    assert storage.read(lambda tx: tx.machine_by_token("h2")) == workers[0]
    image = Image("a" * 64, 1, "grid-1", "rolling", {"files": {}}, 5.0, "ann")
    storage.write(lambda tx: tx.put_image(image, ["c" * 64]))
    assert storage.read(lambda tx: tx.images()) == [image]
    storage.close()
    with sqlite3.connect(tmp_path / "grid.sqlite.schema-0002.backup") as copy:
        assert "images" not in _tables(copy)
    copy.close()


# query plans


@pytest.mark.parametrize(
    ("sql", "values", "index"),
    [
        (ledger_view_sql.LARGEST_PENDING, ("j",), "ix_spans_largest_pending"),
        (ledger_view_sql.SPAN_AT, ("j", 5), "USING PRIMARY KEY (job=? AND start<?)"),
        (ledger_view_sql.SPANS_OVER, ("j", 5, 9), "PRIMARY KEY (job=? AND start>? AND start<?)"),
        (ledger_view_sql.LIVE_LEASES, ("j",), "ix_leases_live_job"),
        (
            ledger_view_sql.LIVE_LEASES_OVER,
            ("j", 5, 9),
            "ix_leases_live_job (job=? AND start>? AND start<?)",
        ),
        (
            catalogue_sql.BLOCKS_OVER,
            ("d", 5, 9),
            "PRIMARY KEY (dataset=? AND start>? AND start<?)",
        ),
    ],
)
def test_look_ups_use_an_index_and_never_sort(
    storage: SqliteStorage, sql: str, values: tuple[object, ...], index: str
) -> None:
    plan = storage._writer.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()
    text = "\n".join(row[3] for row in plan)
    assert index in text
    assert "TEMP B-TREE" not in text
    assert "SCAN" not in text


@pytest.mark.parametrize(
    ("verb", "index"),
    [
        (lambda tx: tx.expired_leases(1.0), "ix_leases_live_deadline"),
        (lambda tx: tx.live_leases_of("m"), "ix_leases_live_machine"),
        (lambda tx: tx.lease_may_read("m", "0" * 64), "ix_leases_live_machine"),
        (lambda tx: tx.part_of_lease("l"), "uq_parts_lease_id"),
        (lambda tx: tx.parts("j"), "PRIMARY KEY (job=? AND start>?)"),
        (lambda tx: tx.retried_parts("j", 1, 2), "ix_parts_retried"),
        (lambda tx: tx.quarantined("j"), "sqlite_autoindex_quarantine_1"),
        (lambda tx: tx.events("j"), "ix_events_subject"),
        (lambda tx: tx.machine_by_token("t"), "ix_machines_token_hash"),
        (lambda tx: tx.machines_on("m1"), "ix_machines_host"),
        (lambda tx: tx.images(), "uq_images_version"),
        (lambda tx: tx.is_image_chunk("c"), "PRIMARY KEY (sha256=?)"),
        (lambda tx: tx.image_uses("i"), "PRIMARY KEY (image=?)"),
        (lambda tx: tx.version("code", "n"), "PRIMARY KEY (kind=? AND name=?)"),
        (lambda tx: tx.versions("code", name="n"), "PRIMARY KEY (kind=? AND name=?)"),
        (lambda tx: tx.versions_with("d"), "ix_versions_digest"),
        (lambda tx: tx.deltas_to("d"), "PRIMARY KEY (new=?)"),
        (lambda tx: tx.pin("j"), "PRIMARY KEY (job=?)"),
        (lambda tx: tx.pin("j", 1), "PRIMARY KEY (job=? AND pin=?)"),
        (lambda tx: tx.jobs_with_archive("d"), "ix_job_archives_archive"),
        (lambda tx: tx.lease_may_use("m", "d"), "ix_leases_live_machine"),
    ],
)
def test_verbs_use_their_index(
    storage: SqliteStorage, verb: Callable[[object], object], index: str
) -> None:
    statements: list[str] = []
    storage._writer.set_trace_callback(statements.append)
    storage.write(verb)
    storage._writer.set_trace_callback(None)
    selects = [sql for sql in statements if "SELECT" in sql]
    assert len(selects) == 1
    plan = storage._writer.execute(f"EXPLAIN QUERY PLAN {selects[0]}").fetchall()
    text = "\n".join(row[3] for row in plan)
    assert index in text
    assert "TEMP B-TREE" not in text


# errors


def test_a_locked_database_is_unavailable_and_recovers(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "grid.sqlite", busy_timeout_s=0.05)
    intruder = sqlite3.connect(tmp_path / "grid.sqlite", isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    done = storage.write_many([lambda tx: tx.put_setting("a", "1"), lambda tx: None])
    assert [type(x.error) for x in done] == [UnavailableError, UnavailableError]
    shown = str(done[0].error)
    assert "locked" in shown
    assert "Fix:" in shown
    intruder.execute("ROLLBACK")
    intruder.close()
    storage.write(lambda tx: tx.put_setting("a", "2"))
    assert storage.read(lambda tx: tx.setting("a")) == "2"
    storage.close()


def test_nested_writes_are_refused(storage: SqliteStorage) -> None:
    with pytest.raises(OfficeGridError, match="Two writes at once"):
        storage.write(lambda tx: storage.write(lambda inner: inner.add_job(new_job("j", 1))))
    storage.write(lambda tx: tx.add_job(new_job("j", 1)))
