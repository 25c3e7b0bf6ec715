"""Where a job's output comes from: versions, input, machines, leases; and running it once more."""

from __future__ import annotations

from officegrid.coordinator.service import lifecycle, output, versions
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core import leaseid
from officegrid.core.errors import ConflictError
from officegrid.core.lineage import Covered, ranges_by_pin
from officegrid.storage.api import Job, JobPin, Tx
from officegrid.wire.catalogue import (
    CodeRef,
    DataRef,
    Lineage,
    LineageMachine,
    LineageUnit,
    LineageUnits,
    PinnedDataView,
    PinView,
)
from officegrid.wire.jobs import JobSpec

PAGE_PARTS = 500
RANGES_SHOWN = 1000


def lineage(tx: Tx, job: Job) -> Lineage:
    spec = spec_of(job)
    dataset = tx.dataset(job.dataset) if job.dataset else None
    covered = ranges_by_pin(
        Covered(part.start, part.end, part.generation, leaseid.pin_of(part.lease_id))
        for part in output.parts_from(tx, job.id, 0)
    )
    program = spec.program.python or " ".join(spec.program.run or [])
    return Lineage(
        job=job.id, name=job.name, state=job.state, submitter=job.submitter,
        created_at=job.created_at, ended_at=job.ended_at,
        input_digest=job.dataset, input_source="" if dataset is None else dataset.source,
        input_job=spec.input_job, records=job.total, records_out=job.records_out,
        quarantined=job.quarantined, program=program,
        pins=[_pin_view(spec, pin, covered.get(pin.pin, [])) for pin in tx.pins(job.id)],
        machines=[_machine(tx, *one) for one in tx.machines_of_job(job.id)],
        rerun_of=spec.rerun_of,
    )  # fmt: skip


def _pin_view(spec: JobSpec, pin: JobPin, ranges: list[tuple[int, int]]) -> PinView:
    return PinView(
        pin=pin.pin, at=pin.at, why=pin.why, bundle=pin.bundle,
        code_name=None if spec.code is None else spec.code.name, code_version=pin.code_version,
        data={
            key: PinnedDataView(name=one.name, n=one.n, digest=one.digest, load=one.load)
            for key, one in pin.data.items()
        },
        records=sum(end - start for start, end in ranges), ranges=ranges[:RANGES_SHOWN],
    )  # fmt: skip


def _machine(tx: Tx, machine_id: str, units: int, records: int) -> LineageMachine:
    known = tx.machine(machine_id)
    name = machine_id if known is None else known.name
    return LineageMachine(id=machine_id, name=name, units=units, records=records)


def units(tx: Tx, job: Job, from_record: int) -> LineageUnits:
    """The committed units from `from_record` on, a page of them."""
    page, following = output.page_of_parts(tx, job.id, from_record, PAGE_PARTS)
    shown = [
        LineageUnit(
            start=part.start, end=part.end, generation=part.generation,
            pin=leaseid.pin_of(part.lease_id), lease=part.lease_id, machine=part.machine,
            digest=part.digest, committed_at=part.committed_at,
        )
        for part in page
    ]  # fmt: skip
    return LineageUnits(units=shown, next_record=following)


def rerun(grid: Grid, tx: Tx, job: Job, by: str, now: float) -> Job:
    """A new job over the same input with the very versions that `job` ran last.

    Raises ConflictError if it never started or the content of a version is gone."""
    pin = tx.pin(job.id)
    if pin is None or job.dataset is None:
        raise ConflictError(
            f"{job.id} has not started yet: there is nothing to run again.",
            fix=f"See `officegrid why {job.id}`.",
        )
    if pin.code_version is None and pin.bundle is not None:
        known = tx.versions_with(pin.bundle)
        if known and all(one.gone for one in known):  # of before versions, run again since
            versions.find(tx, "code", known[-1].name, known[-1].n)
    spec = spec_of(job).model_copy(deep=True)
    spec.dataset, spec.input_job, spec.query, spec.after = job.dataset, None, None, []
    spec.table = None
    spec.bundle = pin.bundle
    if spec.code is not None:
        exact = pin.code_version is not None
        spec.code = CodeRef(name=spec.code.name, n=pin.code_version) if exact else None
    spec.data = {
        key: DataRef(name=one.name, n=one.n, load="mariadb" if one.load else "")
        for key, one in pin.data.items()
    }
    spec.policy.schedule, spec.policy.follow_latest = None, False
    spec.output_path, spec.rerun_of = "", job.id
    made = lifecycle.create(grid, tx, spec, by, now, register=False)
    story(tx, now, made, "rerun", f"runs what {job.id} ran", rerun_of=job.id)
    return made
