"""Work that may take long, apart from all other work: on threads of its own, a few at a time.

The threads that requests share are for what is quick: whoever waits there for a silent server
holds up everybody. And a thread here never holds up the end of the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from officegrid.coordinator.log import get_logger
from officegrid.core.errors import UnavailableError

T = TypeVar("T")
log = get_logger("aside")


class Threads:
    """At most `at_once` calls at the same time; others wait for their turn without a thread."""

    def __init__(self, name: str, at_once: int) -> None:
        self._name = name
        self._turns = asyncio.Semaphore(at_once)
        self._waiting = 0
        self._closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Raises UnavailableError after `close`.

        When this is cancelled, the thread goes on and nobody hears of it."""
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            if self._closed:
                raise UnavailableError("The coordinator is stopping.")
            future: Future[T] = Future()
            future.set_running_or_notify_cancel()
            threading.Thread(target=_run, args=(work, future), name=self._name, daemon=True).start()
            return await asyncio.wrap_future(future)
        finally:
            self._turns.release()

    def close(self) -> None:
        """Start nothing more: whoever waits for a turn is told. What runs ends by itself."""
        self._closed = True
        for _ in range(self._waiting):
            self._turns.release()


def _run(work: Callable[[], T], future: Future[T]) -> None:
    try:
        found = work()
    except BaseException as error:  # it belongs to who waits for it
        future.set_exception(error)
    else:
        future.set_result(found)


class Tasks:
    """Tasks that nobody waits for, kept until they end. Their errors are logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def ended(self) -> None:
        """Wait until there are none."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.ended()


class Crew:
    """At most `most` tasks at the same time, and of each key at most one. Leaving the context
    waits for all of them; being cancelled cancels them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._group = asyncio.TaskGroup()
        self._keys: set[str] = set()

    async def __aenter__(self) -> Crew:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await self._group.__aexit__(*raised)

    def start(self, key: str, work: Callable[[], Awaitable[None]]) -> bool:
        """False when it must wait: begin it at another time."""
        if key in self._keys or len(self._keys) >= self._most:
            return False
        self._keys.add(key)
        self._group.create_task(self._work(key, work))
        return True

    async def _work(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await _logged(work())
        finally:
            self._keys.discard(key)


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:  # a fault in one must not end the others
        log.error("unexpected_error", error=repr(error), exc_info=error)
