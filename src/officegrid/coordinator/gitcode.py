"""Code straight from git: resolved when a job is submitted, and again every `[git] every`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from officegrid.coordinator.aside import Threads
from officegrid.coordinator.gitfetch import Repositories
from officegrid.coordinator.log import get_logger
from officegrid.coordinator.publish import keep, keep_later, prepare_code
from officegrid.coordinator.service import gitcode
from officegrid.coordinator.service.gitcode import GitState
from officegrid.core.errors import ForbiddenError, OfficeGridError
from officegrid.storage.api import Tx, Version
from officegrid.wire.gitref import GitAddress

if TYPE_CHECKING:
    from officegrid.coordinator.state import Coordinator

log = get_logger("git")

AT_ONCE = 4
MOST_PACKED_BYTES = 640 * 1024 * 1024
BY = "the coordinator"


class GitCode:
    """Git runs on threads of its own: a server that hangs holds up nothing else."""

    def __init__(self, here: Coordinator) -> None:
        self._here = here
        self.repositories = Repositories(here.folder / "git")
        self._threads = Threads("git", AT_ONCE)

    async def push(self, address: GitAddress, by: str) -> tuple[Version, bool, list[str]]:
        """Resolve, fetch what is new, make it a version. (version, is it new, who switched).

        Raises ForbiddenError (not an allowed address), NotFoundError (no such branch or folder),
        UnavailableError, InputError, LimitError."""
        self._check_allowed(address)
        here = self._here
        state = await here.read(lambda tx: gitcode.state_of(tx, address.name))
        commit = await self._threads.run(lambda: self.repositories.commit_of(address))
        digest = None
        known = await here.read(
            lambda tx: gitcode.is_newest(tx, state, address.name, commit) is not None
        )
        prepared = None
        if not known:
            commit, digest = await self._threads.run(lambda: self._stored(address))
            prepared = await prepare_code(here, address.name, digest)

        def write(tx: Tx) -> tuple[Version, bool, list[str]]:
            if prepared is not None:
                keep(tx, prepared.archive, prepared.delta)
            return gitcode.took(here.grid, tx, address, commit, digest, by, here.clock())

        took = await here.write(write)
        keep_later(here, prepared)
        return took

    def _check_allowed(self, address: GitAddress) -> None:
        if not address.allowed_by(self._here.config.git.allow):
            raise ForbiddenError(
                f"{address.bare_url} is not an address that code may come from.",
                "The coordinator fetches only from where its admin allows it.",
                "The grid admin adds the beginning of the address to `allow` in [git] of "
                "coordinator.toml.",
            )

    def _stored(self, address: GitAddress) -> tuple[str, str]:
        """(commit, digest of its bundle, which is in the store)."""
        commit, bundle = self.repositories.bundle_of(address)
        self._here.objects.put(bundle.sha256, [bundle.payload], max_bytes=MOST_PACKED_BYTES)
        return commit, bundle.sha256

    async def refresh(self) -> None:
        """Look after every address that is in use. What fails is told once; jobs go on."""
        names = await self._here.read(gitcode.live)
        turns = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._refresh(name, one, turns) for name, one in names.items()))

    async def _refresh(self, name: str, state: GitState, turns: asyncio.Semaphore) -> None:
        async with turns:
            if self._here.stopping.is_set():
                return
            try:
                version, new, switched = await self.push(state.address, BY)
            except OfficeGridError as error:
                words = " ".join(part for part in (error.what, error.why) if part).rstrip(".")
                if await self._here.write(partial(self._failed, name, words)):
                    log.warning("cannot_be_fetched", address=state.address.shown, why=words)
                return
        if state.trouble:
            log.info("can_be_fetched_again", address=state.address.shown)
        if new:
            log.info("new_version", name=name, n=version.n, origin=version.origin,
                     switched_jobs=switched)  # fmt: skip

    def _failed(self, name: str, words: str, tx: Tx) -> bool:
        return gitcode.failed(tx, name, words, self._here.clock())

    def close(self) -> None:
        """Start nothing more. What runs ends by itself, within its deadline."""
        self._threads.close()
