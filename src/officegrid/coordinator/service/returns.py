"""Units that come back without a result: released, failed, expired."""

from __future__ import annotations

from officegrid.coordinator.service import lifecycle, troubles
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import spec_of
from officegrid.core import leaseid, ledger, suspension
from officegrid.core.errors import NotFoundError
from officegrid.core.jobs import ENDED, JobState
from officegrid.core.model import Edit, Lease, LeaseState
from officegrid.core.suspension import Holding
from officegrid.storage.api import Job, Machine, Tx
from officegrid.wire.work import (
    FailRequest,
    ReleaseRequest,
    RenewReply,
)

RESTING = frozenset({"paused", "saved", "user here", "stopped", "trouble"})
"""States of a machine that has told, or whose desktop has told, why it is silent."""


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
            if request.reason and request.rest_s:
                troubles.note(
                    grid, machine, owner[0], rest_s=request.rest_s, reason=request.reason, now=now
                )
            gone.append(lease_id)
    return RenewReply(alive=[], lost=gone)


def release_machine(
    grid: Grid, tx: Tx, machine: Machine, now: float, *, suspend: bool = False,
    since: float | None = None,
) -> int:  # fmt: skip
    """Take back the units of a machine that yields, without blame. Returns how many.

    With `suspend` its VM keeps its memory: what `core.suspension` says outlasts that stays. With
    `since`, units that its worker has renewed after that moment stay too. Whoever is back before
    somebody else has taken the records goes on with them: the leases end as expired ones do.
    """
    held = tx.live_leases_of(machine.id)
    spared = _suspend(tx, machine, held, since or now) if suspend else set()
    count = 0
    for job_id, lease in held:
        if lease.id in spared or (since is not None and lease.renewed_at > since):
            continue
        give_back(grid, tx, job_id, lease, now, fault=False, ended=LeaseState.EXPIRED)
        count += 1
    return count


def _suspend(tx: Tx, machine: Machine, held: list[tuple[str, Lease]], at: float) -> set[str]:
    """Push the deadlines of the leases that outlast a suspension; their ids."""
    holdings = []
    for job_id, lease in held:
        job = tx.job(job_id)
        if job is not None:
            policy = spec_of(job).policy
            one = Holding(job_id, lease, policy.unit_seconds, policy.suspended_lease_s)
            holdings.append(one)
    kept = suspension.kept(holdings, slots=int(machine.facts.get("slots", 1)), now=at)
    for one in kept:
        later = suspension.suspended(one.lease, at=at, suspended_s=one.suspended_s)
        tx.apply(one.job, Edit(leases=(later,)))
    return {one.lease.id for one in kept}


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


def revive(tx: Tx, machine: Machine, lease_id: str, now: float, lease_s: float) -> bool:
    """Make a lease of this machine that has ended live again, if nobody took its records."""
    owner = tx.lease_owner(lease_id)
    if owner is None or owner[1].machine != machine.id:
        return False
    job = tx.job(owner[0])
    if job is None or job.state in ENDED or is_outdated(job, owner[1]):
        return False
    edit = ledger.revive(tx.ledger(job.id), lease_id=lease_id, now=now, lease_s=lease_s)
    if edit is None:
        return False
    tx.apply(job.id, edit)
    return True


def is_outdated(job: Job, lease: Lease) -> bool:
    """Did this lease end before a retry? The code that it was for may be another one now."""
    ended = lease.state in (LeaseState.EXPIRED, LeaseState.RELEASED)
    return ended and leaseid.generation_of(lease.id) != str(job.generation)


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
    is_current = job is not None and leaseid.generation_of(lease.id) == str(job.generation)
    if job is not None and was_ours and is_current and job.state is JobState.RUNNING:
        error = request.error.rstrip(". ")
        reason = f"the program could not be started on {machine.name}: {error}"
        lifecycle.hold(tx, job, reason, now)
    return RenewReply(alive=[], lost=[request.lease_id])


def expire(grid: Grid, tx: Tx, now: float) -> int:
    """Take back every unit whose lease ran out. Returns how many."""
    overdue = tx.expired_leases(now)
    resting = {lease.machine: _is_resting(tx, lease.machine) for _, lease in overdue}
    for machine, rests in resting.items():
        if not rests:
            tx.touch_machine(machine, state="silent")
    for job_id, lease in overdue:
        blame = not resting[lease.machine] and died_on(grid, lease)
        give_back(grid, tx, job_id, lease, now, fault=blame, ended=LeaseState.EXPIRED)
    return len(overdue)


def died_on(grid: Grid, lease: Lease) -> bool:
    """May the records of a lease that ends be why its machine is silent? Not when they outlasted
    a suspension that was too long."""
    return not suspension.is_suspended(lease, lease_s=grid.settings.lease_s)


def _is_resting(tx: Tx, machine_id: str) -> bool:
    """Is the machine silent because it, or its desktop, has said that it yields? A renewal that
    was under way at that moment may have made a lease live again."""
    machine = tx.machine(machine_id)
    return machine is not None and machine.state in RESTING
