"""One way for tests to talk to each of the three kinds of database, beside the code they test."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pymysql

from databases import PASSWORD, Server
from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.deliver import Delivered, Target, deliver
from officegrid.data.sql.reading import read_query
from officegrid.data.sql.source import SqlSource, parse_source
from officegrid.data.sql.statement import quoted
from officegrid.wire.data import Layout

KINDS = ["mariadb", "postgresql", "sqlite"]
_numbers = count(1)


@dataclass
class Database:
    """An empty database of one kind, and a connection of the test's own to it (autocommit)."""

    kind: str
    url: str
    name: str
    server: Server | None
    connection: Any = field(repr=False)

    @property
    def source(self) -> SqlSource:
        return parse_source(self.kind, self.url)

    def run(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Execute; parameters are written %s."""
        if self.kind == "sqlite":
            return list(self.connection.execute(sql.replace("%s", "?"), arguments))
        with self.connection.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall()) if cursor.description else []

    def another(self) -> Any:
        """A second connection."""
        return _connect(self.kind, self.server, self.name)

    def pick(self, mariadb: str, postgresql: str, sqlite: str) -> str:
        return {"mariadb": mariadb, "postgresql": postgresql, "sqlite": sqlite}[self.kind]

    def quote(self, name: str) -> str:
        return quoted(name, self.source.dialect)

    def tables(self) -> set[str]:
        sql = self.pick(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()",
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
            "SELECT name FROM sqlite_master WHERE type = 'table'",
        )
        return {str(row[0]) for row in self.run(sql)}

    def read(self, **what: Any) -> bytes:
        with read_query(self.source, **what) as found:
            return b"".join(chunk.data for chunk in found.chunks())

    def deliver(
        self, target: Target, stored: Layout, data: bytes | list[bytes], delivery_id: str = "d1"
    ) -> Delivered:
        parts = [data] if isinstance(data, bytes) else data
        pieces = [OutputPiece(part) for part in parts]
        return deliver(self.source, target, stored, pieces, delivery_id)


def _connect(kind: str, server: Server | None, name: str) -> Any:
    if kind == "sqlite":
        found = sqlite3.connect(name, isolation_level=None, timeout=30, check_same_thread=False)
        found.execute("PRAGMA synchronous = OFF")
        return found
    assert server is not None
    if kind == "mariadb":
        return pymysql.connect(
            host="127.0.0.1", port=server.port, user="grid", password=PASSWORD,
            database=name or None, charset="utf8mb4", autocommit=True, ssl_disabled=True,
        )  # fmt: skip
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user="grid", password=PASSWORD, dbname=name,
        autocommit=True, sslmode="disable",
    )  # fmt: skip


@contextmanager
def database(kind: str, server: Server | None, folder: Path) -> Iterator[Database]:
    """An empty one. PostgreSQL takes long to copy a database, so its schema is made anew."""
    if kind == "sqlite":
        name = str(folder / "t.sqlite")
        url = f"sqlite:///{name}"
    elif kind == "mariadb":
        assert server is not None
        name = f"test{next(_numbers)}"
        root = _connect(kind, server, "")
        with root, root.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        url = f"{server.url(name)}?ssl_mode=disabled"
    else:
        assert server is not None
        name = "postgres"
        url = f"{server.url(name)}?sslmode=disable"
    connection = _connect(kind, server, name)
    found = Database(kind, url, name, server, connection)
    if kind == "postgresql":
        # Whatever a test that failed has left open would hold its locks.
        found.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        found.run("DROP SCHEMA public CASCADE")
        found.run("CREATE SCHEMA public")
    try:
        yield found
    finally:
        connection.close()


def kill_others(db: Database) -> None:
    """The server ends every connection but the test's own."""
    if db.kind == "postgresql":
        db.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return
    own = db.run("SELECT CONNECTION_ID()")[0][0]
    for row in db.run("SHOW PROCESSLIST"):
        if row[0] != own and row[1] == "grid" and row[3] == db.name:
            db.run(f"KILL {row[0]}")


def csv(*columns: str) -> Layout:
    return Layout(columns=list(columns))


NDJSON = Layout(format="ndjson", header=False)


def lines(values: Iterable[str]) -> bytes:
    return "".join(f"{value}\n" for value in values).encode()
