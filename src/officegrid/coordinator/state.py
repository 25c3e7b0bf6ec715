"""The running coordinator: its parts in one place, and the door to the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from officegrid.coordinator.aside import Tasks
from officegrid.coordinator.cleaning import Cleaner
from officegrid.coordinator.config import CoordinatorConfig
from officegrid.coordinator.deltas import DeltaMaker
from officegrid.coordinator.gitcode import GitCode
from officegrid.coordinator.objects import ObjectStore
from officegrid.coordinator.peers import Peers
from officegrid.coordinator.pki import Pki
from officegrid.coordinator.readcache import ReadCache
from officegrid.coordinator.service.context import Grid
from officegrid.coordinator.tokens import hash_token
from officegrid.coordinator.writer import Writer
from officegrid.core.errors import AuthError, ForbiddenError
from officegrid.core.roles import allows, role_with
from officegrid.storage.api import Machine, Storage, Tx

T = TypeVar("T")

CALLER_CACHED_S = 5.0


class WorkSignal:
    """Wakes waiting claims when work may have appeared."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._seen = 0

    def check(self, version: int) -> None:
        """Wake everybody if `version` moved on. Call on the event loop's thread."""
        if version != self._seen:
            self._seen = version
            self._event.set()
            self._event = asyncio.Event()

    async def wait(self, timeout_s: float, since: int) -> bool:
        """True when woken, or when something newer than version `since` has happened already;
        False after `timeout_s`."""
        if self._seen > since:
            return True
        event = self._event
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


@dataclass
class Coordinator:
    storage: Storage
    writer: Writer
    objects: ObjectStore
    grid: Grid
    pki: Pki
    deltas: DeltaMaker
    read_cache: ReadCache
    folder: Path
    """Its data folder."""
    config: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    refreshing: set[str] = field(default_factory=set)
    """Data sets whose source is being looked at."""
    clock: Callable[[], float] = time.time
    renew_certificate: Callable[[], None] = lambda: None
    """Called hourly: issues a new server certificate when the old one gets old, and serves it."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: Tasks = field(default_factory=Tasks)
    """What goes on when a request has been answered."""
    work: WorkSignal = field(default_factory=WorkSignal)
    cleaner: Cleaner = field(init=False)
    git: GitCode = field(init=False)
    peers: Peers = field(init=False)
    _callers: dict[str, tuple[float, Machine]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cleaner = Cleaner(
            self.storage, self.writer, self.objects, self.config.keep, self.clock,
            self.stopping.is_set,
        )  # fmt: skip
        self.git = GitCode(self)
        self.peers = Peers(self.config.peers, self.clock)

    async def write(self, operation: Callable[[Tx], T]) -> T:
        """Run in the next group commit; returns when it is on disk."""
        try:
            return await self.writer.run(operation)
        finally:
            self.work.check(self.grid.work_version)

    async def read(self, operation: Callable[[Tx], T]) -> T:
        return await run_in_threadpool(self.storage.read, operation)

    async def caller(self, authorization: str | None, permission: str) -> Machine:
        """Who is asking, if allowed to. Raises AuthError, ForbiddenError."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise AuthError(
                "This request carries no credentials.",
                fix="Join first: `officegrid join URL --code CODE`.",
            )
        machine = await self._machine_of(hash_token(token.strip()))
        if not allows(machine.role, permission):
            raise ForbiddenError(
                f"{machine.name} joined as {machine.role} and may not do this.",
                f"It needs the permission '{permission}'.",
                "Ask the grid admin for a code made by "
                f"`officegrid join-code --role {role_with(permission)}`.",
            )
        return machine

    async def _machine_of(self, token_hash: str) -> Machine:
        now = self.clock()
        cached = self._callers.get(token_hash)
        if cached is not None and 0 <= now - cached[0] < CALLER_CACHED_S:
            return cached[1]
        machine = await self.read(lambda tx: tx.machine_by_token(token_hash))
        if machine is None or machine.revoked:
            self._callers.pop(token_hash, None)
            raise AuthError(
                "The coordinator does not know this machine's token.",
                "It was revoked, or the machine joined another grid.",
                "Join again with a new code: `officegrid join URL --code CODE`.",
            )
        if len(self._callers) > 20_000:
            self._callers.clear()
        self._callers[token_hash] = (now, machine)
        return machine

    def forget_callers(self) -> None:
        """After a revocation: look tokens up again."""
        self._callers.clear()
