"""What one universe is like: drawn from its seed, so that no two are alike.

Every kind of fault is on in some universes and off in others (swarm testing): a fault that is
everywhere hides what only its absence would show.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace

RENEWALS_MAX = 1200  # what one universe may spend on keeping leases, machines times rounds
RECORDS_MAX = 3000


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job to submit. Records in `killers` bring down any machine that works on them; those in
    `bad` are set aside by the worker. With `fixed_by_retry` newer code cures both."""

    name: str
    records: int
    block_records: int
    unit_s: float
    attempts: int
    priority: int
    quarantine_limit: str
    killers: frozenset[int]
    bad: frozenset[int]
    fixed_by_retry: bool
    submit_at_s: float
    input_job: str | None = None
    suspended_lease_s: float = 7200.0
    follows: bool = False
    """Switches to newer code while it runs."""


@dataclass(frozen=True, slots=True)
class Params:
    """Rates are shares of messages; counts are how often a fault happens in the first phase."""

    seed: int
    machines: int
    slots: int
    speed_records_s: float
    speed_spread: float
    lease_s: float
    faults_s: float
    jobs: tuple[JobPlan, ...]
    lost: float = 0.0
    duplicated: float = 0.0
    delayed: float = 0.0
    delay_s: float = 0.0
    worker_crashes: int = 0
    freezes: int = 0
    longest_freeze_s: float = 0.0
    users_back: int = 0
    clones: int = 0
    cuts: int = 0
    coordinator_crashes: int = 0
    clock_steps: int = 0
    clock_step_s: float = 0.0
    job_orders: int = 0
    pushes: int = 0
    """Newer versions of the code of jobs that follow it."""
    revocations: int = 0
    stubborn: bool = False
    """Workers go on with a unit although the coordinator said that its lease is lost."""

    @property
    def is_gentle(self) -> bool:
        """No machine dies or falls silent unless a killer record brings it down."""
        unkind = (
            self.lost, self.duplicated, self.delayed, self.worker_crashes, self.freezes,
            self.clones, self.cuts, self.coordinator_crashes, self.clock_steps, self.users_back,
        )  # fmt: skip
        return not any(unkind)

    def lines(self) -> list[str]:
        """One line per value, for a report."""
        found = []
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "jobs":
                found.append(f"{one.name} = {value!r}")
        for job in self.jobs:
            found.append(
                f"{job.name}: {job.records} records in blocks of {job.block_records}, "
                f"unit_s {job.unit_s}, attempts {job.attempts}, priority {job.priority}, "
                f"limit {job.quarantine_limit}, killers {sorted(job.killers)}, "
                f"{len(job.bad)} bad, fixed by retry {job.fixed_by_retry}, "
                f"suspended leases kept {job.suspended_lease_s:.0f} s, "
                f"follows newer code {job.follows}, "
                f"submitted at {job.submit_at_s:.1f} s"
                + (f", reads the output of {job.input_job}" if job.input_job else "")
            )
        return found


def draw(seed: int) -> Params:
    """The parameters of universe `seed`."""
    rng = random.Random(f"params-{seed}")
    machines = rng.choice([1, 1, 2, 2, 3, 3, 5, 8, 13, 25, 40])
    slots = rng.choice([1, 1, 1, 2])
    lease_s = rng.choice([5.0, 10.0, 30.0])
    longest_s = RENEWALS_MAX * lease_s / 3 / machines
    faults_s = min(rng.uniform(60.0, 900.0), longest_s)
    # Enough work that the faults fall into the middle of it.
    wanted = min(RECORDS_MAX, rng.choice([60, 300, 1000, 3000]))
    speed = max(0.3, wanted / (machines * slots * faults_s * rng.uniform(0.3, 1.2)))
    pushes, jobs = _draw_pushes(seed, _draw_jobs(rng, wanted, faults_s, speed))
    base = Params(
        seed=seed, machines=machines, slots=slots, speed_records_s=speed,
        speed_spread=rng.choice([0.0, 0.25, 0.5, 1.0]), lease_s=lease_s, faults_s=faults_s,
        jobs=jobs, pushes=pushes,
    )  # fmt: skip
    if rng.random() < 0.12:
        return base
    return _with_faults(rng, base)


def _draw_jobs(
    rng: random.Random, wanted: int, faults_s: float, speed: float
) -> tuple[JobPlan, ...]:
    count = rng.choice([1, 1, 2, 3, 4])
    plans: list[JobPlan] = []
    for number in range(count):
        records = max(1, int(wanted / count * rng.uniform(0.5, 1.5)))
        if rng.random() < 0.05:
            records = rng.choice([0, 1, 2])
        killers = rng.choice([0, 0, 0, 1, 1, 3])
        bad_share = rng.choice([0.0, 0.0, 0.01, 0.1])
        chained = number > 0 and rng.random() < 0.3
        plans.append(
            JobPlan(
                name=f"job-{number}",
                records=records,
                block_records=rng.choice([7, 64, 500]),
                # From one record at a time to a few hundred.
                unit_s=rng.choice([0.1, 0.5, 3.0, 10.0, 40.0]) / speed,
                attempts=rng.choice([1, 2, 3, 3]),
                priority=rng.choice([0, 0, 0, 5, -5]),
                quarantine_limit=rng.choice(["100%", "100%", "1%", "0"]),
                killers=frozenset(rng.randrange(records) for _ in range(killers if records else 0)),
                bad=frozenset(r for r in range(records) if rng.random() < bad_share),
                fixed_by_retry=rng.random() < 0.5,
                submit_at_s=0.0 if number == 0 else rng.uniform(0.0, faults_s),
                input_job=plans[number - 1].name if chained else None,
                suspended_lease_s=rng.choice([0.0, 60.0, 7200.0]),
            )
        )
    return tuple(plans)


def _draw_pushes(seed: int, jobs: tuple[JobPlan, ...]) -> tuple[int, tuple[JobPlan, ...]]:
    """With random numbers of its own, so that all else in a universe is as it was without."""
    rng = random.Random(f"pushes-{seed}")
    if rng.random() < 0.6:
        return 0, jobs
    return rng.randint(1, 8), tuple(replace(job, follows=rng.random() < 0.7) for job in jobs)


def _with_faults(rng: random.Random, base: Params) -> Params:
    def maybe(draw_one: float) -> float:
        return draw_one if rng.random() < 0.5 else 0.0

    def times(most: int) -> int:
        return rng.randint(1, most) if rng.random() < 0.5 else 0

    values = {
        "lost": maybe(rng.choice([0.01, 0.05, 0.2])),
        "duplicated": maybe(rng.choice([0.01, 0.05, 0.2])),
        "delayed": maybe(rng.choice([0.02, 0.1, 0.4])),
        "delay_s": rng.choice([1.0, base.lease_s, 4 * base.lease_s]),
        "worker_crashes": times(8),
        "freezes": times(8),
        "longest_freeze_s": rng.choice([2.0, 2 * base.lease_s, 3600.0, 3 * 86400.0]),
        "users_back": times(10),
        "clones": times(2),
        "cuts": times(4),
        "coordinator_crashes": times(6),
        "clock_steps": times(3),
        "clock_step_s": rng.choice([1.0, 60.0, 3600.0]),
        "job_orders": times(8),
        "revocations": times(1) if base.machines > 2 else 0,
        "stubborn": rng.random() < 0.3,
    }
    known = {one.name: getattr(base, one.name) for one in fields(base)}
    return Params(**{**known, **values})
