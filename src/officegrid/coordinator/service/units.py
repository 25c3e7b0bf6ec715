"""From a lease to the `Unit` message: which slices of which blocks hold its records."""

from __future__ import annotations

from typing import Any

from officegrid.coordinator.service.context import Grid
from officegrid.core import leaseid
from officegrid.core.errors import InternalError
from officegrid.core.model import Lease
from officegrid.storage.api import Job, Tx
from officegrid.wire.jobs import JobSpec
from officegrid.wire.work import Unit, UnitData

_CACHED_SPECS = 256
_specs: dict[int, tuple[dict[str, Any], JobSpec]] = {}


def spec_of(job: Job) -> JobSpec:
    """The job's spec, not to be changed. Storage hands out one object per stored text, so each
    text is validated once; the object is kept beside the result, which keeps its id taken."""
    known = _specs.get(id(job.spec))
    if known is not None and known[0] is job.spec:
        return known[1]
    if len(_specs) >= _CACHED_SPECS:
        _specs.clear()
    spec = JobSpec.model_validate(job.spec)
    _specs[id(job.spec)] = (job.spec, spec)
    return spec


def make_unit(grid: Grid, tx: Tx, job: Job, lease: Lease) -> Unit:
    if job.dataset is None:
        raise InternalError(f"Job {job.id} runs without a dataset.")
    dataset = grid.dataset(tx, job.dataset)
    placed = tx.blocks_over(job.dataset, lease.start, lease.end)
    if dataset is None or not placed:
        raise InternalError(f"Dataset {job.dataset} of job {job.id} has no record {lease.start}.")
    spec = spec_of(job)
    pin = tx.pin(job.id, leaseid.pin_of(lease.id))
    if pin is None:
        raise InternalError(f"Job {job.id} has no pin for lease {lease.id}.")
    return Unit(
        lease_id=lease.id,
        job_id=job.id,
        job_name=job.name,
        start=lease.start,
        end=lease.end,
        generation=job.generation,
        lease_s=grid.settings.lease_s,
        renew_every_s=grid.settings.renew_every_s,
        bundle=pin.bundle,
        data={
            key: UnitData(
                digest=one.digest,
                name=one.name,
                n=one.n,
                file_name=one.file_name,
                load="mariadb" if one.load else "",
            )
            for key, one in pin.data.items()
        },
        program=spec.program,
        layout=dataset.layout,
        output=spec.output,
        limits=spec.limits,
        input=[block.slice for block in placed],
        skip_records=lease.start - placed[0].start,
    )
