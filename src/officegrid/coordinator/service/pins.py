"""Pins: which version of its code and data a job runs, and since when.

A job is pinned when it starts, to the newest versions of what it names or to exact ones. A job
with `follow_latest` is pinned anew when a newer version appears: units given out from then on
run that one, units under way end under the old one, and each part knows which it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from officegrid.coordinator.service import versions
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core.errors import InternalError, OfficeGridError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Job, JobPin, PinnedData, Tx
from officegrid.wire.catalogue import CodeRef
from officegrid.wire.jobs import JobSpec

ALL = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the names in a job file stand for now."""

    bundle: str | None
    code_version: int | None
    data: dict[str, PinnedData] = field(default_factory=dict)


def register_code(grid: Grid, tx: Tx, spec: JobSpec, by: str, now: float) -> JobSpec:
    """A submitted folder becomes a version under the job's name. The spec then names it: exactly
    that version, or with `follow_latest` whatever is newest. Running jobs that follow switch."""
    if spec.bundle is None or spec.code is not None:
        return spec
    version, new = versions.push(
        tx, "code", spec.name, spec.bundle, by=by, origin="submitted with the job", now=now
    )
    if new:
        switch_followers(grid, tx, "code", spec.name, now)
    n = None if spec.policy.follow_latest else version.n
    return spec.model_copy(update={"code": CodeRef(name=spec.name, n=n)})


def resolve(tx: Tx, spec: JobSpec) -> Resolved:
    """Raises NotFoundError, ConflictError: a version that is not there (any more)."""
    bundle, number = spec.bundle, None
    if spec.code is not None:
        code = versions.find(tx, "code", spec.code.name, spec.code.n)
        bundle, number = code.digest, code.n
    data = {}
    for key, ref in spec.data.items():
        found = versions.find(tx, "data", ref.name, ref.n)
        data[key] = PinnedData(found.name, found.n, found.digest, found.file_name, ref.load)
    return Resolved(bundle, number, data)


def pin(tx: Tx, job: Job, resolved: Resolved, why: str, now: float) -> JobPin:
    """The job runs this from now on. The caller sets the job's `bundle`."""
    last = tx.pin(job.id)
    number = 0 if last is None else last.pin + 1
    made = JobPin(job.id, number, resolved.bundle, resolved.code_version, resolved.data, now, why)
    tx.add_pin(made)
    return made


def pin_at_start(tx: Tx, job: Job, now: float) -> str | None:
    """Pin the job; the sentence that says why that cannot be, if so."""
    try:
        resolved = resolve(tx, spec_of(job))
    except OfficeGridError as error:
        return f"{error.what} {error.fix}".strip().rstrip(".")
    pin(tx, job, resolved, "started", now)
    tx.update_job(job.id, bundle=resolved.bundle)
    return None


def pin_of(tx: Tx, job: Job, number: int) -> JobPin:
    found = tx.pin(job.id, number)
    if found is None:
        raise InternalError(f"Job {job.id} has no pin {number}.")
    return found


def current(tx: Tx, job: Job) -> JobPin:
    found = tx.pin(job.id)
    if found is None:
        raise InternalError(f"Job {job.id} runs without a pin.")
    return found


def switch_followers(grid: Grid, tx: Tx, kind: str, name: str, now: float) -> list[str]:
    """Pin those jobs anew that follow `name`. Returns their ids."""
    switched = []
    for job in tx.jobs(states=[JobState.RUNNING, JobState.HELD], limit=ALL):
        spec = spec_of(job)
        if not spec.policy.follow_latest or not _follows(spec, kind, name):
            continue
        before = tx.pin(job.id)
        if before is None:  # held before it ever started
            continue
        resolved = resolve(tx, spec)
        if (resolved.bundle, resolved.data) == (before.bundle, before.data):
            continue
        why = _switch_words(before, resolved, name)
        pin(tx, job, resolved, why, now)
        tx.update_job(job.id, bundle=resolved.bundle)
        story(tx, now, job, "switched", f"{why}; units under way end under the old one")
        switched.append(job.id)
    if switched:
        grid.work_appeared()
    return switched


def pin_newest(tx: Tx, job: Job, why: str, now: float) -> None:
    """A job that follows is pinned to what is newest now, if that is something else."""
    before, resolved = tx.pin(job.id), resolve(tx, spec_of(job))
    if before is not None and (resolved.bundle, resolved.data) != (before.bundle, before.data):
        pin(tx, job, resolved, why, now)
        tx.update_job(job.id, bundle=resolved.bundle)


def pin_retry(grid: Grid, tx: Tx, job: Job, spec: JobSpec, bundle: str, now: float) -> None:
    """Corrected code for a retry is the job's pin, and a version; `spec` is changed. A version
    that has this content already is taken: an old one must not become the newest for others."""
    name = spec.code.name if spec.code is not None else job.name
    known = [
        one for one in tx.versions_with(bundle)
        if one.kind == "code" and one.name in (name, job.name) and not one.gone
    ]  # fmt: skip
    if known:
        version, new = known[-1], False
    else:
        version, new = versions.push(
            tx, "code", job.name, bundle, by=job.submitter, origin=f"to retry {job.id}", now=now
        )
    newest = tx.version("code", version.name)
    floats = spec.policy.follow_latest and newest is not None and newest.n == version.n
    spec.bundle = bundle
    spec.code = CodeRef(name=version.name, n=None if floats else version.n)
    before = tx.pin(job.id)
    data = {} if before is None else before.data
    pin(tx, job, Resolved(bundle, version.n, data), "retried with newer code", now)
    if new:
        switch_followers(grid, tx, "code", version.name, now)


def _follows(spec: JobSpec, kind: str, name: str) -> bool:
    if kind == "code":
        return spec.code is not None and spec.code.n is None and spec.code.name == name
    return any(ref.n is None and ref.name == name for ref in spec.data.values())


def _switch_words(before: JobPin, after: Resolved, name: str) -> str:
    if before.bundle != after.bundle:
        return f"code {name} version {before.code_version} → {after.code_version}"
    olds = {one.name: one.n for one in before.data.values()}
    news = {one.name: one.n for one in after.data.values()}
    return f"data {name} version {olds.get(name)} → {news.get(name)}"
