"""What goes wrong in a universe, and when: planned from its parameters, ended by `heal`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from officegrid.coordinator.service import lifecycle, machines, pins, versions
from officegrid.core.errors import ConflictError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Job, Tx
from officegrid.testing.simulator.program import bundle_name
from officegrid.testing.simulator.worker import SimWorker
from officegrid.wire.agent import DeskEventKind
from officegrid.wire.jobs import RetryRequest

if TYPE_CHECKING:
    from officegrid.testing.simulator.universe import Universe

YIELDS: tuple[DeskEventKind, ...] = ("user_back", "paused", "saved", "stopped", "trouble")


class Mischief:
    def __init__(self, universe: Universe) -> None:
        self._here = universe
        self._rng = universe.rng
        self._clones: list[SimWorker] = []

    def plan(self) -> None:
        """Spread all faults over the first phase."""
        params = self._here.params
        kinds: list[tuple[int, Callable[[], None]]] = [
            (params.worker_crashes, self._crash_worker),
            (params.freezes, self._freeze),
            (params.users_back, self._user_back),
            (params.clones, self._clone),
            (params.cuts, self._cut_off),
            (params.coordinator_crashes, self._crash_coordinator),
            (params.clock_steps, self._step_clock),
            (params.job_orders, self._order),
            (params.revocations, self._revoke),
            (params.pushes, self._push),
        ]
        for times, action in kinds:
            for _ in range(times):
                at_s = self._rng.uniform(0.02, 1.0) * params.faults_s
                self._here.timeline.after(at_s, lambda action=action: self._if_on(action))  # type: ignore[misc]

    def _if_on(self, action: Callable[[], None]) -> None:
        if self._here.phase == "faults":
            action()

    def heal(self) -> None:
        """The network is whole, copies are gone, enough machines work, the coordinator is up."""
        here = self._here
        here.network.heal()
        for twin in self._clones:
            twin.die("copies are removed")
        for worker in here.workers:
            worker.cut_off = False
            # Some stay frozen for their whole time: the others must do without them.
            if worker.frozen_until and self._rng.random() < 0.5:
                worker.thaw(worker.life, True)
            if not worker.alive and not worker.revoked:
                worker.start()
        if all(worker.frozen_until or worker.revoked for worker in here.workers):
            self.thaw_all()

    def thaw_all(self) -> None:
        """Whoever is still frozen wakes up, perhaps with work of long ago."""
        for worker in self._here.workers:
            if worker.alive and worker.frozen_until:
                worker.thaw(worker.life, self._rng.random() < 0.5)

    def _any_worker(self) -> SimWorker:
        return self._rng.choice(self._here.workers)

    def _log_uniform(self, least: float, most: float) -> float:
        return math.exp(self._rng.uniform(math.log(least), math.log(max(most, least))))

    # --- machines

    def _crash_worker(self) -> None:
        worker = self._any_worker()
        down_s = self._log_uniform(0.5, 10 * self._here.params.lease_s)
        worker.die("power cut")

        def back() -> None:
            if not worker.alive and not worker.revoked:
                worker.start()

        self._here.timeline.after(down_s, back)

    def _freeze(self) -> None:
        for_s = self._log_uniform(0.5, self._here.params.longest_freeze_s)
        self._any_worker().freeze(for_s, notices=self._rng.random() < 0.5)

    def _user_back(self) -> None:
        worker = self._any_worker()
        if not worker.alive or worker.frozen_until:
            return
        worker.desk_says(self._rng.choice(YIELDS))
        worker.freeze(self._log_uniform(1.0, 600.0), notices=self._rng.random() < 0.7)

    def _clone(self) -> None:
        worker = self._any_worker()
        if worker.alive and not worker.frozen_until:
            name = f"{worker.name}-copy-{len(self._clones)}"
            self._clones.append(worker.copy_as(name, same_session=self._rng.random() < 0.5))

    def _cut_off(self) -> None:
        worker = self._any_worker()
        worker.cut_off = True

        def mend() -> None:
            worker.cut_off = False

        self._here.chronicle.note(f"{worker.name} loses its network")
        self._here.timeline.after(self._log_uniform(1.0, 600.0), mend)

    def _revoke(self) -> None:
        worker = self._any_worker()
        working = [one for one in self._here.workers if not one.revoked]
        if not self._here.server.is_up or len(working) < 2 or worker.revoked:
            return
        server = self._here.server

        def revoke(tx: Tx) -> None:
            machine = machines.find(tx, worker.machine_id)
            machines.revoke(server.grid, tx, machine, server.now())

        worker.revoked = True
        server.write(revoke)
        self._here.chronicle.note(f"{worker.name} is revoked")

    # --- the coordinator

    def _crash_coordinator(self) -> None:
        server = self._here.server
        server.restart_after_s = self._log_uniform(0.2, 5 * self._here.params.lease_s)
        how = self._rng.choice(["now", "before commit", "after commit"])
        if how == "now":
            server.crash()
        else:
            server.crash_next = how

    def _step_clock(self) -> None:
        step_s = self._here.params.clock_step_s * self._rng.uniform(-1.0, 1.0)
        self._here.chronicle.note(f"the coordinator's clock is set by {step_s:+.1f} s")
        self._here.server.clock_offset_s += step_s

    # --- people

    def _push(self) -> None:
        """Somebody pushes newer code for a job that follows it."""
        here = self._here
        followers = sorted(job_id for job_id, plan in here.plans.items() if plan.follows)
        if not here.server.is_up or not followers:
            return
        job_id = self._rng.choice(followers)
        here.check()

        def act(tx: Tx) -> list[str]:
            name, bundle, now = here.plans[job_id].name, bundle_name(newer), here.server.now()
            versions.push(tx, "code", name, bundle, by="ann", origin="", now=now)
            return pins.switch_followers(here.server.grid, tx, "code", name, now)

        newer = here.versions[job_id] + 1
        switched = here.server.write(act)
        here.versions[job_id] = newer
        here.chronicle.note(f"code {newer} of {job_id} is pushed: {switched or 'nobody'} switches")

    def _order(self) -> None:
        """Somebody holds, releases, cancels or retries a job."""
        here = self._here
        if not here.server.is_up or not here.plans:
            return
        job_id = self._rng.choice(sorted(here.plans))
        verbs = ["hold", "release", "retry", "retry", "retry"]
        verb = self._rng.choice([*verbs, "cancel"] if self._rng.random() < 0.4 else verbs)
        newer = self._rng.random() < 0.6
        here.check()

        def act(tx: Tx) -> Job | None:
            job = tx.job(job_id)
            if job is None:
                return None
            now = here.server.now()
            if verb == "hold":
                lifecycle.hold(tx, job, "by ann", now)
            elif verb == "release":
                lifecycle.release_hold(here.server.grid, tx, job, None, now)
            elif verb == "cancel":
                lifecycle.cancel(here.server.grid, tx, job, now)
            else:
                bundle = bundle_name(here.versions[job_id] + 1) if newer else None
                lifecycle.retry(here.server.grid, tx, job, RetryRequest(bundle=bundle), now)
            return tx.job(job_id)

        try:
            job = here.server.write(act)
        except ConflictError as error:
            here.chronicle.note(f"{verb} {job_id}: {error.what}")
            return
        here.chronicle.note(f"{verb} {job_id}: it is {job.state if job else JobState.CANCELLED}")
        if verb == "retry" and job is not None:
            here.versions[job_id] += newer
            here.shadow.retried(job_id, job.generation)
