"""Rows from and into databases, beside each database's own client in the same run.

A narrow table (a number, a short text, a decimal, a time) is read as CSV blocks are made of it, and
written by append into an empty table with a primary key. The clients write and read plain files on
the same disk. Servers are private, and do without fsync; SQLite is a file.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.report import Figure, heading, show
from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.deliver import Target, deliver
from officegrid.data.sql.reading import read_query
from officegrid.data.sql.source import parse_source
from officegrid.wire.data import Layout

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from databases import PASSWORD, Server, mariadb_server, postgresql_server

COLUMNS = ["id", "name", "amount", "at"]
PIECE_ROWS = 20_000
TABLES = {
    "mariadb": "id BIGINT PRIMARY KEY, name VARCHAR(40), amount DECIMAL(10,2), at DATETIME",
    "postgresql": "id BIGINT PRIMARY KEY, name VARCHAR(40), amount DECIMAL(10,2), at TIMESTAMP",
    "sqlite": "id INTEGER PRIMARY KEY, name TEXT, amount NUMERIC, at TEXT",
}


def run(folder: Path, rows: int, rounds: int) -> None:
    heading(f"SQL: {rows:,} rows of 4 columns, beside the databases' own clients")
    print(f"  load average           {os.getloadavg()[0]:.1f}", flush=True)
    with ExitStack() as stack:
        servers: dict[str, Server | None] = {
            "mariadb": stack.enter_context(mariadb_server()),
            "postgresql": stack.enter_context(postgresql_server()),
            "sqlite": None,
        }
        for kind, server in servers.items():
            one = _Database(kind, server, folder)
            one.client(f"CREATE TABLE n ({TABLES[kind]}); CREATE TABLE w ({TABLES[kind]})")
            deliver(one.source, Target("n", "append"), Layout(columns=COLUMNS), _pieces(rows), "n")
            _compare(f"{kind} read", rows, rounds, lambda o=one: o.read(rows), one.dump)
            _compare(f"{kind} write", rows, rounds, lambda o=one: o.write(rows), one.load)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show(Figure("peak memory", f"{peak:.0f} MB, this program with everything"))


def _pieces(rows: int) -> Iterator[OutputPiece]:
    for begin in range(0, rows, PIECE_ROWS):
        lines = (
            f"{i},name {i},{i % 10**6}.{i % 100:02},2024-01-01T{i % 24:02}:00:00\n"
            for i in range(begin, min(begin + PIECE_ROWS, rows))
        )
        yield OutputPiece("".join(lines).encode())


def _compare(
    name: str, rows: int, rounds: int, ours: Callable[[], None], theirs: Callable[[], None]
) -> None:
    walls: tuple[list[float], list[float]] = [], []
    cpus: list[float] = []
    for _ in range(rounds):
        for figures, work in zip(walls, (ours, theirs), strict=True):
            begun, cpu = time.perf_counter(), time.process_time()
            work()
            figures.append(time.perf_counter() - begun)
            if work is ours:
                cpus.append(time.process_time() - cpu)
    own, client = statistics.median(walls[0]), statistics.median(walls[1])
    bar = "must >= 100,000" if name.endswith("read") else ""
    show(
        Figure(name, f"{rows / own:,.0f} rows/s, {statistics.median(cpus):.1f} s CPU", bar),
        Figure("  its own client", f"{rows / client:,.0f} rows/s, ours takes {own / client:.1f} x"),
    )


class _Database:
    """One database, by us and by its own client."""

    def __init__(self, kind: str, server: Server | None, folder: Path) -> None:
        self.kind = kind
        self.file = folder / f"{kind}.dump"
        self.writes = 0
        self.env = {**os.environ, "PGPASSWORD": PASSWORD, "MYSQL_PWD": PASSWORD}
        if server is None:
            path = folder / "bench.sqlite"
            self.command = ["sqlite3", "-bail", str(path)]
            self._start(["VACUUM"])  # makes the file
            self.source = parse_source(kind, f"sqlite:///{path}")
        elif kind == "mariadb":
            self.command = [
                "mariadb", "--no-defaults", "-h127.0.0.1", f"-P{server.port}", "-ugrid",
                "--local-infile=1", "--quick", "-BN",
            ]  # fmt: skip
            self._start(["-e", "CREATE DATABASE testbench"])
            self.command += ["testbench"]
            self.source = parse_source(kind, server.url("testbench") + "?ssl_mode=disabled")
        else:
            self.command = [
                "psql", "-qX", "-h", "127.0.0.1", "-p", str(server.port), "-U", "grid", "postgres",
            ]  # fmt: skip
            self.env["PGSSLMODE"] = "disable"
            self.source = parse_source(kind, server.url("postgres") + "?sslmode=disable")

    def _start(self, arguments: list[str], **more: Any) -> None:
        subprocess.run([*self.command, *arguments], env=self.env, check=True, **more)

    def client(self, sql: str) -> None:
        flag = {"mariadb": ["-e"], "postgresql": ["-c"], "sqlite": []}[self.kind]
        self._start([*flag, sql])

    def read(self, rows: int) -> None:
        with read_query(self.source, table="n") as found:
            if sum(chunk.records for chunk in found.chunks()) != rows:
                raise SystemExit("not all rows")

    def dump(self) -> None:
        """The client's own way to write the table to a file."""
        if self.kind == "postgresql":
            self.client(rf"\copy n to '{self.file}' csv")
            return
        flag = ["-e"] if self.kind == "mariadb" else ["-cmd", ".mode csv"]
        command = (
            [self.command[0], *flag, *self.command[1:]]
            if self.kind == "sqlite"
            else [*self.command, *flag]
        )
        with self.file.open("wb") as out:
            subprocess.run([*command, "SELECT * FROM n"], env=self.env, check=True, stdout=out)

    def write(self, rows: int) -> None:
        self.client("DELETE FROM w" if self.kind == "sqlite" else "TRUNCATE TABLE w")
        self.writes += 1
        target, layout = Target("w", "append"), Layout(columns=COLUMNS)
        done = deliver(self.source, target, layout, _pieces(rows), f"w{self.writes}")
        if done.records != rows:
            raise SystemExit("not all rows")

    def load(self) -> None:
        """The client's own way to fill the table from the file that `dump` wrote."""
        self.client("DELETE FROM w" if self.kind == "sqlite" else "TRUNCATE TABLE w")
        if self.kind == "postgresql":
            self.client(rf"\copy w from '{self.file}' csv")
        elif self.kind == "mariadb":
            self.client(f"LOAD DATA LOCAL INFILE '{self.file}' INTO TABLE w")
        else:
            text = f".mode csv\n.import '{self.file}' w\n".encode()
            self._start([], input=text)
