"""What the coordinator does by itself: take back silent units, start what is due, tidy up."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from officegrid.coordinator.log import get_logger
from officegrid.coordinator.service import images, lifecycle, returns
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import OfficeGridError
from officegrid.core.freeze import FreezeDetector
from officegrid.core.ledger import late_leases
from officegrid.storage.api import Tx

log = get_logger("upkeep")

TICK_S = 1.0
ROLLOUT_EVERY_TICKS = 60
SWEEP_EVERY_TICKS = 3600
TEMP_KEPT_S = 24 * 3600.0


async def run(here: Coordinator) -> None:
    """Until stopped. An error is logged and does not end the loop."""
    tick = 0
    failing = False
    # While the coordinator was away nobody could renew: that is no machine's fault, so each gets
    # the time of one lease to report back.
    patient_until = here.clock() + here.grid.settings.lease_s
    jumps = FreezeDetector(TICK_S)
    while not here.stopping.is_set():
        jumped_s = jumps.tick(here.clock(), time.monotonic())
        if failing or jumped_s is not None:  # nobody could renew, or the deadlines are off
            patient_until = here.clock() + here.grid.settings.lease_s
        if jumped_s is not None:
            log.warning("clock_jumped_or_stalled", seconds=round(jumped_s))
        try:
            patient = here.clock() < patient_until
            await here.write(partial(_take_back, here, patient))
            # Apart, so that a fault in one does not undo the other.
            await here.write(partial(_start_due, here))
            if here.grid.image_news or tick % ROLLOUT_EVERY_TICKS == 0:
                await _roll_out(here)
            if tick % SWEEP_EVERY_TICKS == 0:
                await asyncio.to_thread(here.objects.sweep_temp, TEMP_KEPT_S, here.clock())
                await asyncio.to_thread(here.renew_certificate)
            if failing:
                log.info("recovered")
            failing = False
        except OfficeGridError as error:
            if not failing:  # once per failure, not once per second
                log.error("failing", what=error.what, why=error.why)
            failing = True
        except Exception as error:  # upkeep must outlive any bug in one tick
            log.error("unexpected_error", error=repr(error), exc_info=error)
        tick += 1
        try:
            await asyncio.wait_for(here.stopping.wait(), TICK_S)
        except TimeoutError:
            continue


def _start_due(here: Coordinator, tx: Tx) -> None:
    started = lifecycle.start_scheduled(here.grid, tx, here.clock())
    if started:
        log.info("scheduled", runs_started=started)


async def _roll_out(here: Coordinator) -> None:
    """Looking reads every desktop, so it is done beside the writer, which is asked only when there
    is something to change."""
    here.grid.image_news = max(0, here.grid.image_news - 1)
    if await here.read(lambda tx: images.steps(tx, here.clock())):
        for line in await here.write(lambda tx: images.advance(here.grid, tx, here.clock())):
            log.info("image_rollout", what=line)


def _take_back(here: Coordinator, patient: bool, tx: Tx) -> None:
    """`patient`: no unit is taken back yet."""
    now = here.clock()
    expired = 0 if patient else returns.expire(here.grid, tx, now)
    if expired:
        log.info("expired", units_taken_back=expired)
    for job in tx.claimable_jobs():
        if job.pending == 0 and late_leases(
            tx.ledger(job.id), now=now, silent_s=here.grid.settings.silent_s
        ):
            here.grid.work_appeared()  # idle workers may duplicate the late units
            break
