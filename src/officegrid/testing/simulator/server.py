"""The coordinator in virtual time: the real services on the real database, with group commit.

A crash takes the files as they are at that moment to a new folder, opens the database from them
and starts with an empty memory, as after `kill -9`.
"""

from __future__ import annotations

import atexit
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from officegrid.coordinator.service import claims, commits, desks, lifecycle, returns
from officegrid.coordinator.service.context import Grid, GridSettings
from officegrid.core.errors import AuthError, InternalError, OfficeGridError
from officegrid.storage.api import Done, Machine, Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.testing.simulator.program import ObjectShelf
from officegrid.testing.simulator.timeline import Chronicle, Timeline
from officegrid.wire.agent import AgentOrders, AgentReport
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    CommitReply,
    CommitRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
)

T = TypeVar("T")
Message = ClaimRequest | RenewRequest | CommitRequest | ReleaseRequest | AgentReport
Reply = ClaimReply | RenewReply | CommitReply | AgentOrders | OfficeGridError
EPOCH_S = 1_800_000_000.0
GATHER_S = 0.004
UPKEEP_S = 2.0


class Violation(Exception):  # noqa: N818 - a finding, not an error of this program
    """Something that must never happen has happened to records `[start, end)` of `job`."""

    def __init__(self, what: str, job: str = "", start: int = 0, end: int = 0) -> None:
        super().__init__(what)
        self.what, self.job, self.start, self.end = what, job, start, end


class _PowerCut(BaseException):
    """Raised inside a transaction: nothing of it is kept."""


@dataclass(frozen=True, slots=True)
class _Asked:
    machine_id: str
    message: Message
    answer: Callable[[Reply], None]


_template: list[Path] = []


def fast_folder() -> str | None:
    """Where temporary databases go: memory, where there is such a folder."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _empty_database() -> Path:
    """An empty database, made once per process: its migrations take longer than a universe."""
    if not _template:
        folder = Path(tempfile.mkdtemp(prefix="officegrid-sim-empty-", dir=fast_folder()))
        SqliteStorage(folder / "empty.db").close()
        _template.append(folder / "empty.db")
        atexit.register(forget_empty_database)
    return _template[0]


def forget_empty_database() -> None:
    """Remove what `Server` keeps between universes."""
    while _template:
        shutil.rmtree(_template.pop().parent, ignore_errors=True)


class Server:
    """`observe(machine_id, message, reply)` is called for each durable change, answered or not."""

    def __init__(
        self,
        timeline: Timeline,
        chronicle: Chronicle,
        rng: random.Random,
        shelf: ObjectShelf,
        lease_s: float,
        observe: Callable[[str, Message, Reply], None],
    ) -> None:
        self.timeline = timeline
        self.chronicle = chronicle
        self.rng = rng
        self.is_up = True
        self.crash_next: str = ""
        self.clock_offset_s = 0.0
        self.flushes = 0
        self.on_restart: Callable[[], None] = lambda: None
        self.restart_after_s = 1.0
        self._settings = GridSettings(lease_s=lease_s)
        self._shelf = shelf
        self._observe = observe
        self._queue: list[_Asked] = []
        self._gathering = False
        self._folder = Path(tempfile.mkdtemp(prefix="officegrid-sim-", dir=fast_folder()))
        self._lives = 0
        shutil.copy(_empty_database(), self._path())
        self.grid = self._new_grid()
        self.storage = SqliteStorage(self._path())
        self._plan_upkeep()

    def now(self) -> float:
        """The coordinator's clock."""
        return EPOCH_S + self.timeline.now + self.clock_offset_s

    def _path(self) -> Path:
        return self._folder / f"life-{self._lives}.db"

    def _new_grid(self) -> Grid:
        return Grid(
            new_id=lambda: f"{self.rng.getrandbits(96):024x}",
            read_object=self._shelf.read,
            settings=self._settings,
        )

    def close(self) -> None:
        self.storage.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- requests

    def receive(self, machine_id: str, message: Message, answer: Callable[[Reply], None]) -> None:
        """A message arrives. It waits for the others that come while the last group is saved."""
        if not self.is_up:
            return
        self._queue.append(_Asked(machine_id, message, answer))
        if not self._gathering:
            self._gathering = True
            life = self._lives
            self.timeline.after(GATHER_S, lambda: self._flush(life))

    def _flush(self, life: int) -> None:
        if life != self._lives or not self.is_up:
            return
        self._gathering = False
        group, self._queue = self._queue, []
        crash, self.crash_next = self.crash_next, ""
        operations: list[Callable[[Tx], Any]] = [self._operation(asked) for asked in group]
        if crash == "before commit":
            self._crash_inside(operations)
            return
        self.flushes += 1
        for asked, done in zip(group, self.storage.write_many(operations), strict=True):
            reply = self._reply(done)
            self._observe(asked.machine_id, asked.message, reply)
            if not crash:
                asked.answer(reply)
        if crash:
            self._take_files()
            self._go_down()

    def _operation(self, asked: _Asked) -> Callable[[Tx], Any]:
        return lambda tx: self._serve(tx, asked.machine_id, asked.message)

    def _serve(self, tx: Tx, machine_id: str, message: Message) -> Reply:
        machine = self._fresh(tx, machine_id)
        grid, now = self.grid, self.now()
        if isinstance(message, ClaimRequest):
            return claims.claim(grid, tx, machine, message, now)
        if isinstance(message, RenewRequest):
            return commits.renew(grid, tx, machine, message, now)
        if isinstance(message, CommitRequest):
            return commits.commit(grid, tx, machine, message, now)
        if isinstance(message, ReleaseRequest):
            return returns.release(grid, tx, machine, message, now)
        return desks.report(grid, tx, machine, message, now)

    @staticmethod
    def _fresh(tx: Tx, machine_id: str) -> Machine:
        found = tx.machine(machine_id)
        if found is None or found.revoked:
            raise AuthError("This machine's access was revoked.")
        return found

    @staticmethod
    def _reply(done: Done) -> Reply:
        error = done.error
        if error is None:
            reply: Reply = done.value
            return reply
        if isinstance(error, OfficeGridError) and not isinstance(error, InternalError):
            return error
        raise Violation(f"The coordinator made a mistake: {error!r}: {error}") from error

    def write(self, operation: Callable[[Tx], T]) -> T:
        """A durable operation by a person. Raises what the operation raises."""
        done = self.storage.write_many([operation])[0]
        if isinstance(done.error, InternalError) or (
            done.error is not None and not isinstance(done.error, OfficeGridError)
        ):
            raise Violation(f"The coordinator made a mistake: {done.error!r}") from done.error
        if done.error is not None:
            raise done.error
        value: T = done.value
        return value

    # --- upkeep

    def _plan_upkeep(self) -> None:
        life = self._lives
        self.timeline.after(UPKEEP_S, lambda: self._upkeep(life))

    def _upkeep(self, life: int) -> None:
        if life != self._lives or not self.is_up:
            return

        def tick(tx: Tx) -> int:
            taken_back = returns.expire(self.grid, tx, self.now())
            lifecycle.start_scheduled(self.grid, tx, self.now())
            return taken_back

        taken_back = self.write(tick)
        if taken_back:
            self.chronicle.note(f"upkeep: {taken_back} units expired")
        self._plan_upkeep()

    # --- crashes

    def _take_files(self) -> None:
        """Copy the database as it lies on disk at this moment to the next life's place."""
        old = self._path()
        new = self._folder / f"life-{self._lives + 1}.db"
        for suffix in ("", "-wal"):
            source = old.with_name(old.name + suffix)
            if source.exists():
                shutil.copy(source, new.with_name(new.name + suffix))

    def _crash_inside(self, operations: list[Callable[[Tx], Any]]) -> None:
        def power_cut(tx: Tx) -> None:
            self._take_files()
            raise _PowerCut

        try:
            self.storage.write_many([*operations, power_cut])
        except _PowerCut:
            self._go_down()

    def crash(self) -> None:
        """The process is killed between two groups."""
        if self.is_up:
            self._take_files()
            self._go_down()

    def _go_down(self) -> None:
        self.chronicle.note(f"the coordinator crashes for {self.restart_after_s:.1f} s")
        self.is_up = False
        self.storage.close()
        self._queue.clear()
        self._gathering = False
        self.timeline.after(self.restart_after_s, self._start_again)

    def _start_again(self) -> None:
        self._lives += 1
        self.storage = SqliteStorage(self._path())
        self.grid = self._new_grid()
        self.is_up = True
        self.chronicle.note("the coordinator is back")
        self.on_restart()
        self._plan_upkeep()
