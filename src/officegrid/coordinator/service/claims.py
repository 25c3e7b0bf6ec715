"""Claiming units: which job, which records, how many, and when to start over a late unit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from officegrid.coordinator.service import identity, pins, updates
from officegrid.coordinator.service.context import Grid, note_seen, story
from officegrid.coordinator.service.returns import died_on, give_back, revive
from officegrid.coordinator.service.units import make_unit, spec_of
from officegrid.core import fairness, leaseid, ledger, sizing
from officegrid.core.errors import ConflictError
from officegrid.core.model import Lease, LeaseState
from officegrid.storage.api import Job, Machine, Rate, Tx
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    Unit,
)

PAST_SESSIONS = 20  # of one machine, remembered to be refused
TRIAL_WAIT_S = 600.0
LOST_REPLY_S = 15.0  # a lease the worker does not know of after this long was lost on the way


@dataclass
class _Asking:
    """The machine that asks, and the leases it holds; `alone`: none at all, as it and we know."""

    machine: Machine
    now: float
    held: list[tuple[str, Lease]]
    alone: bool
    knows_data: bool

    def queued_s(self) -> float:
        """How long a unit claimed ahead waits until the machine is through with those before."""
        if len(self.held) < int(self.machine.facts.get("slots", 1)):
            return 0.0
        last = max(lease.claimed_at + lease.expected_s for _, lease in self.held)
        return max(0.0, last - self.now)

    def took(self, job: Job, lease: Lease) -> None:
        self.held.append((job.id, lease))
        self.alone = False


def claim(grid: Grid, tx: Tx, machine: Machine, request: ClaimRequest, now: float) -> ClaimReply:
    """Give the machine up to `request.units` units, fairly over jobs."""
    _note_session(grid, tx, machine, request, now)
    known = set(request.held_leases)
    lost_s = min(LOST_REPLY_S, grid.settings.lease_s / 2)
    held = []
    for job_id, lease in tx.live_leases_of(machine.id):
        if lease.id not in known and now - lease.claimed_at > lost_s:
            give_back(grid, tx, job_id, lease, now, fault=False, ended=LeaseState.RELEASED)
        else:
            held.append((job_id, lease))
    # Back from a suspension: its own units first, or it would be given their records anew.
    for lease_id in sorted(known - {lease.id for _, lease in held}):
        if revive(tx, machine, lease_id, now, grid.settings.lease_s):
            owner = tx.lease_owner(lease_id)
            held += [] if owner is None else [owner]
    updates.note(tx, machine, request, now)
    update, is_below = updates.order(tx, machine, request)
    if is_below or is_drained(tx, machine):
        is_ordered = update is not None and (update.digest is not None or update.home)
        return ClaimReply(units=[], idle=not known and not is_ordered, update=update)
    asking = _Asking(
        machine, now, held, alone=not known and not held, knows_data=bool(request.version)
    )
    room = request.slots * grid.settings.leases_per_slot - len(known)
    units: list[Unit] = []
    while len(units) < min(request.units, room) and not _has_trial(tx, asking):
        unit = _claim_one(grid, tx, asking)
        if unit is None:
            break
        units.append(unit)
    idle = not units and not known and not tx.claimable_jobs()
    return ClaimReply(units=units, idle=idle, update=update)


def is_drained(tx: Tx, machine: Machine) -> bool:
    """Has an admin taken the machine, or the desktop it runs on, out of service?"""
    if machine.drain or machine.host is None:
        return machine.drain
    host = tx.machine(machine.host)
    return host is not None and host.drain


def _trial_deaths(job: Job) -> int:
    """From this many deaths on, records run alone on their machine: if it dies once more, nothing
    else that it held ahead is blamed for it."""
    return max(1, spec_of(job).limits.attempts - 1)


def _has_trial(tx: Tx, asking: _Asking) -> bool:
    for job_id, lease in asking.held:
        view = tx.ledger(job_id)
        # Each other machine on the same records may die on them too.
        deaths = view.span_at(lease.start).attempts
        deaths += len(view.live_leases_over(lease.start, lease.end)) - 1
        job = tx.job(job_id) if deaths else None
        if job is not None and deaths >= _trial_deaths(job):
            return True
    return False


def _claim_one(grid: Grid, tx: Tx, asking: _Asking) -> Unit | None:
    jobs = {
        job.id: job for job in tx.claimable_jobs()
        # Workers that do not say their version are of before reference data: they would run the
        # program without it.
        if asking.knows_data or not spec_of(job).data
    }  # fmt: skip
    turn = fairness.order(
        (fairness.Candidate(j.id, j.priority, j.live_leases, j.created_at) for j in jobs.values()),
        grid.last_served,
    )
    for job_id in turn:
        if jobs[job_id].pending:
            lease = _lease_pending(grid, tx, jobs[job_id], asking)
            if lease is not None:
                if grid.trial_for.get(job_id, ("", 0.0))[0] == asking.machine.id:
                    del grid.trial_for[job_id]
                grid.last_served[job_id] = asking.now
                return make_unit(grid, tx, jobs[job_id], lease)
            if _must_run_empty(grid, job_id, asking):
                return None
    for job_id in turn:
        lease = _lease_duplicate(grid, tx, jobs[job_id], asking)
        if lease is not None:
            return make_unit(grid, tx, jobs[job_id], lease)
    return None


def _must_run_empty(grid: Grid, job_id: str, asking: _Asking) -> bool:
    """One machine per job takes nothing more until it is idle, so that records which must run
    alone find a machine for them however busy the grid is."""
    chosen, since = grid.trial_for.get(job_id, ("", 0.0))
    if not chosen or not 0 <= asking.now - since < TRIAL_WAIT_S:
        chosen = asking.machine.id
        grid.trial_for[job_id] = (chosen, asking.now)
    return chosen == asking.machine.id


def _lease_pending(grid: Grid, tx: Tx, job: Job, asking: _Asking) -> Lease | None:
    machine, now = asking.machine, asking.now
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
        lease_id=_new_lease_id(grid, tx, job),
        now=now,
        lease_s=grid.settings.lease_s,
        size=size,
        continue_at=rate.last_end if rate else None,
        expected_s=asking.queued_s() + size / measured.records_per_s if measured else 0.0,
        deaths_below=None if asking.alone else _trial_deaths(job),
    )
    if got is None:
        return None
    lease, edit = got
    tx.apply(job.id, edit)
    asking.took(job, lease)
    # The next claim carries on behind this one, committed or not.
    known = rate or Rate(machine.id, job.id, 0.0, 0, 0)
    tx.put_rate(replace(known, last_end=lease.end))
    return lease


def _new_lease_id(grid: Grid, tx: Tx, job: Job) -> str:
    return leaseid.lease_id(grid.new_id(), pins.current(tx, job).pin, job.generation)


def _known_rates(tx: Tx, job: Job) -> list[float]:
    """Records per second of all machines that have finished a unit of this job."""
    return [rate.records_per_s for rate in tx.rates_of_job(job.id) if rate.last_size]


def _lease_duplicate(grid: Grid, tx: Tx, job: Job, asking: _Asking) -> Lease | None:
    machine, now = asking.machine, asking.now
    rate = tx.rate(machine.id, job.id)
    others = sorted(_known_rates(tx, job))
    typical = others[len(others) // 2] if others else None
    guess = rate.records_per_s if rate is not None and rate.last_size else typical
    got = ledger.duplicate(
        tx.ledger(job.id),
        machine=machine.id,
        lease_id=_new_lease_id(grid, tx, job),
        now=now,
        lease_s=grid.settings.lease_s,
        silent_s=grid.settings.silent_s,
        records_per_s=guess,
    )
    if got is None:
        return None
    lease, edit = got
    deaths = tx.ledger(job.id).span_at(lease.start).attempts + 1  # the other one may die as well
    if not asking.alone and deaths >= _trial_deaths(job):
        return None
    tx.apply(job.id, edit)
    asking.took(job, lease)
    text = f"records {lease.start} to {lease.end - 1} are late: also given to {machine.name}"
    story(tx, now, job, "duplicated", text, start=lease.start, end=lease.end)
    return lease


def _note_session(grid: Grid, tx: Tx, machine: Machine, request: ClaimRequest, now: float) -> None:
    """A new session means that the machine's worker started again: its old units are free.
    Raises ConflictError ("cloned", "session_replaced"), which changes nothing."""
    if machine.session == request.session_id:
        note_seen(tx, machine, now)
        return
    identity.check_hardware(machine, request.hardware_id)
    # A worker that was replaced, a request of a dead one still under way, or a copied machine:
    # taking turns would end one another's units for ever.
    key = f"sessions:{machine.id}"
    past: list[str] = json.loads(tx.setting(key) or "[]")
    if request.session_id in past:
        raise ConflictError(
            "Another worker has taken this machine's place on the grid.",
            "It was started later with the same identity, perhaps on a copy of this machine.",
            "Join every machine with a code of its own: `officegrid join URL --code CODE`.",
            code="session_replaced",
        )
    if machine.session:
        tx.put_setting(key, json.dumps([*past, machine.session][-PAST_SESSIONS:]))
    # Where two take turns, it is not the records that end each other's units.
    shared = identity.is_shared(tx, machine, now)
    for job_id, lease in tx.live_leases_of(machine.id):
        blame = not shared and died_on(grid, lease)
        give_back(grid, tx, job_id, lease, now, fault=blame, ended=LeaseState.EXPIRED)
    facts = {**machine.facts, "slots": request.slots}
    if request.hardware_id:
        facts["hardware_id"] = request.hardware_id
    tx.touch_machine(
        machine.id, session=request.session_id, last_seen=now, state="working", facts=facts
    )
    tx.add_event(now, machine.id, "worker_started", f"a worker started on {machine.name}")
