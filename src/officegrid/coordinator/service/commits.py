"""Committing units and keeping their leases alive."""

from __future__ import annotations

import hashlib
from typing import Literal

from officegrid.coordinator.service import lifecycle, pins, troubles
from officegrid.coordinator.service.claims import claim
from officegrid.coordinator.service.context import Grid, note_seen
from officegrid.coordinator.service.returns import is_outdated, revive
from officegrid.core import leaseid, ledger, sizing
from officegrid.core.errors import ForbiddenError, InputError, NotFoundError
from officegrid.core.jobs import JobState
from officegrid.core.model import CommitOutcome, Lease, LeaseState
from officegrid.storage.api import Gap, Job, Machine, Part, Quarantined, Rate, Tx
from officegrid.wire.work import (
    CommitReply,
    CommitRequest,
    QuarantinedRecord,
    RenewReply,
    RenewRequest,
)

OUTCOMES: dict[CommitOutcome, Literal["committed", "repeated", "refused"]] = {
    CommitOutcome.COMMITTED: "committed",
    CommitOutcome.REPEATED: "repeated",
    CommitOutcome.REFUSED: "refused",
}
MOST_PROGRESS = 20_000


def renew(grid: Grid, tx: Tx, machine: Machine, request: RenewRequest, now: float) -> RenewReply:
    """Push deadlines; leases that ended in the meantime live again if their records are free."""
    lease_s = grid.settings.lease_s
    asked = [one.lease_id for one in request.leases]
    alive = set(tx.touch_leases(asked, machine.id, now, now + lease_s))
    for lease_id in asked:
        if lease_id not in alive and revive(tx, machine, lease_id, now, lease_s):
            alive.add(lease_id)
    if len(grid.progress) > MOST_PROGRESS:
        grid.progress.clear()  # the next renewals fill it again
    for one in request.leases:
        if one.lease_id in alive:
            grid.progress[one.lease_id] = one.records_done
    note_seen(tx, machine, now)
    return RenewReply(
        alive=[i for i in asked if i in alive], lost=[i for i in asked if i not in alive]
    )


def commit(grid: Grid, tx: Tx, machine: Machine, request: CommitRequest, now: float) -> CommitReply:
    """Commit a unit (first one wins) and, in the same transaction, claim the next."""
    reply = _commit(grid, tx, machine, request, now)
    if request.claim is not None and request.claim.session_id == machine.session:
        reply.next = claim(grid, tx, machine, request.claim, now)
    return reply


def _commit(
    grid: Grid, tx: Tx, machine: Machine, request: CommitRequest, now: float
) -> CommitReply:
    job, lease = _leased_job(tx, machine, request.lease_id, request.job_id)
    if job.state is JobState.CANCELLED:
        return CommitReply(outcome="refused", reason="the job was cancelled")
    if is_outdated(job, lease):
        return CommitReply(outcome="refused", reason="the lease ended before the job was retried")
    bundle = pins.pin_of(tx, job, leaseid.pin_of(lease.id)).bundle
    if request.bundle is not None and request.bundle != bundle:
        return CommitReply(outcome="refused", reason=_other_bundle(bundle, request.bundle))
    _check_part(request)
    digest = commit_digest(request)
    committed = lease.state is LeaseState.COMMITTED
    earlier = tx.part_of_lease(request.lease_id) if committed else None
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
    troubles.over(grid, machine, job.id, lease.claimed_at)
    tx.apply(job.id, result.edit)
    tx.add_part(_part(job, machine, bundle, request, digest, now))
    tx.put_quarantined([_quarantined(job, machine, bad, now) for bad in request.quarantined])
    lifecycle.note_columns(tx, job, request.start, request.blocks)
    _learn_rate(tx, machine, job, request)
    lifecycle.after_progress(grid, tx, job.id, now)
    return CommitReply(outcome="committed")


def _leased_job(tx: Tx, machine: Machine, lease_id: str, job_id: str) -> tuple[Job, Lease]:
    owner = tx.lease_owner(lease_id)
    if owner is None or owner[0] != job_id:
        raise NotFoundError(f"There is no lease {lease_id} for job {job_id}.")
    if owner[1].machine != machine.id:
        raise ForbiddenError("This lease belongs to another machine.")
    job = tx.job(job_id)
    if job is None:
        raise NotFoundError(f"There is no job {job_id}.")
    return job, owner[1]


def _other_bundle(wanted: str | None, ran: str) -> str:
    due = "no bundle" if wanted is None else f"bundle {wanted[:12]}…"
    return f"bundle {ran[:12]}… ran, and this unit was for {due}"


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


def _part(
    job: Job, machine: Machine, bundle: str | None, request: CommitRequest, digest: str, now: float
) -> Part:
    return Part(
        job=job.id,
        start=request.start,
        end=request.end,
        generation=job.generation,
        lease_id=request.lease_id,
        machine=machine.id,
        digest=digest,
        bundle=bundle,
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


def lease_for_read(tx: Tx, machine: Machine, sha256: str) -> None:
    """A worker may read only what its live leases need. Raises ForbiddenError."""
    if not tx.lease_may_read(machine.id, sha256):
        raise ForbiddenError(
            "This object does not belong to any unit that this machine works on now.",
            fix="Ask for a new unit.",
        )
