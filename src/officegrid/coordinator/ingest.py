"""Reads the input of jobs from databases, beside everything else.

A few at the same time, one of each database: one that is silent holds up only its own jobs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, field
from functools import partial

from officegrid.coordinator.aside import Crew, Threads
from officegrid.coordinator.log import get_logger
from officegrid.coordinator.service import inputs
from officegrid.coordinator.service.units import spec_of
from officegrid.coordinator.sources import AT_ONCE, LOOK_EVERY_S, RETRIES_S, source_of
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import InternalError, OfficeGridError, UnavailableError
from officegrid.core.jobs import JobState
from officegrid.data.blocks import pack_block
from officegrid.data.sql.columns import Column, schema_change
from officegrid.data.sql.reading import SqlInput, read_query
from officegrid.storage.api import Job, Tx
from officegrid.wire.data import BlockSlice, DatasetSpec
from officegrid.wire.sql import QueryInput

log = get_logger("ingest")


@dataclass
class _Tries:
    """How often a job's input could not be read, and when it is tried next (monotonic)."""

    count: int = 0
    next_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Read:
    """`refused`: what is different from the last run and not accepted, in words; then no spec."""

    columns: inputs.Columns
    spec: DatasetSpec | None = None
    warnings: list[str] = field(default_factory=list)
    refused: str = ""


async def run(here: Coordinator) -> None:
    """Until stopped. Never raises."""
    tries: dict[str, _Tries] = {}
    threads = Threads("ingest", AT_ONCE)
    async with Crew(AT_ONCE) as crew:
        while not here.stopping.is_set():
            try:
                for job in await here.read(inputs.to_read):
                    known = tries.setdefault(job.id, _Tries())
                    if time.monotonic() >= known.next_s and not here.stopping.is_set():
                        crew.start(_query(job).source, partial(_one, here, threads, job, known))
            except Exception as error:  # a fault over one job must not end the others
                log.error("unexpected_error", error=repr(error), exc_info=error)
            try:
                await asyncio.wait_for(here.stopping.wait(), LOOK_EVERY_S)
            except TimeoutError:
                continue


def _query(job: Job) -> QueryInput:
    query = spec_of(job).query
    assert query is not None
    return query


async def _one(here: Coordinator, threads: Threads, job: Job, tries: _Tries) -> None:
    if not await here.read(lambda tx: _is_wanted(tx, job)):
        return  # done or cancelled since the list was made
    try:
        found = await threads.run(lambda: _read(here, job))
    except Exception as error:
        if here.stopping.is_set():
            return  # no fault of the source: read again when the coordinator is back
        words = _told(error)
        again = isinstance(error, UnavailableError) and tries.count < len(RETRIES_S)
        pause_s = RETRIES_S[tries.count] if again else None
        log.warning("input_failed", job=job.id, why=words)
        tries.count = tries.count + 1 if again else 0
        tries.next_s = time.monotonic() + (pause_s or 0.0)
        await here.write(lambda tx: inputs.failed(tx, job, words, here.clock(), again_in_s=pause_s))
        return
    tries.count = 0
    await here.write(lambda tx: _note(here, tx, job, found))
    if found.spec is not None:
        log.info("input_read", job=job.id, records=found.spec.records)


def _is_wanted(tx: Tx, job: Job) -> bool:
    found = tx.job(job.id)
    return found is not None and found.state is JobState.WAITING and found.dataset is None


def _told(error: Exception) -> str:
    """What is wrong, for people. The text of an error that is not ours may hold a password."""
    if isinstance(error, OfficeGridError):
        return f"{error.what} {error.why}".strip().rstrip(".")
    log.error("unexpected_error", error=type(error).__name__, exc_info=error)
    return f"unexpected {type(error).__name__}; the coordinator's log has more of it"


def _note(here: Coordinator, tx: Tx, job: Job, found: _Read) -> None:
    if found.spec is None:
        inputs.refuse(tx, job, found.columns, found.refused, here.clock())
        return
    inputs.arrived(here.grid, tx, job, found.spec, found.columns, found.warnings, here.clock())


def _read(here: Coordinator, job: Job) -> _Read:
    """All records in the store, unless other columns are refused. For a thread."""
    query = _query(job)
    with read_query(
        source_of(here.config, query.source), sql=query.sql, table=query.table,
        format=query.format, null=query.null, max_record_bytes=query.max_record_bytes,
    ) as source:  # fmt: skip
        columns = [asdict(column) for column in source.columns]
        change = here.storage.read(lambda tx: _change(tx, job, query, source.columns, columns))
        if change:
            return _Read(columns, refused=change)
        return _store(here, source, columns)


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
    return _Read(columns, spec, list(source.warnings))
