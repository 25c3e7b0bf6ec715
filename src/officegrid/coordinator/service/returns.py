"""Units that come back without a result: released, failed, expired."""

from __future__ import annotations

from collections.abc import Iterable

from officegrid.coordinator.service import lifecycle
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core import ledger
from officegrid.core.errors import NotFoundError
from officegrid.core.jobs import JobState
from officegrid.core.model import Lease, LeaseState
from officegrid.storage.api import Machine, Tx
from officegrid.wire.work import (
    FailRequest,
    ReleaseRequest,
    RenewReply,
)


def release(
    grid: Grid, tx: Tx, machine: Machine, request: ReleaseRequest, now: float
) -> RenewReply:
    """Give units back at once. Units of other machines are left alone."""
    gone: list[str] = []
    for lease_id in request.leases:
        owner = tx.lease_owner(lease_id)
        if owner is not None and owner[1].machine == machine.id:
            give_back(grid, tx, *owner, now, fault=request.fault, ended=LeaseState.RELEASED)
            if request.reason:
                text = f"{machine.name} gave a unit back: {request.reason}"
                tx.add_event(now, owner[0], "given_back", text)
                tx.add_event(now, machine.id, "given_back", text)
            gone.append(lease_id)
    return RenewReply(alive=[], lost=gone)


def release_machine(grid: Grid, tx: Tx, machine: Machine, now: float) -> int:
    """Release all units of a machine whose user came back. Returns how many."""
    held: Iterable[tuple[str, Lease]] = tx.live_leases_of(machine.id)
    count = 0
    for job_id, lease in held:
        give_back(grid, tx, job_id, lease, now, fault=False, ended=LeaseState.RELEASED)
        count += 1
    return count


def give_back(
    grid: Grid, tx: Tx, job_id: str, lease: Lease, now: float, *, fault: bool, ended: LeaseState
) -> None:
    """End one live lease without a result, and deal with what follows from it."""
    job = tx.job(job_id)
    if job is None:
        return
    attempts = spec_of(job).limits.attempts
    edit = ledger.release(
        tx.ledger(job_id), lease_id=lease.id, fault=fault, attempts=attempts, ended=ended
    )
    if edit is None:
        return
    tx.apply(job_id, edit)
    grid.progress.pop(lease.id, None)
    grid.work_appeared()
    if fault:
        machine = tx.machine(lease.machine)
        name = machine.name if machine else lease.machine
        text = f"records {lease.start} to {lease.end - 1} come back: {name} went silent or died"
        story(tx, now, job, "lost", text, start=lease.start, end=lease.end, machine=lease.machine)
    lifecycle.quarantine_killers(grid, tx, job, edit, lease.machine, now)
    lifecycle.after_progress(grid, tx, job_id, now)


def fail(grid: Grid, tx: Tx, machine: Machine, request: FailRequest, now: float) -> RenewReply:
    """The program cannot even be started: hold the job and say why, rather than try for ever."""
    owner = tx.lease_owner(request.lease_id)
    if owner is None or owner[1].machine != machine.id:
        raise NotFoundError(f"There is no lease {request.lease_id} of this machine.")
    job_id, lease = owner
    was_ours = lease.state is LeaseState.LIVE
    give_back(grid, tx, job_id, lease, now, fault=False, ended=LeaseState.RELEASED)
    job = tx.job(job_id)
    # A late word about code that a retry has replaced must not hold the mended job.
    is_current = job is not None and lease.id.rpartition(".")[2] == str(job.generation)
    if job is not None and was_ours and is_current and job.state is JobState.RUNNING:
        error = request.error.rstrip(". ")
        reason = f"the program could not be started on {machine.name}: {error}"
        lifecycle.hold(tx, job, reason, now)
    return RenewReply(alive=[], lost=[request.lease_id])


def expire(grid: Grid, tx: Tx, now: float) -> int:
    """Take back every unit whose lease ran out. Returns how many."""
    overdue = tx.expired_leases(now)
    for machine in {lease.machine for _, lease in overdue}:
        tx.touch_machine(machine, state="silent")
    for job_id, lease in overdue:
        give_back(grid, tx, job_id, lease, now, fault=True, ended=LeaseState.EXPIRED)
    return len(overdue)
