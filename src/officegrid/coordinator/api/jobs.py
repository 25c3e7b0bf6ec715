"""Routes for people: submit jobs, follow and steer them, fetch output and quarantine."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Annotated

from cronsim import CronSim, CronSimError
from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from officegrid.coordinator.api.common import (
    ERRORS,
    Controller,
    Here,
    OutputReader,
    Reader,
    Submitter,
)
from officegrid.coordinator.publish import keep, keep_later, prepare_code
from officegrid.coordinator.service import deliveries, lifecycle, output, views
from officegrid.coordinator.sources import check_source, check_table
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import NotFoundError, UsageError
from officegrid.core.jobs import ENDED
from officegrid.core.quantities import parse_limit
from officegrid.core.roles import Permission, allows
from officegrid.storage.api import Job, Tx
from officegrid.wire.jobs import (
    EventView,
    HoldRequest,
    JobCheck,
    JobList,
    JobSpec,
    JobView,
    OutputHead,
    OutputPage,
    QuarantinePage,
    QuarantineRow,
    ReleaseJobRequest,
    RetryRequest,
    StoryReply,
    WhyReply,
)

router = APIRouter(prefix="/v1", tags=["jobs"], responses=ERRORS)

PAGE_SLICES = 500
PAGE_ROWS = 500
WATCH_EVERY_S = 0.5

Record = Annotated[int, Query(ge=0, le=2**62)]


@router.post("/jobs", status_code=201)
async def submit(here: Here, caller: Submitter, spec: JobSpec) -> JobView:
    """Create a job from an uploaded bundle and dataset."""
    await _check_spec(here, spec)
    prepared = await prepare_code(here, spec.name, spec.bundle) if spec.bundle else None

    def create(tx: Tx) -> JobView:
        if prepared is not None:
            keep(tx, prepared.archive, prepared.delta)
        job = lifecycle.create(here.grid, tx, spec, caller.name, here.clock())
        return views.job_view(here.grid, tx, job)

    view = await here.write(create)
    keep_later(here, prepared)
    return view


@router.post("/jobs/check")
async def check(here: Here, caller: Submitter, asked: JobCheck) -> JobCheck:
    """Would a job be taken that has these? For who is about to upload the rest of it."""
    _check(here, asked)
    return asked


def _check(here: Coordinator, asked: JobCheck) -> None:
    """What depends on no upload. Raises UsageError, ForbiddenError."""
    if asked.query is not None:
        check_source(here.config, asked.query.source)
        if (asked.query.sql is None) == (asked.query.table is None):
            raise UsageError("A query is exactly one of `sql` and `table`.")
    if asked.table is not None:
        check_table(here.config, asked.table)
    parse_limit(asked.policy.quarantine_limit)
    schedule = asked.policy.schedule
    if schedule is not None:
        from datetime import datetime

        try:
            next(CronSim(schedule, datetime.now().astimezone()))
        except (CronSimError, StopIteration):
            raise UsageError(
                f"schedule = {schedule!r} is not a cron line that ever comes.",
                fix='Write five fields: minute hour day month weekday, like "0 19 * * 1-5".',
            ) from None


async def _check_spec(here: Coordinator, spec: JobSpec) -> None:
    if (spec.program.python is None) == (spec.program.run is None):
        raise UsageError("A job's program is exactly one of `python` and `run`.")
    if sum(one is not None for one in (spec.dataset, spec.input_job, spec.query)) != 1:
        raise UsageError("A job's input is one of a dataset, another job's output and a query.")
    _check(here, JobCheck(policy=spec.policy, query=spec.query, table=spec.table))
    if spec.bundle is not None and here.objects.hold(spec.bundle) is None:
        raise NotFoundError("The job's bundle is not in the store.", fix="Upload it first.")


@router.get("/jobs")
async def jobs(
    here: Here, caller: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> JobList:
    """Newest first."""

    def read(tx: Tx) -> JobList:
        return JobList(jobs=[views.job_view(here.grid, tx, job) for job in tx.jobs(limit=limit)])

    return await here.read(read)


@router.get("/jobs/{job_id}")
async def job(here: Here, caller: Reader, job_id: str) -> JobView:
    view = await here.read(
        lambda tx: views.job_view(here.grid, tx, views.find_job(tx, job_id), with_spec=True)
    )
    if view.spec is not None and not allows(caller.role, Permission.READ_OUTPUT):
        # Programs' environments hold passwords. A copy: the spec is shared.
        program = view.spec["program"]
        hidden = {**program, "env": dict.fromkeys(program["env"], "(hidden)")}
        view.spec = {**view.spec, "program": hidden}
    return view


async def _steer(here: Coordinator, job_id: str, act: Callable[[Tx, Job, float], None]) -> JobView:
    def write(tx: Tx) -> JobView:
        found = views.find_job(tx, job_id)
        act(tx, found, here.clock())
        return views.job_view(here.grid, tx, views.find_job(tx, found.id))

    return await here.write(write)


@router.post("/jobs/{job_id}/cancel")
async def cancel(here: Here, caller: Controller, job_id: str) -> JobView:
    return await _steer(here, job_id, lambda tx, j, now: lifecycle.cancel(here.grid, tx, j, now))


@router.post("/jobs/{job_id}/hold")
async def hold(here: Here, caller: Controller, job_id: str, request: HoldRequest) -> JobView:
    reason = request.reason or f"by {caller.name}"
    return await _steer(here, job_id, lambda tx, j, now: lifecycle.hold(tx, j, reason, now))


@router.post("/jobs/{job_id}/release")
async def release(
    here: Here, caller: Controller, job_id: str, request: ReleaseJobRequest
) -> JobView:
    if request.quarantine_limit is not None:
        parse_limit(request.quarantine_limit)
    limit = request.quarantine_limit
    return await _steer(
        here, job_id, lambda tx, j, now: lifecycle.release_hold(here.grid, tx, j, limit, now)
    )


@router.post("/jobs/{job_id}/retry")
async def retry(here: Here, caller: Controller, job_id: str, request: RetryRequest) -> JobView:
    """Run the quarantined records again, with newer code if given."""
    if request.bundle is not None and here.objects.hold(request.bundle) is None:
        raise NotFoundError("The new bundle is not in the store.", fix="Upload it first.")

    before = await here.read(lambda tx: views.find_job(tx, job_id))
    name = before.spec["code"]["name"] if before.spec.get("code") else before.name
    prepared = await prepare_code(here, name, request.bundle) if request.bundle else None

    def act(tx: Tx, found: Job, now: float) -> None:
        if prepared is not None:
            keep(tx, prepared.archive, prepared.delta)
        lifecycle.retry(here.grid, tx, found, request, now)

    view = await _steer(here, job_id, act)
    keep_later(here, prepared)
    return view


@router.post("/jobs/{job_id}/deliver")
async def deliver(here: Here, caller: Controller, job_id: str) -> JobView:
    """Try a delivery into a table once more that failed."""
    return await _steer(here, job_id, deliveries.again)


@router.get("/jobs/{job_id}/output")
async def output_head(here: Here, caller: OutputReader, job_id: str) -> OutputHead:
    """What the output looks like, and how much of it is there from the start on."""

    def read(tx: Tx) -> OutputHead:
        found = views.find_job(tx, job_id)
        return OutputHead(
            job_id=found.id,
            state=found.state,
            layout=output.layout_of(tx, found),
            file_format=found.spec["output_file_format"],
            columns=output.columns_of(tx, found),
            records_out=found.records_out,
            complete=found.state in ENDED,
            generation=found.generation,
            up_to=output.finished_prefix(tx, found),
        )

    return await here.read(read)


@router.get("/jobs/{job_id}/output/slices")
async def output_slices(
    here: Here, caller: OutputReader, job_id: str, from_record: Record = 0, gaps: bool = False
) -> OutputPage:
    """The next slices of the finished prefix, in record order; nothing in it changes later
    unless the job's quarantined records are retried. With `gaps`, what is committed behind
    unfinished records too: good for fetching ahead, not for the output itself."""

    def read(tx: Tx) -> OutputPage:
        found = views.find_job(tx, job_id)
        stop = found.total if gaps else output.finished_prefix(tx, found)
        page = OutputPage(slices=[], next_record=from_record, end=False)
        for end, slices in output.slices(tx, found, start=from_record, stop=stop):
            page.slices += slices
            page.next_record = end
            if len(page.slices) >= PAGE_SLICES:
                return page
        page.end = found.state in ENDED
        return page

    return await here.read(read)


@router.get("/jobs/{job_id}/quarantine")
async def quarantine(
    here: Here, caller: OutputReader, job_id: str, from_record: Record = 0
) -> QuarantinePage:
    """Records set aside: number, reason, attempts, raw bytes."""

    def read(tx: Tx) -> QuarantinePage:
        found = views.find_job(tx, job_id)
        rows = tx.quarantined(found.id, from_record=from_record, limit=PAGE_ROWS)
        dataset = tx.dataset(found.dataset) if found.dataset else None
        return QuarantinePage(
            rows=[
                QuarantineRow(
                    record=row.record,
                    error=row.error,
                    attempts=row.attempts,
                    raw_base64=base64.b64encode(row.raw).decode(),
                    raw_cut=row.raw_cut,
                    machine=row.machine,
                    at=row.at,
                )
                for row in rows
            ],
            next_record=rows[-1].record + 1 if len(rows) == PAGE_ROWS else None,
            layout=dataset.layout if dataset else None,
        )

    return await here.read(read)


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
async def watch(here: Here, caller: Reader, job_id: str) -> StreamingResponse:
    """Server-sent events: the job (a JobView) whenever it changes, until it ends."""
    await here.read(lambda tx: views.find_job(tx, job_id))
    return StreamingResponse(_changes(here, job_id), media_type="text/event-stream")


async def _changes(here: Coordinator, job_id: str) -> AsyncIterator[str]:
    before, quiet_s = "", 0.0
    while not here.stopping.is_set():
        view = await here.read(lambda tx: views.job_view(here.grid, tx, views.find_job(tx, job_id)))
        now = view.model_dump_json()
        if now != before:
            before, quiet_s = now, 0.0
            yield f"event: job\ndata: {now}\n\n"
        if view.state in ENDED:
            return
        if quiet_s >= 10:
            quiet_s = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(WATCH_EVERY_S)
        quiet_s += WATCH_EVERY_S


@router.get("/why/{subject:path}")
async def why(here: Here, caller: Reader, subject: str) -> WhyReply:
    """Why a job or machine is not running, in words."""

    def read(tx: Tx) -> WhyReply:
        found, sentences = views.why(here.grid, tx, subject, here.clock())
        return WhyReply(subject=found, sentences=sentences)

    return await here.read(read)


@router.get("/story/{subject:path}")
async def story(
    here: Here, caller: Reader, subject: str, after: Record = 0, newest: bool = True
) -> StoryReply:
    """What happened to a job or machine, in order."""

    def read(tx: Tx) -> StoryReply:
        found = views.story_subject(tx, subject)
        events = tx.events(found, after=after, limit=500, newest=newest)
        return StoryReply(
            events=[
                EventView(
                    n=e.n, at=e.at, subject=e.subject, kind=e.kind, text=e.text, facts=e.facts
                )
                for e in events
            ]
        )

    return await here.read(read)
