"""One universe: parameters, phases, verdict."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from officegrid.coordinator.service import desks, lifecycle, machines
from officegrid.core.errors import OfficeGridError
from officegrid.core.jobs import ENDED, JobState
from officegrid.storage.api import Dataset, Job, PlacedBlock, Tx
from officegrid.testing.simulator import checkers
from officegrid.testing.simulator.faults import Mischief
from officegrid.testing.simulator.network import Network
from officegrid.testing.simulator.params import JobPlan, Params, draw
from officegrid.testing.simulator.program import (
    LAYOUT,
    ObjectShelf,
    bundle_name,
    input_line,
)
from officegrid.testing.simulator.server import Server, Violation
from officegrid.testing.simulator.shadow import Shadow
from officegrid.testing.simulator.timeline import Chronicle, Timeline
from officegrid.testing.simulator.worker import Office, RecordTraits, SimWorker
from officegrid.wire.jobs import JobPolicy, JobSpec, ReleaseJobRequest
from officegrid.wire.work import Limits, OutputSpec, Program

CHECK_EVERY_FLUSHES = 60
STEPS_MAX = 400_000
PAGE_PARTS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a universe. `report` is empty when all is well."""

    seed: int
    report: str
    digest: str
    virtual_s: float
    steps: int
    records: int
    commits: int
    deaths: int

    @property
    def is_well(self) -> bool:
        return not self.report


@dataclass
class Universe:
    """Build it, then `run()`: raises Violation when anything is wrong."""

    params: Params
    echo: Callable[[str], None] | None = None
    plans: dict[str, JobPlan] = field(default_factory=dict)
    workers: list[SimWorker] = field(default_factory=list)
    phase: str = "faults"

    def __post_init__(self) -> None:
        params = self.params
        self.rng = random.Random(f"run-{params.seed}")
        self.timeline = Timeline()
        self.chronicle = Chronicle(self.timeline, self.echo)
        self.shadow = Shadow(self.chronicle)
        self.shelf = ObjectShelf()
        self.network = Network(
            self.timeline, self.rng, params.lost, params.duplicated, params.delayed, params.delay_s
        )
        self.server = Server(
            self.timeline, self.chronicle, self.rng, self.shelf, params.lease_s,
            self.shadow.observe,
        )  # fmt: skip
        self.server.on_restart = self.check_promises
        self.office = Office(
            self.timeline, self.chronicle, self.network, self.server, self.shelf, self.rng,
            self.traits, params.lease_s / 3, params.stubborn,
        )  # fmt: skip
        self.versions: dict[str, int] = {}
        self.started: set[str] = set()

    def traits(self, job_id: str, version: int) -> RecordTraits:
        plan = self.plans[job_id]
        if version > 0 and plan.fixed_by_retry:
            return RecordTraits(frozenset(), frozenset())
        return RecordTraits(plan.killers, plan.bad)

    # --- building

    def _join_machines(self) -> None:
        count = self.params.machines

        grid, now = self.server.grid, self.server.now()

        def join(tx: Tx) -> list[tuple[str, str]]:
            """Each desktop with its agent, then the worker in its VM: their machine ids."""
            machines.add_code(tx, "code", "agent", count, 3600.0, now)
            joined = []
            for number in range(count):
                agent = machines.join(
                    grid, tx, code_hash="code", token_hash=f"agent-{number}", name=f"pc-{number}",
                    facts={}, now=now,
                )  # fmt: skip
                desks.worker_code(tx, agent, f"code-{number}", now)
                worker = machines.join(
                    grid, tx, code_hash=f"code-{number}", token_hash=f"token-{number}",
                    name="localhost", facts={}, now=now,
                )  # fmt: skip
                joined.append((agent.id, worker.id))
            return joined

        for number, (agent_id, machine_id) in enumerate(self.server.write(join)):
            speed = self.params.speed_records_s * self.rng.lognormvariate(
                0.0, self.params.speed_spread
            )
            worker = SimWorker(
                self.office, f"pc-{number}", machine_id, self.params.slots, max(speed, 0.02),
                agent_id,
            )  # fmt: skip
            self.workers.append(worker)
            self.timeline.after(self.rng.uniform(0.0, 5.0), worker.start)

    def submit(self, plan: JobPlan) -> None:
        """Upload the job's data and create it, as a person does; kept trying by the caller."""
        known = {other.name for other in self.plans.values()}
        if not self.server.is_up or (plan.input_job and plan.input_job not in known):
            self.timeline.after(5.0, lambda: self.submit(plan))
            return
        lines = [input_line(plan.name, record) for record in range(plan.records)]
        dataset = None if plan.input_job else f"{len(self.plans):02x}".rjust(64, "d")

        def create(tx: Tx) -> Job:
            if dataset is not None:
                self._upload(tx, dataset, lines, plan)
            return lifecycle.create(self.server.grid, tx, _spec(plan, dataset), "ann", now)

        now = self.server.now()
        job = self.server.write(create)
        self.plans[job.id] = plan
        self.versions[job.id] = 0
        self.chronicle.note(f"{plan.name} is submitted as {job.id}")
        self._notice_starts()

    def _upload(self, tx: Tx, dataset: str, lines: list[bytes], plan: JobPlan) -> None:
        placed = []
        for start in range(0, len(lines), plan.block_records):
            piece = lines[start : start + plan.block_records]
            placed.append(PlacedBlock(start, self.shelf.put(b"".join(piece), len(piece))))
        size = sum(map(len, lines))
        tx.add_dataset(
            Dataset(dataset, LAYOUT, len(lines), size, len(placed), plan.name, self.server.now()),
            placed,
        )

    def _notice_starts(self) -> None:
        """Jobs that have started: from now on their records are watched."""

        def look(tx: Tx) -> list[tuple[str, list[bytes]]]:
            found = []
            for job in tx.jobs():
                if job.id in self.shadow.jobs or job.started_at is None or job.dataset is None:
                    continue
                blocks = tx.blocks_over(job.dataset, 0, job.total)
                lines = [line for block in blocks for line in self.shelf.lines(block.slice)]
                if len(lines) != job.total:
                    raise Violation(f"{job.id} has {job.total} records and {len(lines)} lines.")
                found.append((job.id, lines))
            return found

        for job_id, lines in self.server.storage.read(look):
            self.shadow.add_job(job_id, self.plans[job_id].name, lines)
            self.chronicle.note(f"{job_id} starts with {len(lines)} records")

    # --- running

    def run(self) -> None:
        try:
            self._join_machines()
            for plan in self.params.jobs:
                self.timeline.after(plan.submit_at_s, lambda plan=plan: self.submit(plan))  # type: ignore[misc]
            mischief = Mischief(self)
            mischief.plan()
            self._advance(lambda: self.timeline.now >= self.params.faults_s)
            self.phase = "heal"
            self.chronicle.note("the faults stop")
            mischief.heal()
            self._finish_everything()
            self.phase = "late"
            mischief.thaw_all()
            self._advance_by(4 * self.params.lease_s)
            self.check_promises()
            self.server.storage.read(
                lambda tx: checkers.check_output(tx, self.shadow, self.shelf, PAGE_PARTS)
            )
        finally:
            self.server.close()

    def _advance(self, until: Callable[[], bool]) -> None:
        checked_at = watched_at = self.server.flushes
        while not until():
            if not self.timeline.step():
                return
            if self.timeline.steps > STEPS_MAX:
                raise Violation(f"No end after {STEPS_MAX} steps: something goes round in circles.")
            if self.server.is_up and self.server.flushes - checked_at >= CHECK_EVERY_FLUSHES:
                checked_at = self.server.flushes
                self.check()
                watched_at = self.server.flushes
            elif self.server.is_up and self.server.flushes != watched_at:
                watched_at = self.server.flushes
                if len(self.shadow.jobs) < len(self.plans):
                    self._notice_starts()

    def _advance_by(self, seconds: float) -> None:
        ends_at = self.timeline.now + seconds
        # Something must be planned at that moment, or time would stand still.
        self.timeline.after(seconds, lambda: None)
        self._advance(lambda: self.timeline.now >= ends_at)

    def check(self) -> None:
        """All that must hold at every moment."""
        self._notice_starts()
        self.server.storage.read(lambda tx: checkers.check_state(tx, self.shadow))
        if self.params.is_gentle:
            # With a single attempt, one death condemns: also a record that merely waited there.
            killers = {
                job_id: plan.killers for job_id, plan in self.plans.items() if plan.attempts > 1
            }
            checkers.check_innocence(self.shadow, killers)

    def check_promises(self) -> None:
        """What the coordinator has acknowledged, and all that `check` looks at."""
        self.check()
        self.server.storage.read(lambda tx: checkers.check_acknowledged(tx, self.shadow))
        self.server.storage.read(lambda tx: checkers.check_versions(tx, self.shadow))

    def _stall_s(self) -> float:
        """Longest time without progress that is not yet a failure."""
        slowest = min(worker.records_per_s for worker in self.workers)
        longest_unit_s = max((plan.unit_s for plan in self.params.jobs), default=0.0)
        # A probe on an unknown machine may be far more than a unit's worth of work.
        probe_s = 3 * 16 / slowest
        clock_s = self.params.clock_steps * self.params.clock_step_s
        return 600.0 + 20 * self.params.lease_s + 6 * longest_unit_s + probe_s + clock_s

    def _finish_everything(self) -> None:
        stall_s = self._stall_s()
        seen, since = self.shadow.progress + self.office.deaths, self.timeline.now
        while True:
            self._advance_by(5.0)
            if self.server.is_up:
                if self._all_ended():
                    return
                self._release_held()
            progress = self.shadow.progress + self.office.deaths
            if progress != seen:
                seen, since = progress, self.timeline.now
            if self.timeline.now - since > stall_s:
                raise self._no_progress(stall_s)

    def _all_ended(self) -> bool:
        jobs = self.server.storage.read(lambda tx: tx.jobs())
        return len(self.plans) == len(self.params.jobs) and all(j.state in ENDED for j in jobs)

    def _release_held(self) -> None:
        def go_on(tx: Tx) -> int:
            held = tx.jobs(states=[JobState.HELD])
            for job in held:
                source = self.plans[job.id].input_job
                first = tx.jobs(name=source)[0] if source else None
                if job.started_at is None and first and first.state is JobState.CANCELLED:
                    lifecycle.cancel(self.server.grid, tx, job, self.server.now())
                else:
                    request = ReleaseJobRequest(quarantine_limit="100%")
                    limit = request.quarantine_limit
                    lifecycle.release_hold(self.server.grid, tx, job, limit, self.server.now())
            return len(held)

        self.server.write(go_on)
        self._notice_starts()

    def _no_progress(self, stall_s: float) -> Violation:
        for job in self.server.storage.read(lambda tx: tx.jobs()):
            if job.state not in ENDED:
                return Violation(
                    f"No progress for {stall_s:.0f} s without faults: {job.id} is {job.state} "
                    f"({job.reason}) with {job.pending} pending, {job.leased} leased records.",
                    job.id, 0, job.total,
                )  # fmt: skip
        return Violation("No progress, although all jobs have ended.")


def _spec(plan: JobPlan, dataset: str | None) -> JobSpec:
    return JobSpec(
        name=plan.name,
        bundle=bundle_name(0),
        program=Program(python="simulated:run"),
        dataset=dataset,
        input_job=plan.input_job,
        output=OutputSpec(format="lines"),
        limits=Limits(attempts=plan.attempts),
        policy=JobPolicy(
            unit_seconds=min(plan.unit_s, 86400.0),
            suspended_lease_s=plan.suspended_lease_s,
            quarantine_limit=plan.quarantine_limit,
            priority=plan.priority,
            follow_latest=plan.follows,
        ),
    )


def run_seed(
    seed: int, *, params: Params | None = None, echo: Callable[[str], None] | None = None
) -> Outcome:
    """Run universe `seed`, with other `params` if given; never raises for what it finds."""
    universe = Universe(params or draw(seed), echo)
    report = ""
    try:
        universe.run()
    except Violation as found:
        report = _report(universe, found)
    except OfficeGridError as error:
        report = _report(universe, Violation(f"{type(error).__name__}: {error}"))
    return Outcome(
        seed=seed,
        report=report,
        digest=universe.chronicle.digest(),
        virtual_s=universe.timeline.now,
        steps=universe.timeline.steps,
        records=sum(job.total for job in universe.shadow.jobs.values()),
        commits=len(universe.shadow.accepted),
        deaths=universe.office.deaths,
    )


def _report(universe: Universe, found: Violation) -> str:
    seed = universe.params.seed
    lines = [
        f"VIOLATION in universe {seed}, phase {universe.phase}, "
        f"at {universe.timeline.now:.3f} s: {found.what}",
        "",
        "Parameters:",
        *("  " + line for line in universe.params.lines()),
        "",
        f"The story of {found.job or 'the grid'} [{found.start}, {found.end}):",
        *universe.chronicle.story(found.job, found.start, max(found.end, found.start + 1)),
        "",
        f"Replay: python -m officegrid.testing.simulator --seed {seed}",
    ]
    return "\n".join(lines)
