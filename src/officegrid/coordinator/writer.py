"""Group commit: one thread writes what all requests ask for, many operations per transaction.

While one group is being synced to disk the next one gathers, so the groups grow with the load
and nothing waits on a timer. An answer is given after the commit that makes it durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from officegrid.core.errors import InternalError, UnavailableError
from officegrid.storage.api import Done, Storage, Tx

T = TypeVar("T")

WAITING_MAX = 10_000


class Writer:
    """The only thread that writes to `storage`; starts at once, ends with `stop()`.

    Counters for metrics: `batches` and `operations` committed or refused so far, `failed_batches`
    (those the disk refused), `largest_batch` (operations), `longest_batch_s` (seconds).
    """

    def __init__(
        self, storage: Storage, *, batch_max: int = 256, waiting_max: int = WAITING_MAX
    ) -> None:
        self._storage = storage
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        self._queue: deque[tuple[Callable[[Tx], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self.batches = 0
        self.operations = 0
        self.failed_batches = 0
        self.largest_batch = 0
        self.longest_batch_s = 0.0
        self._thread = threading.Thread(target=self._work, name="storage-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Operations that are queued and not begun."""
        return len(self._queue)

    def submit(self, operation: Callable[[Tx], T]) -> Future[T]:
        """Queue an operation; the future has its value, or its error, once that is durable.

        Cancelling the future before its group begins takes the operation off the queue.
        Raises UnavailableError (code "busy") when too many wait, and after `stop()`.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stopping:
                raise UnavailableError(
                    "The coordinator is stopping.",
                    "It takes no new work while it shuts down.",
                    "Try again when it runs again.",
                )
            if len(self._queue) >= self._waiting_max:
                raise UnavailableError(
                    "The coordinator is too busy.",
                    f"{len(self._queue)} changes wait to be saved already.",
                    "Try again in a few seconds; if it stays so, its disk is too slow.",
                    code="busy",
                )
            self._queue.append((operation, future))
            self._changed.notify()
        return future

    async def run(self, operation: Callable[[Tx], T]) -> T:
        """`submit` for asyncio: returns the operation's value or raises its error."""
        return await asyncio.wrap_future(self.submit(operation))

    def stop(self) -> None:
        """Take nothing new, finish what is queued, end the thread. Idempotent."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            begun = [pair for pair in batch if pair[1].set_running_or_notify_cancel()]
            if not begun:
                continue
            started = time.perf_counter()
            results = self._write([operation for operation, _ in begun])
            self._measure(results, time.perf_counter() - started)
            for (_, future), done in zip(begun, results, strict=True):
                _resolve(future, done)

    def _next_batch(self) -> list[tuple[Callable[[Tx], Any], Future[Any]]]:
        """What is queued, once something is; empty when stopped and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            size = min(len(self._queue), self._batch_max)
            return [self._queue.popleft() for _ in range(size)]

    def _write(self, operations: list[Callable[[Tx], Any]]) -> list[Done]:
        try:
            results = self._storage.write_many(operations)
        except BaseException as error:  # the thread must outlive any bug: all requests need it
            return [Done(error=error)] * len(operations)
        if len(results) == len(operations):
            return results
        wrong = InternalError(
            "The database answered for another number of operations than it was given.",
            f"{len(operations)} given, {len(results)} answered.",
        )
        return [Done(error=wrong)] * len(operations)

    def _measure(self, results: list[Done], spent_s: float) -> None:
        self.batches += 1
        self.operations += len(results)
        self.failed_batches += all(isinstance(x.error, UnavailableError) for x in results)
        self.largest_batch = max(self.largest_batch, len(results))
        self.longest_batch_s = max(self.longest_batch_s, spent_s)


def _resolve(future: Future[Any], done: Done) -> None:
    # A future whose event loop is gone by now must not stop the others from being resolved.
    with contextlib.suppress(InvalidStateError, RuntimeError):
        if done.error is not None:
            future.set_exception(done.error)
        else:
            future.set_result(done.value)
