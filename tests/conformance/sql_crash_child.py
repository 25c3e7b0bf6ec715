"""Makes deliveries and dies by kill -9 where it is told to; see test_sql_crash.py.

Reads one JSON order a line, does each in a forked child, and prints how that one ended. Forking
costs milliseconds where a new interpreter costs half a second. An order has `die_at`, the number of
the statement at which the child kills itself, or `die_after_ms`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pymysql.connections

from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.deliver import Target, deliver
from officegrid.data.sql.mysql_write import MySqlWriter
from officegrid.data.sql.postgres_write import PostgresWriter
from officegrid.data.sql.source import parse_source
from officegrid.data.sql.sqlite_write import SqliteWriter
from officegrid.wire.data import Layout


class Countdown:
    """Dies at statement `left`, counted from the first look at the table on: before that only
    the connection is made."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.running = False

    def start(self, kind: type) -> None:
        inner: Any = kind.describe  # type: ignore[attr-defined]

        def outer(*arguments: Any) -> Any:
            self.running = True
            return inner(*arguments)

        kind.describe = outer  # type: ignore[attr-defined]

    def one(self) -> bool:
        self.left -= self.running
        return self.running and self.left == 0


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(countdown: Countdown, kind: type, name: str) -> None:
    inner = getattr(kind, name)

    def outer(*arguments: Any) -> Any:
        if countdown.one():
            die()
        return inner(*arguments)

    setattr(kind, name, outer)


def die_when_sent(countdown: Countdown) -> None:
    """The server gets the statement and carries it out, and nobody reads its answer."""
    kind: Any = pymysql.connections.Connection
    inner = kind._execute_command

    def outer(*arguments: Any) -> None:
        inner(*arguments)
        if countdown.one():
            die()

    kind._execute_command = outer


def pieces(rows: int) -> Iterator[OutputPiece]:
    """Ids 2, 4, 6, …; in pieces of 500 records."""
    for begin in range(0, rows, 500):
        ids = range(begin, min(begin + 500, rows))
        yield OutputPiece("".join(f"{2 * i + 2},new {i}\n" for i in ids).encode())


def carry_out(order: dict[str, Any]) -> None:
    if order.get("die_after_ms"):
        signal.signal(signal.SIGALRM, die)
        signal.setitimer(signal.ITIMER_REAL, order["die_after_ms"] / 1000)
    if order.get("die_at"):
        countdown = Countdown(order["die_at"])
        die_when_sent(countdown)
        for kind in (MySqlWriter, PostgresWriter, SqliteWriter):
            countdown.start(kind)
        for kind in (PostgresWriter, SqliteWriter):
            die_before(countdown, kind, "_query")
            die_before(countdown, kind, "load")
    mode = order["mode"]
    target = Target("t", mode, key=("id",) if mode == "upsert" else ())
    stored = Layout(columns=["id", "a"])
    source = parse_source("crash", order["url"])
    deliver(source, target, stored, pieces(order["rows"]), order["id"])


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                carry_out(json.loads(line))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
