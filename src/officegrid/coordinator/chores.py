"""What the coordinator does by itself that takes its time: cleaning up once a day.

Apart from upkeep, whose every second counts for units whose workers are silent.
"""

from __future__ import annotations

import asyncio
import json

from officegrid.coordinator.log import get_logger
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import OfficeGridError
from officegrid.storage.api import Tx
from officegrid.wire.keeping import CleanReply

log = get_logger("chores")

CLEAN_EVERY_S = 24 * 3600.0
FIRST_LOOK_S = 600.0
LOOK_EVERY_S = 60.0
AGAIN_AFTER_FAILURE_S = 3600.0
CLEANED = "cleaned"  # the setting that says when and how the last one went


async def run(here: Coordinator) -> None:
    """Until stopped. An error is logged and does not end the loop."""
    not_before = asyncio.get_running_loop().time() + FIRST_LOOK_S
    while not await _stopped(here, LOOK_EVERY_S):
        if asyncio.get_running_loop().time() < not_before:
            continue
        try:
            if await here.read(lambda tx: clean_is_due(tx, here.clock())):
                await clean(here)
        except OfficeGridError as error:
            log.error("failing", what=error.what, why=error.why)
            not_before = asyncio.get_running_loop().time() + AGAIN_AFTER_FAILURE_S
        except Exception as error:  # a bug in one chore must not end the others
            log.error("unexpected_error", error=repr(error), exc_info=error)
            not_before = asyncio.get_running_loop().time() + AGAIN_AFTER_FAILURE_S


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
        went = {"versions": len(reply.versions), "inputs": reply.datasets, "objects": reply.objects}
        noted = json.dumps({"at": here.clock(), **went, "bytes": reply.bytes})
        await here.write(lambda tx: tx.put_setting(CLEANED, noted))
        log.info("cleaned_up", **went, bytes=reply.bytes, seconds=reply.took_s)
    return reply
