"""A seeded simulation: a VM with faults, a desk user who comes and goes, in pure time.

First faults are on, then they end (heal). Replay one seed: pytest -k 'seed and 17'.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from officegrid.core.repair import INCURABLE, RUNGS, URGENT_RUNGS
from officegrid.core.vm import HOLDS_MEMORY, Capabilities, RepairStep, Trouble, VmState, VmStatus
from officegrid.core.vmcycle import next_action
from officegrid.core.vmlife import Action, Facts, Limits, Memory, Verb, Want, done

S, V = VmState, Verb
TICK_S = 0.25
FAULTY_S = 6 * 3600.0
HEAL_S = 4 * 3600.0
CPU_BACK_WITHIN_S = 60.0
"""With verbs that fail after ten seconds, several in a row; without faults see below."""
MEMORY_BACK_WITHIN_S = 900.0
LASTS_S = {
    V.IMPORT_IMAGE: 20.0, V.START: 3.0, V.PAUSE: 0.0, V.RESUME: 0.25, V.SAVE: 4.0, V.STOP: 1.0,
    V.DISCARD: 0.25, V.REPAIR: 2.0,
}  # fmt: skip
LOOK_AFTER_S = 0.5
"""So long what a verb promised is believed; then somebody looks."""
PROMISED = {
    V.START: S.RUNNING, V.PAUSE: S.PAUSED, V.RESUME: S.RUNNING, V.SAVE: S.SAVED, V.STOP: S.OFF,
    V.DISCARD: S.OFF, V.IMPORT_IMAGE: S.OFF,
}  # fmt: skip
TROUBLES = [
    Trouble.FAILED, Trouble.TIMEOUT, Trouble.STUCK, Trouble.LOCKED, Trouble.SAVED_STATE,
    Trouble.DISK_FULL, Trouble.MEMORY, Trouble.GONE,
]  # fmt: skip


@dataclass
class World:
    """What a hypervisor would be: states, durations, and faults by chance."""

    random: random.Random
    can: Capabilities
    fault_share: float
    state: VmState = S.OFF
    stuck_until: RepairStep | None = None
    busy: tuple[Action, float, Trouble | None] | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    saves: list[float] = field(default_factory=list)
    lies_until: RepairStep | None = None
    """Pause, save, stop and resume report success and do nothing; cured like being stuck."""
    lies: int = 0
    run_repairs: int = 0
    """Rungs since the last rest or good run."""

    def begin(self, action: Action, at_s: float) -> None:
        trouble = self._trouble(action)
        lasts_s = LASTS_S[action.verb] + (10.0 if trouble else 0.0)
        if action.step is RepairStep.RETRY:
            lasts_s, trouble = 0.0, None
        self.log.append(f"{at_s:.2f} {self.state} {action.verb} {action.step or ''} -> {trouble}")
        self.busy = (action, at_s + lasts_s, trouble)
        if action.verb is V.SAVE:
            self.saves.append(at_s)

    def _trouble(self, action: Action) -> Trouble | None:
        if self.stuck_until is not None:
            cures = action.step is not None and RUNGS.index(action.step) >= RUNGS.index(
                self.stuck_until
            )
            return None if cures else Trouble.STUCK
        if self.random.random() < self.fault_share:
            if self.random.random() < 0.1:
                self.lies_until = self.random.choice(URGENT_RUNGS)
                return None
            if self.random.random() < 0.2:
                self.stuck_until = self.random.choice(URGENT_RUNGS)
            return self.random.choice(TROUBLES)
        return None

    def end(self, action: Action, trouble: Trouble | None) -> None:
        if trouble is not None:
            if trouble is Trouble.GONE and self.state not in HOLDS_MEMORY:
                self.state = S.ABSENT
            return
        if self.lies_until is not None:
            step = action.step
            if step is not None and RUNGS.index(step) >= RUNGS.index(self.lies_until):
                self.lies_until = None
            elif action.verb in (V.PAUSE, V.SAVE, V.STOP, V.RESUME) or (
                step is RepairStep.EMERGENCY_STOP
            ):
                self.lies += 1
                return
        match action.verb:
            case V.IMPORT_IMAGE | V.STOP | V.DISCARD:
                self.state = S.OFF
            case V.START | V.RESUME:
                self.state = S.RUNNING
            case V.PAUSE:
                self.state = S.PAUSED
            case V.SAVE:
                self.state = S.SAVED
            case V.REPAIR if action.step is not RepairStep.RETRY:
                self.stuck_until = None
                self.state = S.OFF
            case _:
                pass

    def seen(self) -> VmStatus:
        unsure = self.stuck_until is not None or self.random.random() < self.fault_share / 4
        if unsure and self.random.random() < 0.5:
            return VmStatus(self.random.choice([S.UNKNOWN, S.BROKEN]))
        return VmStatus(self.state)


@dataclass
class Run:
    """One desk: what it did, and the checks on it."""

    seed: int
    fault_share: float
    saves: bool = True
    save_delay_s: float = 0.0
    at_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    want: Want = Want.YIELD
    wanted_since_s: float = 0.0
    cpu_held_s: float = 0.0
    memory_held_s: float = 0.0
    worst_cpu_s: float = 0.0
    worst_memory_s: float = 0.0
    ran_s: float = 0.0
    believed: tuple[VmState, float] | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.limits = Limits(saves_per_hour=4, save_delay_s=self.save_delay_s)
        repairs = frozenset(RepairStep)
        can = Capabilities(saves=self.saves, imports=True, repairs=repairs)
        self.world = World(self.random, can, self.fault_share)

    def go(self, for_s: float, mean_stay_s: float) -> None:
        until_s, turn_s = self.at_s + for_s, self.at_s
        while self.at_s < until_s:
            if self.at_s >= turn_s:
                turn_s = self.at_s + self.random.expovariate(1 / mean_stay_s)
                self._turn()
            self.step()

    def _turn(self) -> None:
        give = self.random.choice([Want.YIELD, Want.YIELD, Want.YIELD, Want.RELEASE])
        self.want = Want.RUN if self.want is not Want.RUN else give
        self.wanted_since_s = self.at_s

    def step(self) -> None:
        world = self.world
        if world.busy is not None:
            action, ends_s, trouble = world.busy
            if action.verb is V.START and self.want is not Want.RUN:
                ends_s, trouble = self.at_s, Trouble.CANCELLED
            if self.at_s >= ends_s:
                world.busy = None
                world.end(action, trouble)
                error = (trouble, f"{action.verb}: {trouble}") if trouble else None
                self.memory = done(self.memory, action, self._facts(action.want), error)
                promised = None if error else PROMISED.get(action.verb)
                self.believed = promised and (promised, self.at_s + LOOK_AFTER_S)
        if world.busy is None:
            self.memory, action = next_action(self.memory, self._facts(self.want))
            self._count_rungs(action)
            if action.verb is not V.WAIT:
                world.begin(action, self.at_s)
        elif world.random.random() < self.fault_share / 2000 and world.state is S.RUNNING:
            world.state = S.OFF  # a power cut of the VM
        self._check()
        self.at_s += TICK_S

    def _facts(self, want: Want) -> Facts:
        if self.believed is not None and self.at_s < self.believed[1]:
            status = VmStatus(self.believed[0])
            return Facts(self.at_s, status, want, self.world.can, self.limits, observed=False)
        return Facts(self.at_s, self.world.seen(), want, self.world.can, self.limits)

    def _count_rungs(self, action: Action) -> None:
        if self.memory.ladder.is_resting(self.at_s) or self.memory.ladder.tried == ():
            self.world.run_repairs = 0
        if action.verb is V.REPAIR and action.want is Want.RUN:
            self.world.run_repairs += 1
        assert self.world.run_repairs <= len(RUNGS), self._story("the ladder has no end")

    def _check(self) -> None:
        world, away = self.world, self.want is Want.RUN
        holds_cpu = world.state in (S.RUNNING, S.STARTING) or (
            world.busy is not None and world.busy[0].verb is V.START
        )
        holds_memory = world.state in HOLDS_MEMORY
        self.cpu_held_s = self.cpu_held_s + TICK_S if holds_cpu and not away else 0.0
        self.memory_held_s = self.memory_held_s + TICK_S if holds_memory and not away else 0.0
        self.worst_cpu_s = max(self.worst_cpu_s, self.cpu_held_s)
        self.worst_memory_s = max(self.worst_memory_s, self.memory_held_s)
        self.ran_s += TICK_S if world.state is S.RUNNING else 0.0
        hour = [s for s in world.saves if s > self.at_s - 3600.0]
        assert len(hour) <= self.limits.saves_per_hour, self._story("saved too often")
        assert self.cpu_held_s <= CPU_BACK_WITHIN_S, self._story("the CPU was not given back")
        assert self.memory_held_s <= MEMORY_BACK_WITHIN_S, self._story("the memory was kept")
        if not away and world.busy is not None:
            verb = world.busy[0].verb
            begun_after = world.busy[0].want is not Want.RUN
            assert not (begun_after and verb in (V.START, V.RESUME, V.IMPORT_IMAGE))

    def _story(self, what: str) -> str:
        return f"seed {self.seed}: {what}\n" + "\n".join(self.world.log)


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("seed", range(9))
def test_seed(seed: int, saves: bool) -> None:
    delay_s = 30.0 if seed % 4 == 3 else 0.0
    run = Run(seed, fault_share=[0.05, 0.2, 0.5][seed % 3], saves=saves, save_delay_s=delay_s)
    run.go(FAULTY_S / 4, mean_stay_s=[60.0, 600.0][seed % 2])
    # Heal: no more faults, the user leaves; the VM must run again, whatever had happened.
    run.world.fault_share, run.world.stuck_until, run.world.lies_until = 0.0, None, None
    run.fault_share, run.want = 0.0, Want.RUN
    within_s = HEAL_S
    while (run.world.state is not S.RUNNING or run.world.busy) and within_s > 0:
        run.step()
        within_s -= TICK_S
    assert run.world.state is S.RUNNING, run._story("never runs again")
    # The user comes back: all memory is free soon.
    run.want = Want.YIELD
    for _ in range(int((10 + delay_s) / TICK_S)):
        run.step()
    assert run.world.state not in HOLDS_MEMORY, run._story("the memory is not free")


@pytest.mark.parametrize("seed", range(4))
def test_without_faults_cpu_is_back_at_once_and_the_hours_are_used(seed: int) -> None:
    run = Run(seed, fault_share=0.0)
    run.go(FAULTY_S / 2, mean_stay_s=300.0)
    assert run.worst_cpu_s <= 1.0
    assert run.worst_memory_s <= LASTS_S[V.SAVE] + 1.0
    assert run.ran_s > 0.15 * FAULTY_S


@pytest.mark.parametrize("want", [Want.YIELD, Want.RELEASE])
@pytest.mark.parametrize("cure", URGENT_RUNGS)
@pytest.mark.parametrize("saves", [True, False])
def test_a_driver_that_only_says_it_worked_is_found_out(
    want: Want, cure: RepairStep, saves: bool
) -> None:
    run = Run(1, fault_share=0.0, saves=saves)
    run.want = Want.RUN
    while run.world.state is not S.RUNNING or run.world.busy:
        run.step()
    run.world.lies_until, run.want = cure, want
    for _ in range(int(20 / TICK_S)):
        run.step()
    assert run.world.lies > 0
    assert run.world.state not in HOLDS_MEMORY, run._story("the liar was believed")


def test_the_simulation_meets_every_kind_of_trouble() -> None:
    seen: set[str] = set()
    lies = 0
    for seed, share in enumerate((0.05, 0.2, 0.5)):
        run = Run(seed, fault_share=share, save_delay_s=30.0)
        begin = run.world.begin

        def noted(action: Action, at_s: float, begin=begin, run=run) -> None:  # type: ignore[no-untyped-def]
            begin(action, at_s)
            assert run.world.busy is not None
            seen.add(action.step or action.verb)
            seen.add(run.world.busy[2] or "fine")

        run.world.begin = noted  # type: ignore[method-assign]
        run.go(2 * 3600.0, mean_stay_s=120.0)
        lies += run.world.lies
    assert lies
    assert {*TROUBLES, "fine"} <= seen
    assert {*RepairStep} | {V.START, V.PAUSE, V.RESUME, V.SAVE, V.STOP, V.DISCARD} <= seen
    assert INCURABLE & seen
