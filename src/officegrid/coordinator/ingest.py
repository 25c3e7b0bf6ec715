"""Reads the input of jobs from databases, one job after the other, beside everything else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field

from starlette.concurrency import run_in_threadpool

from officegrid.coordinator.log import get_logger
from officegrid.coordinator.service import inputs
from officegrid.coordinator.service.units import spec_of
from officegrid.coordinator.sources import source_of
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import InternalError, OfficeGridError, UnavailableError
from officegrid.data.blocks import pack_block
from officegrid.data.sql.columns import Column, schema_change
from officegrid.data.sql.reading import SqlInput, read_query
from officegrid.storage.api import Job, Tx
from officegrid.wire.data import BlockSlice, DatasetSpec
from officegrid.wire.sql import QueryInput

log = get_logger("ingest")

LOOK_EVERY_S = 0.5
RETRIES_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 300.0)


@dataclass
class _Tries:
    """How often a job's input could not be read, and when it is tried next (monotonic)."""

    count: int = 0
    next_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Read:
    spec: DatasetSpec
    columns: inputs.Columns
    warnings: list[str] = field(default_factory=list)


async def run(here: Coordinator) -> None:
    """Until stopped. Never raises."""
    tries: dict[str, _Tries] = {}
    while not here.stopping.is_set():
        try:
            for job in await here.read(inputs.to_read):
                if not here.stopping.is_set():
                    await _one(here, job, tries.setdefault(job.id, _Tries()))
        except Exception as error:  # a fault over one job must not end the others
            log.error("unexpected_error", error=repr(error), exc_info=error)
        try:
            await asyncio.wait_for(here.stopping.wait(), LOOK_EVERY_S)
        except TimeoutError:
            continue


async def _one(here: Coordinator, job: Job, tries: _Tries) -> None:
    if time.monotonic() < tries.next_s:
        return
    query = spec_of(job).query
    assert query is not None
    try:
        await _read_into(here, job, query)
        tries.count = 0
    except OfficeGridError as error:
        words = f"{error.what} {error.why}".strip().rstrip(".")
        again = isinstance(error, UnavailableError) and tries.count < len(RETRIES_S)
        pause_s = RETRIES_S[tries.count] if again else None
        log.warning("input_failed", job=job.id, what=error.what, why=error.why)
        tries.count = tries.count + 1 if again else 0
        tries.next_s = time.monotonic() + (pause_s or 0.0)
        await here.write(lambda tx: inputs.failed(tx, job, words, here.clock(), again_in_s=pause_s))


async def _read_into(here: Coordinator, job: Job, query: QueryInput) -> None:
    source = await run_in_threadpool(_open, here, query)
    try:
        columns = [asdict(column) for column in source.columns]
        change = await here.read(lambda tx: _change(tx, job, query, source.columns, columns))
        if change:
            await here.write(lambda tx: inputs.refuse(tx, job, columns, change, here.clock()))
            return
        found = await run_in_threadpool(_store, here, source, columns)
    finally:
        await run_in_threadpool(source.close)
    await here.write(
        lambda tx: inputs.arrived(
            here.grid, tx, job, found.spec, found.columns, found.warnings, here.clock()
        )
    )
    log.info("input_read", job=job.id, records=found.spec.records)


def _open(here: Coordinator, query: QueryInput) -> SqlInput:
    return read_query(
        source_of(here.config, query.source), sql=query.sql, table=query.table,
        format=query.format, null=query.null, max_record_bytes=query.max_record_bytes,
    )  # fmt: skip


def _change(
    tx: Tx, job: Job, query: QueryInput, found: list[Column], columns: inputs.Columns
) -> str:
    """What is different from the last run and not accepted, in words."""
    before = inputs.last_columns(tx, job)
    if before is None or query.schema_change == "accept" or inputs.accepts(tx, job, columns):
        return ""
    return schema_change([Column(**one) for one in before], found)  # type: ignore[arg-type]


def _store(here: Coordinator, source: SqlInput, columns: inputs.Columns) -> _Read:
    """All records of one snapshot as blocks in the store, durably."""
    blocks: list[BlockSlice] = []
    for chunk in source.chunks():
        if here.stopping.is_set():
            raise UnavailableError("The coordinator is stopping.")
        packed = pack_block(chunk.data, chunk.records)
        here.objects.put(packed.slice.sha256, [packed.payload], max_bytes=len(packed.payload))
        blocks.append(packed.slice)
    if sum(block.records for block in blocks) != source.records:
        raise InternalError("The blocks do not hold all records that were read.")
    spec = DatasetSpec(
        layout=source.layout, records=source.records, source=source.title, blocks=blocks
    )
    return _Read(spec, columns, list(source.warnings))
