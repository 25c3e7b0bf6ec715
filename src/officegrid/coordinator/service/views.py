"""What people see: jobs with rate and estimated end, machines, and why."""

from __future__ import annotations

from officegrid.coordinator.service.context import Grid
from officegrid.coordinator.service.lifecycle import next_start_at, quarantine_allowance
from officegrid.coordinator.service.units import spec_of
from officegrid.core.errors import NotFoundError
from officegrid.core.jobs import JobState
from officegrid.core.why import GridFacts, JobFacts, why_job, why_machine
from officegrid.storage.api import Job, Machine, Tx
from officegrid.wire.jobs import JobView, MachineView

OFFLINE_STATES = frozenset({"joined", "stopped", "silent", "revoked"})


def find_job(tx: Tx, name_or_id: str) -> Job:
    """A job by id, or the newest of that name."""
    job = tx.job(name_or_id)
    if job is None:
        named = tx.jobs(name=name_or_id, limit=1)
        if not named:
            raise NotFoundError(f"There is no job {name_or_id!r}.", fix="See `officegrid jobs`.")
        job = named[0]
    return job


def job_view(grid: Grid, tx: Tx, job: Job, *, with_spec: bool = False) -> JobView:
    leases = tx.ledger(job.id).live_leases() if job.live_leases else []
    running_done, seen = 0, set()
    for lease in leases:
        if lease.start not in seen:
            seen.add(lease.start)
            running_done += min(grid.progress.get(lease.id, 0), lease.length)
    rates = {rate.machine: rate.records_per_s for rate in tx.rates_of_job(job.id)}
    # Leases waiting on a worker do not add speed: count each machine's slots, not its leases.
    slots = _slots(tx, {lease.machine for lease in leases})
    speed = sum(rates.get(machine, 0.0) * count for machine, count in slots.items())
    left = job.pending + job.leased - running_done
    output = job.spec
    return JobView(
        id=job.id, name=job.name, state=job.state, reason=job.reason, priority=job.priority,
        total=job.total, pending=job.pending, leased=job.leased, done=job.done,
        quarantined=job.quarantined, records_out=job.records_out, units=job.units,
        units_running=job.live_leases, running_done=running_done,
        records_per_s=round(speed, 1),
        eta_s=left / speed if speed > 0 and job.state is JobState.RUNNING else None,
        generation=job.generation, created_at=job.created_at, started_at=job.started_at,
        ended_at=job.ended_at, submitter=job.submitter, dataset=job.dataset, bundle=job.bundle,
        output_path=output["output_path"], output_file_format=output["output_file_format"],
        schedule=output["policy"]["schedule"],
        next_start_at=next_start_at(tx, job) if job.state is JobState.SCHEDULED else None,
        template=job.template,
        spec=job.spec if with_spec else None,
    )  # fmt: skip


def _slots(tx: Tx, machines: set[str]) -> dict[str, int]:
    counts = {}
    for machine_id in machines:
        machine = tx.machine(machine_id)
        counts[machine_id] = int(machine.facts.get("slots", 1)) if machine else 1
    return counts


def is_online(grid: Grid, machine: Machine, now: float) -> bool:
    return (
        not machine.revoked
        and machine.state not in OFFLINE_STATES
        and now - machine.last_seen < grid.settings.online_s
    )


def machine_view(grid: Grid, tx: Tx, machine: Machine, now: float) -> MachineView:
    return MachineView(
        id=machine.id, name=machine.name, role=machine.role, state=machine.state,
        last_seen=machine.last_seen, created_at=machine.created_at,
        online=is_online(grid, machine, now), revoked=machine.revoked,
        units_running=len(tx.live_leases_of(machine.id)), facts=machine.facts,
    )  # fmt: skip


def find_subject(tx: Tx, text: str) -> Job | Machine:
    """A job or a machine, by id or by name; a job's name goes first."""
    machine = tx.machine(text)
    if machine is not None:
        return machine
    try:
        return find_job(tx, text)
    except NotFoundError:
        named = [machine for machine in tx.machines() if machine.name == text]
        if not named:
            raise NotFoundError(
                f"There is no job or machine {text!r}.",
                fix="See `officegrid jobs` and `officegrid machines`.",
            ) from None
        return named[0]


def why(grid: Grid, tx: Tx, subject: str, now: float) -> tuple[str, list[str]]:
    """(id, sentences) for a job or a machine."""
    found = find_subject(tx, subject)
    if isinstance(found, Machine):
        machine = found
        return machine.id, why_machine(
            machine.name, machine.role, revoked=machine.revoked,
            online=is_online(grid, machine, now), last_seen_ago_s=now - machine.last_seen,
            state=machine.state, units=len(tx.live_leases_of(machine.id)),
            claimable_jobs=len(tx.claimable_jobs()),
        )  # fmt: skip
    job = found
    workers = [m for m in tx.machines() if m.role in ("worker", "agent") and not m.revoked]
    busier = [
        other.name for other in tx.claimable_jobs()
        if other.priority > job.priority and other.pending
    ]  # fmt: skip
    next_start = next_start_at(tx, job) if job.state is JobState.SCHEDULED else None
    facts = JobFacts(
        id=job.id, name=job.name, state=job.state, reason=job.reason, total=job.total,
        pending=job.pending, leased=job.leased, done=job.done, quarantined=job.quarantined,
        quarantine_allowance=quarantine_allowance(job), live_leases=job.live_leases,
        priority=spec_of(job).policy.priority,
        next_start_in_s=next_start - now if next_start else None,
    )  # fmt: skip
    online = sum(is_online(grid, m, now) for m in workers)
    return job.id, why_job(facts, GridFacts(len(workers), online, busier))
