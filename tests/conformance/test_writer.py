"""Group commit over a real database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from officegrid.coordinator.writer import Writer
from officegrid.core.errors import ConflictError, UnavailableError
from officegrid.storage.api import Tx
from officegrid.storage.sqlite import SqliteStorage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[SqliteStorage]:
    opened = SqliteStorage(tmp_path / "grid.sqlite")
    yield opened
    opened.close()


class Gate:
    """An operation that occupies the writer until it is let go."""

    def __init__(self, writer: Writer) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.future = writer.submit(self)
        assert self.entered.wait(10)

    def __call__(self, tx: Tx) -> str:
        self.entered.set()
        assert self.open.wait(10)
        return "through"


def _put(tx: Tx, number: int) -> int:
    tx.put_setting(f"k{number}", str(number))
    return number


def test_what_queues_while_the_writer_is_busy_shares_commits(storage: SqliteStorage) -> None:
    writer = Writer(storage, batch_max=40)
    gate = Gate(writer)
    futures = [writer.submit(partial(_put, number=n)) for n in range(100)]
    assert writer.waiting == 100
    gate.open.set()
    assert [future.result(10) for future in futures] == list(range(100))
    assert storage.read(lambda tx: tx.setting("k99")) == "99"  # durable when answered
    writer.stop()
    assert (writer.batches, writer.operations, writer.largest_batch) == (4, 101, 40)
    assert writer.longest_batch_s > 0
    assert writer.failed_batches == 0


def test_errors_reach_the_one_who_asked(storage: SqliteStorage) -> None:
    writer = Writer(storage)
    gate = Gate(writer)

    def refuse(tx: Tx) -> None:
        tx.put_setting("refused", "x")
        raise ConflictError("no")

    good, bad = writer.submit(lambda tx: _put(tx, 1)), writer.submit(refuse)
    gate.open.set()
    assert good.result(10) == 1
    assert isinstance(bad.exception(10), ConflictError)
    assert storage.read(lambda tx: tx.setting("refused")) is None
    writer.stop()


def test_a_full_queue_is_busy(storage: SqliteStorage) -> None:
    writer = Writer(storage, waiting_max=3)
    gate = Gate(writer)
    futures = [writer.submit(partial(_put, number=n)) for n in range(3)]
    with pytest.raises(UnavailableError) as caught:
        writer.submit(lambda tx: _put(tx, 4))
    assert caught.value.code == "busy"
    gate.open.set()
    assert [future.result(10) for future in futures] == [0, 1, 2]
    assert writer.submit(lambda tx: _put(tx, 5)).result(10) == 5
    writer.stop()


def test_stop_drains_and_then_refuses(storage: SqliteStorage) -> None:
    writer = Writer(storage)
    gate = Gate(writer)
    futures = [writer.submit(partial(_put, number=n)) for n in range(20)]
    stopper = threading.Thread(target=writer.stop)
    stopper.start()
    gate.open.set()
    stopper.join(10)
    assert [future.result(0) for future in futures] == list(range(20))
    with pytest.raises(UnavailableError, match="stopping"):
        writer.submit(lambda tx: _put(tx, 1))
    writer.stop()


def test_a_cancelled_operation_is_not_run(storage: SqliteStorage) -> None:
    writer = Writer(storage)
    gate = Gate(writer)
    unwanted = writer.submit(lambda tx: _put(tx, 1))
    wanted = writer.submit(lambda tx: _put(tx, 2))
    assert unwanted.cancel()
    gate.open.set()
    assert wanted.result(10) == 2
    assert storage.read(lambda tx: tx.setting("k1")) is None
    writer.stop()


def test_a_closed_database_fails_operations_and_not_the_writer(storage: SqliteStorage) -> None:
    writer = Writer(storage)
    storage.close()
    for number in range(2):
        future = writer.submit(partial(_put, number=number))
        assert isinstance(future.exception(10), UnavailableError)
    writer.stop()
    assert writer.failed_batches == 2


def test_run_serves_many_coroutines(storage: SqliteStorage) -> None:
    writer = Writer(storage)

    def add(tx: Tx) -> int:
        value = int(tx.setting("sum") or "0") + 1
        tx.put_setting("sum", str(value))
        return value

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(writer.run(add) for _ in range(300)))

    answers = asyncio.run(asyncio.wait_for(all_at_once(), 30))
    assert sorted(answers) == list(range(1, 301))
    writer.stop()
    assert storage.read(lambda tx: tx.setting("sum")) == "300"
