"""What people see: jobs with rate and estimated end, machines, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from officegrid.coordinator.service import (
    deliveries,
    desks,
    gitcode,
    identity,
    troubles,
    updates,
)
from officegrid.coordinator.service.context import Grid
from officegrid.coordinator.service.lifecycle import next_start_at, quarantine_allowance
from officegrid.coordinator.service.returns import RESTING
from officegrid.coordinator.service.units import spec_of
from officegrid.core import deskstats
from officegrid.core.errors import NotFoundError
from officegrid.core.jobs import JobState
from officegrid.core.roles import Role
from officegrid.core.why import GridFacts, JobFacts, why_job, why_machine
from officegrid.core.whydesk import DeskFacts, desk_state, why_desk
from officegrid.core.whyidentity import why_alarm
from officegrid.storage.api import Job, Machine, Tx
from officegrid.wire.agent import DeskStatus, DeskView, YieldTimes
from officegrid.wire.jobs import JobView, MachineView

OFFLINE_STATES = frozenset({"joined", "stopped", "silent", "revoked"})
REPORTS_MISSED = 3  # a desktop that has missed so many is silent


def find_job(tx: Tx, name_or_id: str) -> Job:
    """A job by id, or the newest of that name."""
    job = tx.job(name_or_id)
    if job is None:
        named = tx.jobs(name=name_or_id, limit=1)
        last = tx.events(name_or_id, limit=1, newest=True)
        if not named and last and last[0].kind == "removed":
            raise NotFoundError(f"There is no job {name_or_id!r} any more.", f"{last[0].text}.")
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
    spec, pin = spec_of(job), tx.pin(job.id)
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
        code_name=None if spec.code is None else spec.code.name,
        code_version=None if pin is None else pin.code_version,
        delivery=deliveries.view(tx, job),
        pins=0 if pin is None else pin.pin + 1,
        spec=job.spec if with_spec else None,
    )  # fmt: skip


def _slots(tx: Tx, machines: set[str]) -> dict[str, int]:
    counts = {}
    for machine_id in machines:
        machine = tx.machine(machine_id)
        counts[machine_id] = int(machine.facts.get("slots", 1)) if machine else 1
    return counts


def is_worker(machine: Machine) -> bool:
    """Does it process records? An agent that reports a desktop leaves that to the worker there."""
    return machine.role == Role.WORKER or (machine.role == Role.AGENT and not machine.status)


def is_online(grid: Grid, machine: Machine, now: float) -> bool:
    if machine.revoked:
        return False
    if machine.status:  # an agent: whatever it reports, it is there
        every_s = REPORTS_MISSED * max(1, grid.desks_counted[1]) / desks.REPORTS_PER_S
        return now - machine.last_seen < max(grid.settings.online_s, every_s)
    if machine.host is not None and machine.state in RESTING:
        return False  # its desktop has said so
    heard_s = now - machine.last_seen
    return machine.state not in OFFLINE_STATES and heard_s < grid.settings.online_s


def machine_view(grid: Grid, tx: Tx, machine: Machine, now: float) -> MachineView:
    return MachineView(
        id=machine.id, name=machine.name, role=machine.role, state=machine.state,
        last_seen=machine.last_seen, created_at=machine.created_at,
        online=is_online(grid, machine, now), revoked=machine.revoked,
        units_running=len(tx.live_leases_of(machine.id)), facts=machine.facts,
        host=machine.host, drain=machine.drain, desk=desk_view(grid, tx, machine, now),
        alarm=identity.words(tx, machine, now), cloned_from=machine.cloned_from,
        below_floor=updates.words(tx, machine),
    )  # fmt: skip


def desk_facts(grid: Grid, tx: Tx, agent: Machine, now: float) -> DeskFacts:
    """What is known of a desktop, by its agent."""
    known: dict[str, Any] = agent.status
    said: dict[str, Any] = known.get("report", {})
    worker = next((one for one in tx.machines_on(agent.id) if not one.revoked), None)
    held = [agent] if worker is None else [agent, worker]
    return DeskFacts(
        name=agent.name,
        heard_ago_s=max(0.0, now - known["at"]) if known else None,
        silent=not is_online(grid, agent, now), drain=agent.drain,
        decision=said.get("decision", ""), rule=said.get("rule", ""),
        sentence=said.get("sentence", ""), change=said.get("change", ""),
        numbers=said.get("numbers", {}), vm=said.get("vm", "unknown"),
        health=said.get("health", ""), health_sentence=said.get("health_sentence", ""),
        trouble=known.get("trouble", ""),
        worker=worker.name if worker else "",
        worker_heard_ago_s=max(0.0, now - worker.last_seen) if worker else 0.0,
        worker_online=worker is not None and is_online(grid, worker, now),
        units=sum(len(tx.live_leases_of(one.id)) for one in held),
        claimable_jobs=len(tx.claimable_jobs()),
        below_floor=bool(updates.stale_of(tx, worker or agent)),
        rests=troubles.rests(grid, worker or agent, now),
    )  # fmt: skip


def desk_view(grid: Grid, tx: Tx, agent: Machine, now: float) -> DeskView | None:
    """The desktop of this agent; None for every other machine."""
    if agent.role != Role.AGENT or agent.revoked:
        return None
    facts = desk_facts(grid, tx, agent, now)
    state, words = desk_state(facts)
    stats = deskstats.from_plain(agent.stats)
    said = agent.status.get("report")
    status = None if said is None else DeskStatus.model_validate(said)
    worker = next((one for one in tx.machines_on(agent.id) if not one.revoked), None)
    return DeskView(
        state=state, words=words, heard_ago_s=facts.heard_ago_s,
        since_s=None if status is None else status.since_s + (facts.heard_ago_s or 0.0),
        status=status, version=agent.status.get("version", ""),
        harvested_s=stats.harvested_s, interruptions=stats.interruptions, starts=stats.starts,
        units_released=stats.units_released, cpu_back=yield_times(stats.cpu_back_ms),
        memory_back=yield_times(stats.memory_back_ms),
        worker=worker.id if worker else None, worker_online=facts.worker_online,
        worker_units=facts.units,
    )  # fmt: skip


def yield_times(times_ms: Sequence[float]) -> YieldTimes | None:
    if not times_ms:
        return None
    return YieldTimes(
        count=len(times_ms),
        p50_ms=deskstats.percentile(times_ms, 0.5) or 0.0,
        p99_ms=deskstats.percentile(times_ms, 0.99) or 0.0,
        longest_ms=max(times_ms),
    )


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


def story_subject(tx: Tx, text: str) -> str:
    """Whose events are asked for: a job's, a machine's, those of floor and releases, or those of a
    name of code or data."""
    try:
        return find_subject(tx, text).id
    except NotFoundError:
        if text == updates.SUBJECT or tx.events(text, limit=1):
            return text
        raise


def _alarms(tx: Tx, machine: Machine, now: float) -> list[str]:
    """What is wrong with its identity, or with that of the worker in its VM."""
    sentences = []
    for one in [machine, *tx.machines_on(machine.id)]:
        alarm = identity.open_alarm(tx, one, now)
        if alarm is not None:
            sentences += why_alarm(one.name, one.role, alarm, now)
    return sentences


def _why_machine(grid: Grid, tx: Tx, machine: Machine, now: float) -> list[str]:
    if machine.role == Role.AGENT and not machine.revoked:
        return why_desk(desk_facts(grid, tx, machine, now))
    host = tx.machine(machine.host) if machine.host is not None else None
    if host is not None and not machine.revoked and not machine.drain:
        facts = desk_facts(grid, tx, host, now)
        online = is_online(grid, machine, now)
        if facts.drain or facts.decision != "run" or (facts.silent and not online):
            return [f"{machine.name} runs in a VM on {host.name}.", *why_desk(facts)]
    units = len(tx.live_leases_of(machine.id))
    idle = not (machine.revoked or machine.drain or units)
    said = updates.stale_of(tx, machine) or troubles.rests(grid, machine, now)
    if idle and is_online(grid, machine, now) and said:
        return []
    return why_machine(
        machine.name, machine.role, revoked=machine.revoked,
        online=is_online(grid, machine, now), last_seen_ago_s=now - machine.last_seen,
        state=machine.state, units=units,
        claimable_jobs=len(tx.claimable_jobs()), drained=machine.drain,
    )  # fmt: skip


def why(grid: Grid, tx: Tx, subject: str, now: float) -> tuple[str, list[str]]:
    """(id, sentences) for a job or a machine."""
    found = find_subject(tx, subject)
    if isinstance(found, Machine):
        about = [*_alarms(tx, found, now), *updates.why(tx, found)]
        about += troubles.why(grid, tx, found, now)
        return found.id, [*about, *_why_machine(grid, tx, found, now)]
    job = found
    workers = [m for m in tx.machines() if is_worker(m) and not m.revoked]
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
    online = [m for m in workers if is_online(grid, m, now)]
    fresh = [m for m in online if not updates.stale_of(tx, m)]
    stale = len(online) - len(fresh)
    desks = Counter[str](
        desk_state(desk_facts(grid, tx, m, now))[0]
        for m in tx.machines() if m.role == Role.AGENT and not m.revoked
    )  # fmt: skip
    resting = troubles.for_job(grid, tx, job, fresh, now)
    sentences = why_job(facts, GridFacts(len(workers), len(online), busier, desks, stale, resting))
    return job.id, [*sentences, *deliveries.why(tx, job), *gitcode.trouble_of(tx, job, now)]
