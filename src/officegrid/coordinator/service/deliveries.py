"""Output on its way into a table: noted when a job finishes, done by the deliverer.

A delivery belongs to one generation of a job. What a retry brings is a delivery of its own: into
a table that rows are appended to, only the records that were retried; else the whole output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from officegrid.coordinator.service import output
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core.errors import ConflictError
from officegrid.storage.api import Delivery, Job, Tx
from officegrid.wire.data import BlockSlice
from officegrid.wire.sql import DeliveryView, TableOutput

GRID_ID = "grid_id"
ONLY_NEW = ("create", "append")  # modes whose later generations add to what the first one made


def note_finished(tx: Tx, job: Job, now: float) -> None:
    """Its output is to be delivered, if its file names a table."""
    if spec_of(job).table is not None:
        tx.put_delivery(Delivery(job.id, job.generation, "pending", at=now))


def pending(tx: Tx) -> list[Delivery]:
    return tx.deliveries(["pending"])


def delivery_id(grid: Grid, tx: Tx, delivery: Delivery) -> str:
    """Tells this delivery from those of all jobs of all grids that write to one database."""
    grid_id = tx.setting(GRID_ID)
    if grid_id is None:
        grid_id = grid.new_id()
        tx.put_setting(GRID_ID, grid_id)
    return f"{grid_id}-{delivery.job}-{delivery.generation}"


def mode_of(table: TableOutput, delivery: Delivery) -> str:
    """What is made once is added to later."""
    return "append" if table.mode == "create" and delivery.generation else table.mode


def slices_to_deliver(tx: Tx, job: Job, delivery: Delivery) -> Iterator[BlockSlice]:
    """The blocks of the records that this delivery brings, in their order."""
    table = spec_of(job).table
    assert table is not None
    if delivery.generation and table.mode in ONLY_NEW:
        for part in tx.retried_parts(job.id, 0, job.total):
            if part.generation == delivery.generation:
                yield from part.blocks
        return
    for _, slices in output.slices(tx, job, start=0, stop=job.total):
        yield from slices


def delivered(tx: Tx, job: Job, delivery: Delivery, rows: int, now: float) -> None:
    done = replace(delivery, state="done", rows=rows, text="", at=now)
    tx.put_delivery(replace(done, attempts=delivery.attempts + 1))
    table = spec_of(job).table
    assert table is not None
    text = f"{rows:,} records are in table {table.table} of {table.source}"
    story(tx, now, job, "delivered", text)


def failed(tx: Tx, job: Job, delivery: Delivery, words: str, now: float, *, final: bool) -> None:
    state = "failed" if final else "pending"
    tx.put_delivery(
        replace(delivery, state=state, attempts=delivery.attempts + 1, text=words, at=now)
    )
    if final:
        story(tx, now, job, "not_delivered", f"the output could not be delivered: {words}")


def again(tx: Tx, job: Job, now: float) -> None:
    """Try once more what failed. Raises ConflictError when there is nothing to try."""
    known = tx.delivery(job.id, job.generation)
    if known is None or known.state != "failed":
        raise ConflictError(
            f"There is no failed delivery of {job.id}.", fix=f"See `officegrid job {job.id}`."
        )
    tx.put_delivery(replace(known, state="pending", text="", at=now))
    story(tx, now, job, "deliver", "the output is delivered again")


def view(tx: Tx, job: Job) -> DeliveryView | None:
    table = spec_of(job).table
    known = None if table is None else tx.delivery(job.id, job.generation)
    if table is None or known is None:
        return None
    return DeliveryView.model_validate(
        {
            "state": known.state, "source": table.source, "table": table.table,
            "mode": table.mode, "rows": known.rows, "attempts": known.attempts,
            "text": known.text, "at": known.at,
        }
    )  # fmt: skip
