"""Records into tables of real servers: one suite over MariaDB, PostgreSQL and SQLite."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from officegrid.core.errors import (
    ConflictError,
    ForbiddenError,
    InputError,
    OfficeGridError,
    UnavailableError,
    UsageError,
)
from officegrid.data.records import RecordError
from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.deliver import Target, deliver
from officegrid.data.sql.source import parse_source
from officegrid.data.sql.target import DELIVERIES, Mode
from officegrid.wire.data import Layout
from sqlkit import KINDS, NDJSON, Database, csv, database, kill_others, lines

AB = csv("id", "a")
OLD = [(1, "one"), (2, "two"), (3, "three")]
NEW = b"2,zwei\n4,vier\n"
AFTER: dict[Mode, list[tuple[Any, ...]]] = {
    "append": [*OLD, (4, "vier"), (5, "f\u00fcnf")],
    "upsert": [(1, "one"), (2, "zwei"), (3, "three"), (4, "vier")],
    "replace": [(2, "zwei"), (4, "vier")],
    "create": [("2", "zwei"), ("4", "vier")],
}


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    kind = request.param
    server = None if kind == "sqlite" else request.getfixturevalue(kind)
    with database(kind, server, tmp_path) as found:
        yield found


@pytest.fixture
def my(mariadb: Any, tmp_path: Path) -> Iterator[Database]:
    with database("mariadb", mariadb, tmp_path) as found:
        yield found


@pytest.fixture
def pg(postgresql: Any, tmp_path: Path) -> Iterator[Database]:
    with database("postgresql", postgresql, tmp_path) as found:
        yield found


def table_t(db: Database, more: str = "") -> None:
    db.run(f"CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a VARCHAR(20){more})")
    for row in OLD:
        db.run("INSERT INTO t (id, a) VALUES (%s, %s)", *row)


def rows(db: Database, table: str = "t") -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.run(f"SELECT * FROM {table} ORDER BY id")]


def leftovers(db: Database) -> set[str]:
    return db.tables() - {"t", DELIVERIES}


def target(mode: Mode, **more: Any) -> Target:
    return Target("t", mode, key=("id",) if mode == "upsert" else (), **more)


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["create", "append", "upsert", "replace"])
def test_every_mode_once_and_only_once(db: Database, mode: Mode) -> None:
    if mode != "create":
        table_t(db)
    data = b"4,vier\n5,f\xc3\xbcnf\n" if mode == "append" else NEW
    first = db.deliver(target(mode), AB, data)
    assert (first.records, first.again) == (2, False)
    assert rows(db) == AFTER[mode]
    again = db.deliver(target(mode), AB, data)
    assert (again.records, again.again) == (2, True)
    assert rows(db) == AFTER[mode]
    assert leftovers(db) == set()
    assert [tuple(r) for r in db.run(f"SELECT delivery_id, table_name FROM {DELIVERIES}")] == [
        ("d1", "t")
    ]
    with pytest.raises(InputError, match="went into t, not other"):
        db.deliver(Target("other", "create"), AB, data)


@pytest.mark.parametrize("mode", ["create", "append", "upsert", "replace"])
def test_many_pieces_keep_their_order_and_ndjson_does_the_same(db: Database, mode: Mode) -> None:
    if mode != "create":
        table_t(db)
    count = 4500
    ids = range(10, 10 + count)
    pieces = [
        lines(json.dumps({"a": f"n{i}", "id": i}) for i in ids[begin : begin + 1000])
        for begin in range(0, count, 1000)
    ]  # fmt: skip
    assert db.deliver(target(mode), NDJSON, pieces).records == count
    assert db.run("SELECT COUNT(*) FROM t") == [
        (count + (3 if mode in ("append", "upsert") else 0),)
    ]
    assert [tuple(r) for r in db.run("SELECT a FROM t WHERE id = 4509" if mode != "create" else
            "SELECT a FROM t WHERE id = '4509'")] == [("n4509",)]  # fmt: skip


def test_replace_keeps_structure_and_makes_a_table_that_is_not_there(db: Database) -> None:
    table_t(db, ", n INTEGER DEFAULT 7")
    db.run("CREATE INDEX by_a ON t (a)")
    db.deliver(target("replace"), AB, NEW)
    assert rows(db) == [(2, "zwei", 7), (4, "vier", 7)]
    with pytest.raises(RecordError, match="Record 2 does not fit"):
        db.deliver(target("replace"), AB, b"1,x\n1,y\n", "d2")
    assert rows(db) == [(2, "zwei", 7), (4, "vier", 7)]
    db.deliver(target("replace"), AB, b"", "d3")
    assert rows(db) == []
    db.deliver(Target("fresh", "replace"), AB, NEW, "d4")
    assert rows(db, "fresh") == AFTER["create"]


def test_replace_keeps_what_hangs_on_the_table(pg: Database) -> None:
    table_t(pg)
    pg.run("CREATE VIEW v AS SELECT * FROM t")
    pg.run("CREATE TABLE child (id INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED)")
    pg.run("INSERT INTO child VALUES (2)")
    pg.deliver(target("replace"), AB, NEW)
    assert rows(pg, "v") == AFTER["replace"]
    with pytest.raises(InputError, match="refuses") as caught:
        pg.deliver(target("replace"), AB, b"9,x\n", "d2")
    assert "foreign key" in caught.value.why
    assert rows(pg) == AFTER["replace"]


def test_a_swap_that_would_lose_keys_or_triggers_is_refused(my: Database) -> None:
    table_t(my)
    my.run("CREATE TABLE child (id INTEGER, FOREIGN KEY (id) REFERENCES t (id))")
    with pytest.raises(InputError, match="foreign keys"):
        my.deliver(target("replace"), AB, NEW)
    my.run("DROP TABLE child")
    my.run("CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.a = 'x'")
    with pytest.raises(InputError, match="triggers"):
        my.deliver(target("replace"), AB, NEW)
    assert rows(my) == OLD


def test_upsert_takes_the_last_of_equal_keys_and_leaves_other_columns(db: Database) -> None:
    table_t(db, ", n INTEGER DEFAULT 7")
    db.run("UPDATE t SET n = 1")
    done = db.deliver(target("upsert"), AB, b"2,first\n9,x\n2,last\n9,y\n")
    assert done.records == 4
    assert rows(db) == [(1, "one", 1), (2, "last", 1), (3, "three", 1), (9, "y", 7)]
    db.deliver(target("upsert"), csv("id"), b"9\n10\n", "d2")
    assert rows(db)[-2:] == [(9, "y", 7), (10, None, 7)]


def test_columns_may_be_in_another_order_and_differ_between_pieces(db: Database) -> None:
    table_t(db)
    pieces = [OutputPiece(b"x,4\n", ["a", "id"]), OutputPiece(b"5\n", ["id"])]
    deliver(db.source, target("append"), csv("id", "a"), pieces, "d1")
    assert rows(db) == [*OLD, (4, "x"), (5, None)]


def test_types_of_a_new_table(db: Database) -> None:
    types = {"id": "BIGINT", "price": "DECIMAL(10,2)"}
    db.deliver(Target("t", "create", types=types), csv("id", "price", "a"), b"1,1.10,x\n2,,\n")
    assert db.run("SELECT id, a FROM t ORDER BY id") == [(1, "x"), (2, None)]
    assert Decimal(str(db.run("SELECT price FROM t WHERE id = 1")[0][0])) == Decimal("1.10")
    with pytest.raises(UsageError, match="cannot be used"):
        db.deliver(Target("u", "create", types={"id": "INT); DROP TABLE t; --"}), AB, NEW, "d2")


def test_a_schema_may_be_named(my: Database, pg: Database) -> None:
    pg.run("CREATE SCHEMA IF NOT EXISTS sales")
    pg.run("DROP TABLE IF EXISTS sales.t, sales.officegrid_deliveries")
    pg.deliver(Target("sales.t", "create"), AB, NEW)
    assert rows(pg, "sales.t") == AFTER["create"]
    assert pg.tables() == set()
    my.run("CREATE TABLE t (id INT PRIMARY KEY, a TEXT)")
    my.deliver(Target(f"{my.name}.t", "replace"), AB, NEW)
    assert rows(my) == AFTER["replace"]


# --- there and back ------------------------------------------------------------------------------

TYPED = {
    "mariadb": [
        ("bigint unsigned", 2**64 - 1), ("decimal(30,10)", Decimal("-1.1000000000")),
        ("double", 0.1), ("float", 0.1), ("date", "2024-02-29"), ("date", "0000-00-00"),
        ("datetime(6)", "2024-02-03 04:05:06.123456"), ("timestamp", "2024-02-03 04:05:06"),
        ("time(3)", "-838:59:59.000"), ("varchar(20)", ""), ("text", "😀 \"q\",\r\n\t\\'\0é"),
        ("blob", b"\0\xff'\\\n"), ("bit(9)", b"\x01\x01"), ("enum('x','y')", "y"),
        ("json", '{"a": 1.10}'), ("text", "\\N"), ("text", "NULL"), ("year", 2024),
    ],
    "postgresql": [
        ("bigint", -(2**63)), ("numeric", Decimal("123456789012345678901234567890.10")),
        ("real", 0.1), ("double precision", 1e300), ("double precision", float("inf")),
        ("boolean", True), ("date", "2024-02-29"), ("timestamp", "infinity"),
        ("timestamptz", "2024-02-03 04:05:06.5+02"), ("time", "04:05:06.5"), ("text", ""),
        ("interval", "1 day 02:00:00"), ("text", "😀 \"q\",\r\n\t\\'é"), ("bytea", b"\0\xff\n"),
        ("bit(3)", "101"), ("json", '{"a":\n 1.10}'), ("integer[]", "{1,NULL}"),
        ("text", "\\N"), ("text", "\\."), ("text", "NULL"),
        ("uuid", "12345678-1234-1234-1234-123456789012"),
    ],
    "sqlite": [
        ("integer", -(2**63)), ("real", 0.1), ("text", ""), ("text", "😀 \"q\",\r\n\0'"),
        ("blob", b"\0\xff"), ("decimal(10,2)", 1.25), ("text", "NULL"), ("datetime", "2024-01-01"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "mode", "null"),
    [("csv", "append", ""), ("csv", "replace", r"\N"), ("csv", "append", "NULL"),
     ("ndjson", "append", ""), ("ndjson", "replace", "")],
)  # fmt: skip
def test_what_was_read_is_written_as_it_was(
    db: Database, format: Any, mode: Mode, null: str
) -> None:
    cases = TYPED[db.kind]
    if db.kind == "mariadb":
        db.run("SET SESSION sql_mode = '', time_zone = '+00:00'")
    made = ", ".join(
        f"c{i} {kind}{' NULL' if kind == 'timestamp' else ''}" for i, (kind, _) in enumerate(cases)
    )
    for name in ("s", "t"):
        db.run(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, {made})")
    places = ", ".join(["%s"] * len(cases))
    db.run(f"INSERT INTO s VALUES (1, {places})", *(value for _, value in cases))
    db.run(f"INSERT INTO s VALUES (2, {places})", *([None] * len(cases)))
    data = db.read(sql="SELECT * FROM s ORDER BY id", format=format, null=null)
    names = ["id", *(f"c{i}" for i in range(len(cases)))]
    layout = Layout(columns=names) if format == "csv" else NDJSON
    db.deliver(target(mode, null=null), layout, data)
    cast = ", ".join(f"c{i}::text" for i in range(len(cases)))
    what = f"id, {cast}" if db.kind == "postgresql" else "*"
    assert db.run(f"SELECT {what} FROM t ORDER BY id") == db.run(
        f"SELECT {what} FROM s ORDER BY id"
    )


def test_booleans_and_zones_fit_where_others_have_none(db: Database) -> None:
    kind = db.pick("TINYINT", "BOOLEAN", "INTEGER")
    moment = db.pick("DATETIME", "timestamptz", "TEXT")
    db.run(f"CREATE TABLE t (id INTEGER PRIMARY KEY, b {kind}, z {moment})")
    zone = "2024-01-01T02:00:00+02:00"
    data = [{"id": 1, "b": True, "z": zone}, {"id": 2, "b": False}, {"id": 3, "b": None, "z": None}]
    db.deliver(target("append"), NDJSON, lines(map(json.dumps, data)))
    db.deliver(target("append"), csv("id", "b"), b"4,true\n5,false\n", "d2")
    found = [row[0] for row in db.run("SELECT b FROM t ORDER BY id")]
    assert [None if one is None else bool(one) for one in found] == [True, False, None, True, False]
    if db.kind != "sqlite":
        found_at = db.run("SELECT z FROM t WHERE id = 1")[0][0]
        assert found_at.isoformat().startswith("2024-01-01T00:00:00")


def test_nested_json_goes_into_text(db: Database) -> None:
    db.deliver(Target("t", "create"), NDJSON, b'{"id":1,"a":{"x":[1.10,null]}}\n')
    assert rows(db) == [("1", '{"x":[1.10,null]}')]


# --- values that do not fit ----------------------------------------------------------------------

BAD: list[tuple[list[str], str, str, str]] = [
    (KINDS, "INTEGER", "12x", "12x"),
    (KINDS, "INTEGER", "1.5", "1.5"),
    (KINDS, "INTEGER", "", ""),
    (["mariadb", "postgresql"], "INTEGER", "3000000000", "3000000000"),
    (["sqlite"], "INTEGER", "9999999999999999999", "64 bits"),
    (["mariadb"], "INTEGER UNSIGNED", "-1", "-1"),
    (["mariadb", "postgresql"], "VARCHAR(3)", "abcd", "abcd"),
    (["mariadb", "postgresql"], "DECIMAL(6,2)", "1.234", "1.234"),
    (["mariadb", "postgresql"], "DECIMAL(6,2)", "12345.0", "12345"),
    (["mariadb", "postgresql"], "DECIMAL(6,2)", "1.5e-3", "1.5e-3"),
    (["mariadb", "postgresql"], "DATE", "2024-02-30", "2024-02-30"),
    (["mariadb"], "DATETIME", "2024-02-03T25:00:00", "25:00:00"),
    (["mariadb"], "VARCHAR(9) CHARACTER SET latin1", "\U0001f600", "\U0001f600"),
    (["mariadb"], "ENUM('x')", "y", "y"),
    (["mariadb", "sqlite"], "BLOB", "no base64!", "base64"),
    (["postgresql"], "BYTEA", "no base64!", "base64"),
    (["postgresql"], "BOOLEAN", "maybe", "maybe"),
    (["postgresql"], "JSON", "{", "json"),
    (["sqlite"], "REAL", "x", "x"),
]
CASES = [(kind, *case) for kinds, *case in BAD for kind in kinds]


@pytest.mark.parametrize(("kind", "declared", "value", "word"), CASES)
def test_a_value_that_does_not_fit_is_named_and_nothing_is_changed(
    kind: str, declared: str, value: str, word: str,
    request: pytest.FixtureRequest, tmp_path: Path,
) -> None:  # fmt: skip
    server = None if kind == "sqlite" else request.getfixturevalue(kind)
    good = {"INTEGER": "1", "REAL": "1", "BOOLEAN": "t", "JSON": "1", "DATE": "2024-01-01"}
    fine = good.get(declared, "1" if declared[:3] in ("INT", "DEC") else "")
    fine = "2024-01-01T00:00:00" if declared == "DATETIME" else fine
    fine = "x" if declared.startswith("ENUM") else fine
    with database(kind, server, tmp_path) as db:
        db.run(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
        made = [{"id": i, "v": fine} for i in range(40)]
        made[17]["v"] = value
        data = lines(map(json.dumps, made))
        for mode in ("append", "replace"):
            with pytest.raises(RecordError) as caught:
                db.deliver(target(mode), NDJSON, data, mode)
            assert caught.value.record == 17
            assert "Record 18 does not fit: column 'v'" in caught.value.what
            assert word.lower() in str(caught.value).lower()
            assert leftovers(db) == set()
        assert db.run("SELECT COUNT(*) FROM t") == [(0,)]


@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
def test_null_where_none_may_be(db: Database, mode: Mode) -> None:
    db.run("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a VARCHAR(9) NOT NULL)")
    with pytest.raises(RecordError, match="Record 2 does not fit: column 'a' does not take NULL"):
        db.deliver(target(mode), AB, b"1,x\n2,\n")
    with pytest.raises(RecordError, match="Record 3 does not fit: column 'id' does not take NULL"):
        db.deliver(target("upsert", null="-"), AB, b"1,x\n2,x\n-,x\n", "d2")
    assert rows(db) == []
    db.deliver(target(mode), AB, b'1,x\n2,""\n', "d3")
    assert rows(db) == [(1, "x"), (2, "")]


def test_equal_keys_are_named(db: Database) -> None:
    table_t(db)
    with pytest.raises(RecordError, match="Record 2 does not fit: id = '3' is in the table"):
        db.deliver(target("append"), AB, b"7,x\n3,y\n")
    with pytest.raises(RecordError, match="Record 3 does not fit: id = '7' is in another record"):
        db.deliver(target("append"), AB, b"7,x\n8,y\n7,z\n")
    assert rows(db) == OLD
    assert db.run(f"SELECT COUNT(*) FROM {DELIVERIES}") == [(0,)]


def test_an_upsert_never_takes_another_row_for_its_own(db: Database) -> None:
    """MySQL updates on any unique index that clashes, whatever the key was said to be."""
    table_t(db, ", UNIQUE (a)")
    with pytest.raises(InputError) as caught:
        db.deliver(target("upsert"), AB, b"1,eins\n9,two\n")
    assert "unique" in str(caught.value).lower()
    with pytest.raises(InputError):
        db.deliver(target("upsert"), AB, b"8,same\n9,same\n")
    assert rows(db) == OLD
    db.deliver(target("upsert"), AB, b"1,eins\n9,neun\n")
    assert rows(db) == [(1, "eins"), (2, "two"), (3, "three"), (9, "neun")]


# --- what is known before anything is loaded -----------------------------------------------------


def never() -> Iterator[OutputPiece]:
    yield OutputPiece(b"1,x\n")
    raise AssertionError("a second piece was asked for")


@pytest.mark.parametrize(
    ("wanted", "stored", "error", "words"),
    [
        (Target("t", "create"), AB, ConflictError, "exists already"),
        (Target("none", "append"), AB, InputError, "There is no table none"),
        (Target("t", "append"), csv("id", "b"), InputError, "no column 'b'"),
        (Target("t", "append"), csv("a", "a"), InputError, "two columns named 'a'"),
        (Target("t", "append"), csv("a"), InputError, "no column 'id', which t needs"),
        (Target("t", "upsert", key=("a",)), AB, InputError, "no unique index over exactly a"),
        (Target("t", "upsert", key=("id", "a")), AB, InputError, "no unique index over exactly"),
        (Target("t", "upsert", key=("nix",)), AB, InputError, "no column 'nix'"),
        (Target("t", "upsert"), AB, UsageError, "needs a key"),
        (Target("t", "append", key=("id",)), AB, UsageError, "takes no key"),
        (Target("t", "truncate"), AB, UsageError, "no output mode"),  # type: ignore[arg-type]
        (Target("v", "append"), AB, InputError, "is "),
        (Target("a.b.c", "append"), AB, UsageError, "cannot be named so"),
        (Target("t", "append", null='"'), AB, UsageError, "cannot stand for NULL"),
    ],
)
def test_what_does_not_fit_is_known_before_loading(
    db: Database, wanted: Target, stored: Layout, error: type[OfficeGridError], words: str
) -> None:
    table_t(db)
    db.run("CREATE VIEW v AS SELECT * FROM t")
    with pytest.raises(error, match=words):
        deliver(db.source, wanted, stored, never(), "d1")
    assert rows(db) == OLD
    assert leftovers(db) - {"v"} == set()


def test_tables_without_transactions_are_refused(my: Database) -> None:
    my.run("CREATE TABLE t (id INT PRIMARY KEY, a TEXT) ENGINE=MyISAM")
    for mode in ("append", "upsert"):
        with pytest.raises(InputError, match="MyISAM, which has no transactions"):
            my.deliver(target(mode), AB, NEW)
    my.deliver(target("replace"), AB, NEW)
    assert rows(my) == AFTER["replace"]


def test_computed_columns_are_left_to_the_database(db: Database) -> None:
    computed = "b INTEGER GENERATED ALWAYS AS (id + 1) STORED"
    db.run(f"CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER, {computed})")
    with pytest.raises(InputError, match="computed by the database"):
        db.deliver(target("append"), csv("id", "b"), b"1,2\n")
    for number, mode in enumerate(("append", "upsert", "replace")):
        db.deliver(target(mode), AB, b"%d,5\n" % (number + 1), mode)
    assert rows(db) == [(3, 5, 4)]


def test_broken_records_are_numbered(db: Database) -> None:
    table_t(db)
    ndjson = [b'{"id":7,"a":"x"}\n', b'{"id":8}\n{\n']
    for stored, data in ((AB, [b"7,x\n", b"8,y\n9\n"]), (NDJSON, ndjson)):
        with pytest.raises(RecordError, match="Record 3 cannot be read") as caught:
            db.deliver(target("append"), stored, data)
        assert caught.value.record == 2
    with pytest.raises(RecordError, match="Record 2 cannot be read: It has a column 'b'"):
        db.deliver(target("append"), NDJSON, [b'{"id":7}\n', b'{"id":8,"b":1}\n'])
    with pytest.raises(RecordError, match="half of a surrogate pair"):
        db.deliver(target("append"), NDJSON, b'{"id":7,"a":"\\ud800"}\n')
    assert rows(db) == OLD


# --- rights, and others at the same time ---------------------------------------------------------


def test_the_rights_that_the_documents_name_are_enough(my: Database, pg: Database) -> None:
    my.deliver(Target("first", "create"), AB, NEW, "d0")
    pg.deliver(Target("first", "create"), AB, NEW, "d0")
    for db in (my, pg):
        table_t(db)
    my.run("CREATE OR REPLACE USER writer@'%' IDENTIFIED BY 'pw-writer'")
    my.run(f"GRANT CREATE TEMPORARY TABLES ON {my.name}.* TO writer@'%'")
    my.run(f"GRANT SELECT, INSERT, UPDATE ON {my.name}.t TO writer@'%'")
    pg.run("DROP ROLE IF EXISTS writer")
    pg.run("CREATE ROLE writer LOGIN PASSWORD 'pw-writer'")
    pg.run("GRANT USAGE ON SCHEMA public TO writer")
    pg.run("GRANT SELECT, INSERT, UPDATE ON t TO writer")
    for db in (my, pg):
        assert db.server
        source = parse_source("crm", db.server.url(db.name, "writer", "pw-writer"))
        with pytest.raises(ForbiddenError):
            deliver(source, target("append"), AB, [OutputPiece(b"7,x\n")], "d1")
        who = "writer@'%'" if db is my else "writer"
        db.run(f"GRANT SELECT, INSERT ON {DELIVERIES} TO {who}")
        deliver(source, target("append"), AB, [OutputPiece(b"7,x\n")], "d1")
        deliver(source, target("upsert"), AB, [OutputPiece(b"7,y\n")], "d2")
        assert rows(db) == [*OLD, (7, "y")]
    pg.run("DROP OWNED BY writer")


@pytest.mark.parametrize("mode", ["create", "append", "upsert", "replace"])
def test_two_that_make_the_same_delivery_make_it_once(db: Database, mode: Mode) -> None:
    if mode != "create":
        table_t(db)
    data = b"4,vier\n5,f\xc3\xbcnf\n" if mode == "append" else NEW
    both = threading.Barrier(2, timeout=30)
    done: list[Any] = []

    def pieces() -> Iterator[OutputPiece]:
        yield OutputPiece(data)
        if mode in ("append", "upsert"):  # the others are kept apart by a lock on the delivery
            both.wait()

    def run() -> None:
        try:
            done.append(deliver(db.source, target(mode), AB, pieces(), "d1"))
        except OfficeGridError as error:
            done.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(getattr(one, "again", None) is False for one in done) == 1, done
    assert rows(db) == AFTER[mode]
    assert leftovers(db) == set()


def test_readers_see_the_old_rows_until_the_last_moment(db: Database) -> None:
    table_t(db)
    seen = []

    def pieces() -> Iterator[OutputPiece]:
        yield OutputPiece(b"2,zwei\n")
        seen.append(rows(db))
        yield OutputPiece(b"4,vier\n")
        seen.append(rows(db))

    deliver(db.source, target("replace"), AB, pieces(), "d1")
    assert seen == [OLD, OLD]
    assert rows(db) == AFTER["replace"]


def test_a_program_that_fails_in_the_middle_leaves_nothing(db: Database) -> None:
    table_t(db)

    def pieces() -> Iterator[OutputPiece]:
        yield OutputPiece(NEW)
        raise InputError("the output cannot be read")

    for mode in ("append", "upsert", "replace"):
        with pytest.raises(InputError, match="the output cannot be read"):
            deliver(db.source, target(mode), AB, pieces(), "d1")
        assert rows(db) == OLD
        assert leftovers(db) == set()


@pytest.mark.parametrize("mode", ["create", "append", "upsert", "replace"])
@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_a_connection_that_is_cut_while_loading_changes_nothing(
    kind: str, mode: Mode, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with database(kind, request.getfixturevalue(kind), tmp_path) as db:
        if mode != "create":
            table_t(db)

        def pieces() -> Iterator[OutputPiece]:
            yield OutputPiece(b"2,zwei\n")
            kill_others(db)
            for number in range(1000):
                yield OutputPiece(b"%d,%s\n" % (number + 10, b"x" * 2_000))

        with pytest.raises(UnavailableError) as caught:
            deliver(db.source, target(mode), AB, pieces(), "d1")
        assert "try again" in caught.value.fix.lower()
        assert "t" not in db.tables() if mode == "create" else rows(db) == OLD
        data = b"4,vier\n5,f\xc3\xbcnf\n" if mode == "append" else NEW
        assert not db.deliver(target(mode), AB, data).again
        assert rows(db) == AFTER[mode]
        assert leftovers(db) == set()
