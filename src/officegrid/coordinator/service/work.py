"""Units of work: claim, renew, commit, release. The only code that moves a ledger forward."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from officegrid.coordinator.service import lifecycle
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.units import make_unit, spec_of
from officegrid.core import fairness, ledger, sizing
from officegrid.core.errors import ForbiddenError, InputError, NotFoundError
from officegrid.core.jobs import ENDED, JobState
from officegrid.core.model import CommitOutcome, Lease, LeaseState
from officegrid.storage.api import Gap, Job, Machine, Part, Quarantined, Rate, Tx
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    CommitReply,
    CommitRequest,
    FailRequest,
    QuarantinedRecord,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    Unit,
)

OUTCOMES: dict[CommitOutcome, Literal["committed", "repeated", "refused"]] = {
    CommitOutcome.COMMITTED: "committed",
    CommitOutcome.REPEATED: "repeated",
    CommitOutcome.REFUSED: "refused",
}
LOST_REPLY_S = 15.0  # a lease the worker does not know of after this long was lost on the way
MOST_PROGRESS = 20_000
SEEN_EVERY_S = 20.0  # how often "last seen" is written down


def claim(grid: Grid, tx: Tx, machine: Machine, request: ClaimRequest, now: float) -> ClaimReply:
    """Give the machine up to `request.units` units, fairly over jobs."""
    _note_session(grid, tx, machine, request, now)
    held = tx.live_leases_of(machine.id)
    known = set(request.held_leases)
    lost_s = min(LOST_REPLY_S, grid.settings.lease_s / 2)
    for job_id, lease in held:
        if lease.id not in known and now - lease.claimed_at > lost_s:
            give_back(grid, tx, job_id, lease, now, fault=False, ended=LeaseState.RELEASED)
    room = request.slots * grid.settings.leases_per_slot - len(known)
    units: list[Unit] = []
    while len(units) < min(request.units, room) and not _has_trial(tx, machine):
        alone = not known and not tx.live_leases_of(machine.id)
        unit = _claim_one(grid, tx, machine, now, alone)
        if unit is None:
            break
        units.append(unit)
    idle = not units and not known and not tx.claimable_jobs()
    return ClaimReply(units=units, idle=idle)


def _trial_deaths(job: Job) -> int:
    """From this many deaths on, records run alone on their machine: if it dies once more, nothing
    else that it held ahead is blamed for it."""
    return max(1, spec_of(job).limits.attempts - 1)


def _has_trial(tx: Tx, machine: Machine) -> bool:
    for job_id, lease in tx.live_leases_of(machine.id):
        view = tx.ledger(job_id)
        # Each other machine on the same records may die on them too.
        deaths = view.span_at(lease.start).attempts
        deaths += len(view.live_leases_over(lease.start, lease.end)) - 1
        job = tx.job(job_id) if deaths else None
        if job is not None and deaths >= _trial_deaths(job):
            return True
    return False


def _claim_one(grid: Grid, tx: Tx, machine: Machine, now: float, alone: bool) -> Unit | None:
    jobs = {job.id: job for job in tx.claimable_jobs()}
    turn = fairness.order(
        (fairness.Candidate(j.id, j.priority, j.live_leases, j.created_at) for j in jobs.values()),
        grid.last_served,
    )
    for job_id in turn:
        if jobs[job_id].pending:
            lease = _lease_pending(grid, tx, jobs[job_id], machine, now, alone)
            if lease is not None:
                grid.last_served[job_id] = now
                return make_unit(grid, tx, jobs[job_id], lease)
    for job_id in turn:
        lease = _lease_duplicate(grid, tx, jobs[job_id], machine, now, alone)
        if lease is not None:
            return make_unit(grid, tx, jobs[job_id], lease)
    return None


def _lease_pending(
    grid: Grid, tx: Tx, job: Job, machine: Machine, now: float, alone: bool
) -> Lease | None:
    rate = tx.rate(machine.id, job.id)
    measured = rate if rate is not None and rate.last_size else None
    size = sizing.unit_size(
        records_per_s=measured.records_per_s if measured else None,
        last_size=measured.last_size if measured else None,
        others_records_per_s=[] if measured else _known_rates(tx, job),
        pending=job.pending,
        slots=job.live_leases + 1,
        unit_s=spec_of(job).policy.unit_seconds,
    )
    got = ledger.claim(
        tx.ledger(job.id),
        machine=machine.id,
        lease_id=f"{grid.new_id()}.{job.generation}",
        now=now,
        lease_s=grid.settings.lease_s,
        size=size,
        continue_at=rate.last_end if rate else None,
        expected_s=_queued_s(tx, machine, now) + size / measured.records_per_s if measured else 0.0,
        deaths_below=None if alone else _trial_deaths(job),
    )
    if got is None:
        return None
    lease, edit = got
    tx.apply(job.id, edit)
    # The next claim carries on behind this one, committed or not.
    known = rate or Rate(machine.id, job.id, 0.0, 0, 0)
    tx.put_rate(replace(known, last_end=lease.end))
    return lease


def _known_rates(tx: Tx, job: Job) -> list[float]:
    """Records per second of all machines that have finished a unit of this job."""
    return [rate.records_per_s for rate in tx.rates_of_job(job.id) if rate.last_size]


def _queued_s(tx: Tx, machine: Machine, now: float) -> float:
    """How long a unit claimed ahead waits until the machine is through with those before it."""
    held = [lease for _, lease in tx.live_leases_of(machine.id)]
    if len(held) < int(machine.facts.get("slots", 1)):
        return 0.0
    return max(0.0, max(lease.claimed_at + lease.expected_s for lease in held) - now)


def _lease_duplicate(
    grid: Grid, tx: Tx, job: Job, machine: Machine, now: float, alone: bool
) -> Lease | None:
    rate = tx.rate(machine.id, job.id)
    others = sorted(_known_rates(tx, job))
    typical = others[len(others) // 2] if others else None
    guess = rate.records_per_s if rate is not None and rate.last_size else typical
    got = ledger.duplicate(
        tx.ledger(job.id),
        machine=machine.id,
        lease_id=f"{grid.new_id()}.{job.generation}",
        now=now,
        lease_s=grid.settings.lease_s,
        silent_s=grid.settings.silent_s,
        records_per_s=guess,
    )
    if got is None:
        return None
    lease, edit = got
    deaths = tx.ledger(job.id).span_at(lease.start).attempts + 1  # the other one may die as well
    if not alone and deaths >= _trial_deaths(job):
        return None
    tx.apply(job.id, edit)
    text = f"records {lease.start} to {lease.end - 1} are late: also given to {machine.name}"
    story(tx, now, job, "duplicated", text, start=lease.start, end=lease.end)
    return lease


def _note_session(grid: Grid, tx: Tx, machine: Machine, request: ClaimRequest, now: float) -> None:
    """A new session means that the machine's worker started again: its old units are free."""
    if machine.session == request.session_id:
        _note_seen(tx, machine, now)
        return
    for job_id, lease in tx.live_leases_of(machine.id):
        give_back(grid, tx, job_id, lease, now, fault=True, ended=LeaseState.EXPIRED)
    facts = {**machine.facts, "slots": request.slots}
    tx.touch_machine(
        machine.id, session=request.session_id, last_seen=now, state="working", facts=facts
    )
    tx.add_event(now, machine.id, "worker_started", f"a worker started on {machine.name}")


def _note_seen(tx: Tx, machine: Machine, now: float) -> None:
    if machine.state != "working" or now - machine.last_seen > SEEN_EVERY_S:
        tx.touch_machine(machine.id, last_seen=now, state="working")


def renew(grid: Grid, tx: Tx, machine: Machine, request: RenewRequest, now: float) -> RenewReply:
    """Push deadlines; leases that ended in the meantime live again if their records are free."""
    lease_s = grid.settings.lease_s
    asked = [one.lease_id for one in request.leases]
    alive = set(tx.touch_leases(asked, machine.id, now, now + lease_s))
    for lease_id in asked:
        if lease_id not in alive and _revive(tx, machine, lease_id, now, lease_s):
            alive.add(lease_id)
    if len(grid.progress) > MOST_PROGRESS:
        grid.progress.clear()  # the next renewals fill it again
    for one in request.leases:
        if one.lease_id in alive:
            grid.progress[one.lease_id] = one.records_done
    _note_seen(tx, machine, now)
    return RenewReply(
        alive=[i for i in asked if i in alive], lost=[i for i in asked if i not in alive]
    )


def _revive(tx: Tx, machine: Machine, lease_id: str, now: float, lease_s: float) -> bool:
    owner = tx.lease_owner(lease_id)
    if owner is None or owner[1].machine != machine.id:
        return False
    job = tx.job(owner[0])
    if job is None or job.state in ENDED or _is_outdated(job, owner[1]):
        return False
    edit = ledger.revive(tx.ledger(job.id), lease_id=lease_id, now=now, lease_s=lease_s)
    if edit is None:
        return False
    tx.apply(job.id, edit)
    return True


def _is_outdated(job: Job, lease: Lease) -> bool:
    """Did this lease end before a retry? The code that it was for may be another one now."""
    ended = lease.state in (LeaseState.EXPIRED, LeaseState.RELEASED)
    return ended and lease.id.rpartition(".")[2] != str(job.generation)


def commit(grid: Grid, tx: Tx, machine: Machine, request: CommitRequest, now: float) -> CommitReply:
    """Commit a unit (first one wins) and, in the same transaction, claim the next."""
    reply = _commit(grid, tx, machine, request, now)
    if request.claim is not None:
        fresh = tx.machine(machine.id) or machine
        reply.next = claim(grid, tx, fresh, request.claim, now)
    return reply


def _commit(
    grid: Grid, tx: Tx, machine: Machine, request: CommitRequest, now: float
) -> CommitReply:
    job = _job_of_lease(tx, machine, request.lease_id, request.job_id)
    if job.state is JobState.CANCELLED:
        return CommitReply(outcome="refused", reason="the job was cancelled")
    owner = tx.lease_owner(request.lease_id)
    if owner is not None and _is_outdated(job, owner[1]):
        return CommitReply(outcome="refused", reason="the lease ended before the job was retried")
    _check_part(request)
    digest = commit_digest(request)
    earlier = tx.part_of_lease(request.lease_id)
    result = ledger.commit(
        tx.ledger(job.id),
        lease_id=request.lease_id,
        start=request.start,
        end=request.end,
        quarantined=[bad.record for bad in request.quarantined],
        digest=digest,
        committed_digest=earlier.digest if earlier else None,
    )
    grid.progress.pop(request.lease_id, None)
    if result.outcome is not CommitOutcome.COMMITTED:
        return CommitReply(outcome=OUTCOMES[result.outcome], reason=result.reason)
    tx.apply(job.id, result.edit)
    tx.add_part(_part(job, machine, request, digest, now))
    tx.put_quarantined([_quarantined(job, machine, bad, now) for bad in request.quarantined])
    lifecycle.note_columns(tx, job, request.start, request.blocks)
    _learn_rate(tx, machine, job, request)
    lifecycle.after_progress(grid, tx, job.id, now)
    return CommitReply(outcome="committed")


def _job_of_lease(tx: Tx, machine: Machine, lease_id: str, job_id: str) -> Job:
    owner = tx.lease_owner(lease_id)
    if owner is None or owner[0] != job_id:
        raise NotFoundError(f"There is no lease {lease_id} for job {job_id}.")
    if owner[1].machine != machine.id:
        raise ForbiddenError("This lease belongs to another machine.")
    job = tx.job(job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id}.")
    return job


def _check_part(request: CommitRequest) -> None:
    last = request.start - 1
    for bad in request.quarantined:
        if not last < bad.record < request.end:
            raise InputError(
                f"The commit lists quarantined record {bad.record} out of order "
                f"or outside {request.start} to {request.end - 1}."
            )
        if bad.block > len(request.blocks):
            raise InputError(f"Record {bad.record} points behind the last block of the commit.")
        last = bad.record


def commit_digest(request: CommitRequest) -> str:
    """What makes two commits of one lease the same: their range, blocks and bad records."""
    content = request.model_dump_json(include={"start", "end", "blocks", "quarantined"})
    return hashlib.sha256(content.encode()).hexdigest()


def _part(job: Job, machine: Machine, request: CommitRequest, digest: str, now: float) -> Part:
    return Part(
        job=job.id,
        start=request.start,
        end=request.end,
        generation=job.generation,
        lease_id=request.lease_id,
        machine=machine.id,
        digest=digest,
        bundle=job.bundle,
        blocks=tuple(request.blocks),
        gaps=tuple(
            Gap(bad.record, bad.block, bad.offset, bad.rows_before) for bad in request.quarantined
        ),
        records_out=sum(block.records for block in request.blocks),
        compute_s=request.compute_s,
        committed_at=now,
    )


def _quarantined(job: Job, machine: Machine, bad: QuarantinedRecord, now: float) -> Quarantined:
    return Quarantined(
        job.id, bad.record, bad.error, bad.attempts, bad.raw_bytes(), bad.raw_cut, machine.id, now
    )


def _learn_rate(tx: Tx, machine: Machine, job: Job, request: CommitRequest) -> None:
    rate = tx.rate(machine.id, job.id)
    size = request.end - request.start
    before = rate.records_per_s if rate is not None and rate.last_size else None
    speed = sizing.updated_rate(before, size, request.compute_s)
    last_end = rate.last_end if rate else request.end
    tx.put_rate(Rate(machine.id, job.id, speed, size, last_end))


def release(
    grid: Grid, tx: Tx, machine: Machine, request: ReleaseRequest, now: float
) -> RenewReply:
    """Give units back at once. Units of other machines are left alone."""
    gone: list[str] = []
    for lease_id in request.leases:
        owner = tx.lease_owner(lease_id)
        if owner is not None and owner[1].machine == machine.id:
            give_back(grid, tx, *owner, now, fault=request.fault, ended=LeaseState.RELEASED)
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
    give_back(grid, tx, job_id, lease, now, fault=False, ended=LeaseState.RELEASED)
    job = tx.job(job_id)
    if job is not None and job.state is JobState.RUNNING:
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


def lease_for_read(tx: Tx, machine: Machine, sha256: str) -> None:
    """A worker may read only what its live leases need. Raises ForbiddenError."""
    if not tx.lease_may_read(machine.id, sha256):
        raise ForbiddenError(
            "This object does not belong to any unit that this machine works on now.",
            fix="Ask for a new unit.",
        )
