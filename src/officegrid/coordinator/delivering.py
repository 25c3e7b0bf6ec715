"""Puts finished output into tables, beside everything else: a few at the same time, and one into
each database, so that one that is silent holds up only its own jobs.

Whatever happens in the middle, a table is what it was or holds all records: see `data.sql.deliver`.
So a delivery that was cut off is simply made again, under the same id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial

from officegrid.coordinator.aside import Crew, Threads
from officegrid.coordinator.log import get_logger
from officegrid.coordinator.service import deliveries, output
from officegrid.coordinator.sources import (
    AT_ONCE,
    LOOK_EVERY_S,
    RETRIES_S,
    check_source,
    source_of,
    target_of,
)
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import OfficeGridError, UnavailableError
from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.deliver import deliver
from officegrid.storage.api import Delivery, Job, Tx
from officegrid.wire.data import BlockSlice, Layout

log = get_logger("deliver")


async def run(here: Coordinator) -> None:
    """Until stopped. Never raises."""
    not_before: dict[str, float] = {}
    threads = Threads("deliver", AT_ONCE)
    async with Crew(AT_ONCE) as crew:
        while not here.stopping.is_set():
            try:
                for delivery, job in await here.read(_pending):
                    late = time.monotonic() >= not_before.get(job.id, 0.0)
                    if late and not here.stopping.is_set():
                        work = partial(_one, here, threads, job, delivery, not_before)
                        crew.start(deliveries.table_of(job).source, work)
            except Exception as error:  # a fault over one job must not end the others
                log.error("unexpected_error", error=repr(error), exc_info=error)
            try:
                await asyncio.wait_for(here.stopping.wait(), LOOK_EVERY_S)
            except TimeoutError:
                continue


def _pending(tx: Tx) -> list[tuple[Delivery, Job]]:
    found = [(one, tx.job(one.job)) for one in deliveries.pending(tx)]
    return [(one, job) for one, job in found if job is not None]


async def _one(
    here: Coordinator, threads: Threads, job: Job, delivery: Delivery, not_before: dict[str, float]
) -> None:
    """Try, and note when it may be tried again."""
    now = await here.read(lambda tx: tx.delivery(job.id, delivery.generation))
    if now is None or now.state != "pending":
        return  # done since the list was made
    delivery = now
    own_id = await here.write(lambda tx: deliveries.delivery_id(here.grid, tx, delivery))
    try:
        rows = await threads.run(lambda: _deliver(here, job, delivery, own_id))
    except Exception as error:
        if here.stopping.is_set():
            return  # no fault of the table: tried again when the coordinator is back
        words, passing = f"{type(error).__name__}: {error}", False
        if isinstance(error, OfficeGridError):
            words = f"{error.what} {error.why}".strip().rstrip(".")
            passing = isinstance(error, UnavailableError)
        again = passing and delivery.attempts < len(RETRIES_S)
        log.warning("not_delivered", job=job.id, why=words, again=again)
        if again:
            not_before[job.id] = time.monotonic() + RETRIES_S[delivery.attempts]
        await here.write(
            lambda tx: deliveries.failed(tx, job, delivery, words, here.clock(), final=not again)
        )
        return
    await here.write(lambda tx: deliveries.delivered(tx, job, delivery, rows, here.clock()))
    log.info("delivered", job=job.id, records=rows)


def _deliver(here: Coordinator, job: Job, delivery: Delivery, own_id: str) -> int:
    table = deliveries.table_of(job)
    check_source(here.config, table.source, writing=True)

    def look(tx: Tx) -> tuple[Layout, list[str] | None, list[BlockSlice], str]:
        slices = list(deliveries.slices_to_deliver(tx, job, delivery))
        mode = deliveries.mode_of(tx, job, delivery)
        return output.layout_of(tx, job), output.columns_of(tx, job), slices, mode

    layout, columns, slices, mode = here.storage.read(look)
    target = target_of(table, mode, columns)  # type: ignore[arg-type]
    done = deliver(
        source_of(here.config, table.source), target, layout, _pieces(here, slices), own_id
    )
    return done.records


def _pieces(here: Coordinator, slices: list[BlockSlice]) -> Iterator[OutputPiece]:
    for one in slices:
        if here.stopping.is_set():
            raise UnavailableError("The coordinator is stopping.")
        yield OutputPiece(here.grid.read_object(one), one.columns, checked_records=one.records)
