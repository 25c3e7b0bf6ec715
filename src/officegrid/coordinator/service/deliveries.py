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
    """Those that may be made now. Deliveries of one job are made in order: each adds to what the
    one before has made."""
    found, waiting = [], set()
    undone = tx.deliveries(["pending", "failed"])
    for one in sorted(undone, key=lambda one: one.generation):
        if one.job not in waiting and one.state == "pending":
            found.append(one)
        waiting.add(one.job)
    return sorted(found, key=lambda one: one.at)


def all_of(tx: Tx, job: Job) -> list[Delivery]:
    """The deliveries of a job, by generation."""
    known = (tx.delivery(job.id, number) for number in range(job.generation + 1))
    return [one for one in known if one is not None]


def _is_first(tx: Tx, job: Job, delivery: Delivery) -> bool:
    return all(one.generation >= delivery.generation for one in all_of(tx, job))


def _generations(tx: Tx, job: Job, delivery: Delivery, table: TableOutput) -> range:
    """What this delivery brings was committed in these: where rows are only added, what no delivery
    before it has brought. A job may be retried before it has ever finished, so that its first
    delivery is not that of generation 0."""
    before = -1
    if table.mode in ONLY_NEW:
        earlier = [one.generation for one in all_of(tx, job)]
        before = max((one for one in earlier if one < delivery.generation), default=-1)
    return range(before + 1, delivery.generation + 1)


def delivery_id(grid: Grid, tx: Tx, delivery: Delivery) -> str:
    """Tells this delivery from those of all jobs of all grids that write to one database."""
    grid_id = tx.setting(GRID_ID)
    if grid_id is None:
        grid_id = grid.new_id()
        tx.put_setting(GRID_ID, grid_id)
    return f"{grid_id}-{delivery.job}-{delivery.generation}"


def mode_of(tx: Tx, job: Job, delivery: Delivery) -> str:
    """What is made once is added to later."""
    table = table_of(job)
    made = table.mode == "create" and not _is_first(tx, job, delivery)
    return "append" if made else table.mode


def slices_to_deliver(tx: Tx, job: Job, delivery: Delivery) -> Iterator[BlockSlice]:
    """The blocks of the records that this delivery brings, in their order."""
    generations = _generations(tx, job, delivery, table_of(job))
    found = output.slices(tx, job, start=0, stop=job.total, generations=generations)
    for _, slices in found:
        yield from slices


def table_of(job: Job) -> TableOutput:
    table = spec_of(job).table
    assert table is not None
    return table


def delivered(tx: Tx, job: Job, delivery: Delivery, rows: int, now: float) -> None:
    attempts = delivery.attempts + 1
    tx.put_delivery(replace(delivery, state="done", rows=rows, text="", at=now, attempts=attempts))
    table = table_of(job)
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
    failures = [one for one in all_of(tx, job) if one.state == "failed"]
    if not failures:
        raise ConflictError(
            f"There is no failed delivery of {job.id}.", fix=f"See `officegrid job {job.id}`."
        )
    for one in failures:
        tx.put_delivery(replace(one, state="pending", attempts=0, text="", at=now))
    story(tx, now, job, "deliver", "the output is delivered again")


def why(tx: Tx, job: Job) -> list[str]:
    """Sentences about output that is not in its table yet."""
    shown = view(tx, job)
    if shown is None or shown.state == "done":
        return []
    place = f"{shown.source}.{shown.table}"
    words = shown.text.rstrip(".")
    if shown.state == "pending":
        return [f"Its output is on its way into {place}{f' ({words})' if words else ''}."]
    return [
        f"Its output is not in {place}: {words}.",
        f"When that is mended, `officegrid deliver {job.id}` puts it there.",
    ]


def view(tx: Tx, job: Job) -> DeliveryView | None:
    """The first delivery that is not made yet, else the last one."""
    known = [] if spec_of(job).table is None else all_of(tx, job)
    if not known:
        return None
    table = table_of(job)
    shown = next((one for one in known if one.state != "done"), known[-1])
    return DeliveryView.model_validate(
        {
            "state": shown.state, "source": table.source, "table": table.table,
            "mode": table.mode, "rows": sum(one.rows for one in known),
            "attempts": shown.attempts, "text": shown.text, "at": shown.at,
        }
    )  # fmt: skip
