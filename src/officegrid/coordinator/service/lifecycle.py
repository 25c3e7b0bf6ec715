"""What happens to a job as its records move: hold, finish, retry, dependants, schedules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cronsim import CronSim

from officegrid.coordinator.service import deliveries, output, pins
from officegrid.coordinator.service.context import Grid, next_number, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core import leaseid, ledger
from officegrid.core.errors import ConflictError, NotFoundError, OfficeGridError
from officegrid.core.jobs import JobState, move
from officegrid.core.model import Edit, Span, SpanState
from officegrid.core.quantities import Limit, parse_limit, percent_text
from officegrid.data.records import raw_record
from officegrid.storage.api import Job, Quarantined, Tx
from officegrid.wire.data import BlockSlice
from officegrid.wire.jobs import JobSpec, RetryRequest

RAW_KEPT_BYTES = 64 * 1024


def quarantine_allowance(job: Job) -> int:
    limit: Limit = parse_limit(spec_of(job).policy.quarantine_limit)
    return limit.records(job.total)


def after_progress(grid: Grid, tx: Tx, job_id: str, now: float) -> None:
    """Hold the job when too much is quarantined, finish it when nothing is left."""
    job = tx.job(job_id)
    if job is None:
        return
    if job.state is JobState.RUNNING and job.quarantined > quarantine_allowance(job):
        share = percent_text(job.quarantined / job.total)
        hold(
            tx,
            job,
            f"{job.quarantined:,} of {job.total:,} records ({share}) are quarantined, more "
            f"than quarantine_limit = {spec_of(job).policy.quarantine_limit} allows",
            now,
        )
    elif job.state is JobState.RUNNING and job.pending == 0 and job.leased == 0:
        finish(grid, tx, job, now)


def finish(grid: Grid, tx: Tx, job: Job, now: float) -> None:
    tx.update_job(job.id, state=move(job.state, "finish", job.id), ended_at=now, reason="")
    grid.trial_for.pop(job.id, None)
    deliveries.note_finished(tx, job, now)
    text = f"finished: {job.done:,} records done, {job.quarantined:,} quarantined"
    story(tx, now, job, "finished", text)
    for waiting in tx.jobs(states=[JobState.WAITING]):
        start_if_ready(grid, tx, waiting, now)


def hold(tx: Tx, job: Job, reason: str, now: float) -> None:
    """Stop giving out units; those that run may still commit."""
    tx.update_job(job.id, state=move(job.state, "hold", job.id), reason=reason)
    story(tx, now, job, "held", f"held: {reason}")


def release_hold(grid: Grid, tx: Tx, job: Job, limit: str | None, now: float) -> None:
    """Go on. A job held for its quarantine gets a new limit: the one given, else none."""
    started = job.started_at is not None
    state = move(job.state, "release" if started else "await", job.id)
    spec = spec_of(job).model_copy(deep=True)
    if limit is not None:
        spec.policy.quarantine_limit = limit
    elif job.quarantined > quarantine_allowance(job):
        spec.policy.quarantine_limit = "100%"
    tx.update_job(job.id, state=state, reason="", spec=spec.model_dump())
    story(tx, now, job, "released", "released: the job goes on")
    grid.work_appeared()
    if state is JobState.WAITING:
        start_if_ready(grid, tx, _again(tx, job.id), now)
    else:
        after_progress(grid, tx, job.id, now)


def cancel(grid: Grid, tx: Tx, job: Job, now: float) -> None:
    tx.update_job(
        job.id, state=move(job.state, "cancel", job.id), ended_at=now, reason="cancelled by a user"
    )
    if job.total:
        tx.apply(job.id, ledger.recall(tx.ledger(job.id)))
    grid.trial_for.pop(job.id, None)
    story(tx, now, job, "cancelled", "cancelled")
    for waiting in tx.jobs(states=[JobState.WAITING]):
        if job.name in waits_for(spec_of(waiting)) and newest(tx, job.name) == job.id:
            hold(tx, waiting, f"it waits for {job.name}, which was cancelled", now)


def retry(grid: Grid, tx: Tx, job: Job, request: RetryRequest, now: float) -> int:
    """Run the quarantined records again, with newer code if given. Returns how many."""
    if job.quarantined == 0:
        raise ConflictError(f"Job {job.id} has no quarantined records to retry.")
    state = move(job.state, "retry", job.id)
    spec = spec_of(job).model_copy(deep=True)
    if request.program is not None:
        spec.program = request.program
    if request.limits is not None:
        spec.limits = request.limits
    bundle = request.bundle or job.bundle
    if request.bundle is not None:
        pins.pin_retry(grid, tx, job, spec, request.bundle, now)
    elif spec.policy.follow_latest:
        pins.pin_newest(tx, job, "retried", now)
        bundle = pins.current(tx, job).bundle
    renewed = request.bundle is not None or request.program is not None
    if renewed or bundle != job.bundle:
        # Units under way run the old code: they start over with the new one.
        tx.apply(job.id, ledger.recall(tx.ledger(job.id)))
    bad = [
        Span(start, end, SpanState.QUARANTINED, attempts)
        for start, end, name, attempts in tx.spans(job.id)
        if name == SpanState.QUARANTINED
    ]
    tx.apply(job.id, ledger.retry(bad))
    tx.drop_quarantined(job.id, 0, job.total)
    tx.update_job(
        job.id,
        state=state,
        reason="",
        started_at=now,
        ended_at=None,
        bundle=bundle,
        spec=spec.model_dump(),
        generation=job.generation + 1,
    )
    story(tx, now, job, "retried", f"{job.quarantined:,} quarantined records run again")
    grid.work_appeared()
    return job.quarantined


def quarantine_killers(
    grid: Grid, tx: Tx, job: Job, edit: Edit, machine_id: str, now: float
) -> None:
    """Write down the single records that the ledger set aside because machines died on them."""
    if job.dataset is None:
        return
    for span in edit.insert:
        if span.state is not SpanState.QUARANTINED:
            continue
        raw = _raw_record(grid, tx, job.dataset, span.start)
        attempts = spec_of(job).limits.attempts
        error = f"the worker died or went silent {attempts} times while working on this record"
        row = Quarantined(
            job.id, span.start, error, attempts, raw[:RAW_KEPT_BYTES],
            len(raw) > RAW_KEPT_BYTES, machine_id, now,
        )  # fmt: skip
        tx.put_quarantined([row])
        lease_id = leaseid.lease_id(grid.new_id(), pins.current(tx, job).pin, job.generation)
        tx.add_part(output.empty_part(job, span.start, lease_id, machine_id, now))
        story(tx, now, job, "quarantined", f"record {span.start}: {error}", record=span.start)


def _raw_record(grid: Grid, tx: Tx, dataset_id: str, record: int) -> bytes:
    dataset = tx.dataset(dataset_id)
    placed = tx.blocks_over(dataset_id, record, record + 1)
    if dataset is None or not placed:
        return b""
    try:
        data = grid.read_object(placed[0].slice)
        return raw_record(data, dataset.layout, record - placed[0].start)
    except (OSError, OfficeGridError):
        return b""  # a damaged block: the record is set aside all the same, without its text


def note_columns(tx: Tx, job: Job, start: int, blocks: Sequence[BlockSlice]) -> None:
    """Remember which sets of CSV columns the output has, and where each first appears."""
    if job.spec["output"]["format"] != "csv" or not blocks:
        return
    key = f"columns:{job.id}"
    seen: list[list[object]] = json.loads(tx.setting(key) or "[]")
    changed = False
    for index, columns in enumerate(b.columns for b in blocks if b.columns is not None):
        place = [start, index]
        known = next((entry for entry in seen if entry[1] == columns), None)
        if known is None:
            seen.append([place, columns])
            changed = True
        elif place < known[0]:  # type: ignore[operator]
            known[0] = place
            changed = True
    if changed:
        tx.put_setting(key, json.dumps(seen))


# --- starting -----------------------------------------------------------------------------


def create(
    grid: Grid, tx: Tx, spec: JobSpec, submitter: str, now: float, *, register: bool = True
) -> Job:
    """Add a job; it starts at once, or waits for other jobs, or becomes a schedule's template.
    With `register` the code that was uploaded with it becomes a version under its name."""
    dataset = tx.dataset(spec.dataset) if spec.dataset else None
    if spec.dataset and dataset is None:
        raise NotFoundError(
            f"There is no dataset {spec.dataset[:12]}….", fix="Submit the job again: it uploads it."
        )
    for name in waits_for(spec):
        if newest(tx, name) is None:
            raise NotFoundError(
                f"The job waits for {name!r}, but there is no such job.",
                fix="Submit that one first, or correct `after` / `output_of` in the job file.",
            )
    if register:
        spec = pins.register_code(grid, tx, spec, submitter, now)
    pins.resolve(tx, spec)  # what is not there is known at once
    job = Job(
        id=f"j{next_number(tx, 'job_counter')}",
        name=spec.name,
        state=JobState.SCHEDULED if spec.policy.schedule else JobState.WAITING,
        spec=spec.model_dump(),
        dataset=spec.dataset,
        bundle=spec.bundle,
        priority=spec.policy.priority,
        total=0,
        submitter=submitter,
        created_at=now,
    )
    tx.add_job(job)
    story(tx, now, job, "submitted", f"submitted by {submitter}")
    if job.state is JobState.SCHEDULED:
        tx.put_setting(f"schedule:{job.id}", str(now))
    else:
        start_if_ready(grid, tx, job, now)
    return _again(tx, job.id)


def waits_for(spec: JobSpec) -> list[str]:
    names = list(spec.after)
    if spec.input_job and spec.input_job not in names:
        names.append(spec.input_job)
    return names


def newest(tx: Tx, name: str) -> str | None:
    """Id of the newest job of that name (schedule templates left out when a run exists)."""
    found = tx.jobs(name=name, limit=50)
    runs = [job for job in found if job.state is not JobState.SCHEDULED]
    chosen = runs or found
    return chosen[0].id if chosen else None


def blockers(tx: Tx, spec: JobSpec) -> list[Job]:
    """The jobs that this one still waits for."""
    waiting = []
    for name in waits_for(spec):
        job_id = newest(tx, name)
        job = tx.job(job_id) if job_id else None
        if job is not None and job.state is not JobState.FINISHED:
            waiting.append(job)
    return waiting


def start_if_ready(grid: Grid, tx: Tx, job: Job, now: float) -> bool:
    spec = spec_of(job)
    waiting = blockers(tx, spec)
    cancelled = [other.name for other in waiting if other.state is JobState.CANCELLED]
    if cancelled:
        hold(tx, job, f"it waits for {cancelled[0]}, which was cancelled", now)
        return False
    if waiting:
        names = ", ".join(f"{other.name} ({other.state})" for other in waiting)
        tx.update_job(job.id, reason=f"waits for {names}")
        return False
    dataset_id = job.dataset
    if spec.input_job:
        source = newest(tx, spec.input_job)
        dataset_id = output.as_dataset(tx, _again(tx, source or ""), now)
    problem = _unnamed_columns(tx, spec, dataset_id)
    if problem:
        hold(tx, job, problem, now)
        return False
    if dataset_id is None and spec.query is not None:
        tx.update_job(job.id, reason=f"its input is read from {spec.query.source}")
        return False
    dataset = tx.dataset(dataset_id) if dataset_id else None
    if dataset is None:
        hold(tx, job, "its input is missing", now)
        return False
    missing = pins.pin_at_start(tx, job, now)
    if missing is not None:
        hold(tx, job, missing, now)
        return False
    tx.update_job(
        job.id,
        state=move(job.state, "start", job.id),
        dataset=dataset.id,
        total=dataset.records,
        started_at=now,
        reason="",
    )
    story(tx, now, job, "started", f"started on {dataset.records:,} records")
    grid.work_appeared()
    after_progress(grid, tx, job.id, now)
    return True


def _unnamed_columns(tx: Tx, spec: JobSpec, dataset_id: str | None) -> str:
    """Why a Python program cannot get this input as dicts, or nothing."""
    dataset = tx.dataset(dataset_id) if dataset_id and spec.input_job else None
    if dataset is None or not dataset.records or spec.program.python is None:
        return ""
    if dataset.layout.format != "csv" or dataset.layout.columns is not None:
        return ""
    return f"the output of {spec.input_job} names no columns; give it `columns` in its [output]"


def next_start_at(tx: Tx, job: Job) -> float | None:
    """When the next run of a scheduled job starts, in the coordinator's local time zone."""
    line = spec_of(job).policy.schedule
    last = tx.setting(f"schedule:{job.id}")
    if line is None or last is None:
        return None
    # Without a zone on purpose: 19:00 stays 19:00 when summer time begins or ends.
    after = datetime.fromtimestamp(float(last))
    return next(CronSim(line, after)).timestamp()


def start_scheduled(grid: Grid, tx: Tx, now: float) -> int:
    """Start a run of every template whose time has come; missed times count once."""
    started = 0
    for template in tx.jobs(states=[JobState.SCHEDULED]):
        due = next_start_at(tx, template)
        if due is None or due > now:
            continue
        tx.put_setting(f"schedule:{template.id}", str(now))
        running = [
            job
            for job in tx.jobs(name=template.name)
            if job.template == template.id
            and job.state in (JobState.WAITING, JobState.RUNNING, JobState.HELD)
        ]
        if running:
            text = f"a start was left out: {running[0].id} has not ended yet"
            story(tx, now, template, "skipped", text)
            continue
        run = replace(
            template,
            id=f"j{next_number(tx, 'job_counter')}",
            state=JobState.WAITING,
            template=template.id,
            created_at=now,
        )
        tx.add_job(run)
        story(tx, now, template, "run", f"started run {run.id}", run=run.id)
        start_if_ready(grid, tx, run, now)
        started += 1
    return started


def _again(tx: Tx, job_id: str) -> Job:
    job = tx.job(job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id}.", fix="See `officegrid jobs`.")
    return job
