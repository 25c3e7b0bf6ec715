"""What the coordinator does by itself that takes its time: cleaning up once a day, and
looking after code in git.

Apart from upkeep, whose every second counts for units whose workers are silent.
"""

from __future__ import annotations

import asyncio
import json

from officegrid.coordinator.log import get_logger
from officegrid.coordinator.service import gitcode
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import OfficeGridError
from officegrid.storage.api import Tx
from officegrid.wire.keeping import CleanReply

log = get_logger("chores")

CLEAN_EVERY_S = 24 * 3600.0
FIRST_LOOK_S = 600.0
LOOK_EVERY_S = 60.0
AGAIN_AFTER_FAILURE_S = 3600.0
GIT_KEPT_S = 7 * 24 * 3600.0
CLEANED = "cleaned"  # the setting that says when and how the last one went


async def run(here: Coordinator) -> None:
    """Until stopped. An error is logged and does not end the loops."""
    await asyncio.gather(_clean_daily(here), _look_after_git(here))


async def _clean_daily(here: Coordinator) -> None:
    time = asyncio.get_running_loop().time
    not_before = time() + FIRST_LOOK_S
    while not await _stopped(here, LOOK_EVERY_S):
        if time() < not_before:
            continue
        try:
            if await here.read(lambda tx: clean_is_due(tx, here.clock())):
                await clean(here)
        except Exception as error:  # a bug in one chore must not end the others
            _tell(error)
            not_before = time() + AGAIN_AFTER_FAILURE_S


async def _look_after_git(here: Coordinator) -> None:
    while not await _stopped(here, here.config.git.every):
        try:
            await here.git.refresh()
        except Exception as error:
            _tell(error)


def _tell(error: Exception) -> None:
    if isinstance(error, OfficeGridError):
        log.error("failing", what=error.what, why=error.why)
    else:
        log.error("unexpected_error", error=repr(error), exc_info=error)


async def _stopped(here: Coordinator, within_s: float) -> bool:
    try:
        await asyncio.wait_for(here.stopping.wait(), within_s)
    except TimeoutError:
        return False
    return True


def clean_is_due(tx: Tx, now: float) -> bool:
    """A day after the last one. One in the future is that of a clock that was set back since."""
    last = json.loads(tx.setting(CLEANED) or "{}").get("at")
    return last is None or not 0 <= now - last < CLEAN_EVERY_S


async def clean(here: Coordinator, *, dry_run: bool = False) -> CleanReply:
    """Raises OfficeGridError."""
    reply = await asyncio.to_thread(here.cleaner.run, dry_run=dry_run)
    if not dry_run:
        went = {
            "jobs": len(reply.jobs),
            "versions": len(reply.versions),
            "inputs": reply.datasets,
            "objects": reply.objects,
        }
        noted = json.dumps({"at": here.clock(), **went, "bytes": reply.bytes})
        await here.write(lambda tx: tx.put_setting(CLEANED, noted))
        used = [one.address for one in (await here.read(gitcode.live)).values()]
        await asyncio.to_thread(here.git.repositories.sweep, used, GIT_KEPT_S)
        log.info("cleaned_up", **went, bytes=reply.bytes, seconds=reply.took_s)
    return reply
