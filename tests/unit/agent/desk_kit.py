"""A desk for tests of the agent's loop: real threads, the shipped fake driver, a scripted user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from officegrid.agent import loop as loop_module
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.journal import Journal
from officegrid.agent.registry import Choice
from officegrid.agent.sampler import Wishes
from officegrid.agent.sensors.base import HostReading
from officegrid.agent.watch import Context, Watch
from officegrid.core.desk import DeskPolicy, Session
from officegrid.core.vm import Capabilities, VmState
from officegrid.core.vmlife import Action, Memory
from officegrid.testing.fake_driver import FakeDriver, FakeTimes
from officegrid.testing.fake_plan import Plan

QUICK = DeskPolicy(
    idle_s=0.2, settle_s=0.1, cpu_idle_s=0.0, cpu_busy_s=0.5, memory_free_mb=100, saves_per_hour=50
)


def wait_for(condition: Callable[[], Any], what: str, within_s: float = 15.0) -> Any:
    """The first true value of `condition`; AssertionError naming `what` after the deadline."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {within_s:g} s still not: {what}"
        time.sleep(0.005)
    return value


class Person:
    """Sits at the desk, or does not; what all session sensors together would say."""

    trouble = ""

    def __init__(self) -> None:
        self.last_input_s = time.monotonic() - 1000.0
        self.typing = False
        self.seen_s: float | None = None
        """The key that the first look saw: one that comes late sees a later one than the first."""
        self.silent = False
        self.reads = 0
        self.hang = threading.Event()

    def types(self) -> None:
        """Begins to type and goes on until `leaves`."""
        self.seen_s = None
        # First this: a look from another thread then sees a key in any case, and notes it.
        self.typing = True
        self.last_input_s = time.monotonic()

    def leaves(self) -> None:
        self.typing = False
        self.last_input_s = time.monotonic() - 1000.0

    def read(self) -> tuple[Session, ...] | None:
        self.reads += 1
        if self.hang.is_set():
            time.sleep(0.05)
            while self.hang.is_set():
                time.sleep(0.05)
        if self.silent:
            return None
        now_s = time.monotonic()
        if self.typing and now_s - self.last_input_s > QUICK.idle_s / 2:
            self.last_input_s = now_s - 0.01
        if self.typing and self.seen_s is None:
            self.seen_s = self.last_input_s
        return (Session("1", 0.0, now_s - self.last_input_s, locked=False),)

    def explain(self) -> list[str]:
        return [f"scripted: {'typing' if self.typing else 'away'}"]

    def close(self) -> None:
        self.hang.clear()


class Host:
    """The machine as a whole; remembers which processes it was told are ours."""

    def __init__(self) -> None:
        self.foreign_cpu: float | None = 0.01
        self.memory_free_mb: int | None = 8000
        self.on_battery: bool | None = False
        self.pids: tuple[int, ...] = ()
        self.reads_in_vain = 0
        """The use of a CPU is a difference: first readings say nothing."""

    def read(self, own_pids: Iterable[int]) -> HostReading:
        self.pids = tuple(own_pids)
        if self.reads_in_vain > 0:
            self.reads_in_vain -= 1
            return HostReading(None, self.on_battery, self.memory_free_mb)
        return HostReading(self.foreign_cpu, self.on_battery, self.memory_free_mb)


@dataclass
class Told:
    """What the journal would send to the coordinator."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, kind: str, at_s: float | None = None, **told: Any) -> None:
        self.events.append((kind, {"at_s": at_s, **told}))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def last(self, kind: str) -> dict[str, Any]:
        return next(told for each, told in reversed(self.events) if each == kind)

    def texts(self, kind: str = "trouble") -> str:
        return "\n".join(told.get("text", "") for each, told in self.events if each == kind)


class Desk:
    """One desk with one fake VM. `close` it. A second one on the same folder finds the VM."""

    def __init__(
        self,
        folder: Path,
        plan: Plan | None = None,
        *,
        times: FakeTimes | None = None,
        capabilities: Capabilities | None = None,
        policy: DeskPolicy = QUICK,
        person: Person | None = None,
        driver: FakeDriver | None = None,
        prepare: Callable[[Action], None] = lambda action: None,
        heard: Callable[[float], bool | None] = lambda since_s: None,
        unheard_s: Callable[[], float | None] = lambda: None,
        hold: Callable[[], str] = lambda: "",
        waits: Callable[[], str] = lambda: "",
        boot_deadline_s: float = 300.0,
        reads_in_vain: int = 0,
        memory: Memory | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        image = folder / "grid.img"
        image.touch()
        self.settings = VmSettings(
            "GridMachine", folder / "vm", image=image, memory_mb=512, options={"pids": [4711]}
        )
        self.settings.folder.mkdir(exist_ok=True)
        self.driver = driver or FakeDriver(
            self.settings, plan, times=times, capabilities=capabilities
        )
        self.person, self.host, self.told = person or Person(), Host(), Told()
        self.host.reads_in_vain = reads_in_vain
        self.policy, self.wishes = policy, Wishes()
        self.joined = threading.Event()
        self.journal = Journal(self.told)
        context = Context(
            sessions=self.person, host=self.host, journal=self.journal,
            policy=lambda: self.policy, wishes=lambda: self.wishes, prepare=prepare, heard=heard,
            joined=self.joined.set, changed=lambda: None, unheard_s=unheard_s, hold=hold,
            waits=waits,
        )  # fmt: skip
        choice = Choice(self.driver, self.driver.detect())
        self.watch = Watch(
            choice, self.settings, context, boot_deadline_s=boot_deadline_s, memory=memory
        )
        self.watch.start()

    @property
    def state(self) -> VmState:
        return self.driver.state().state

    def wait_state(self, state: VmState, within_s: float = 15.0) -> None:
        wait_for(lambda: self.state is state, f"VM is {state}", within_s)

    def wait_told(self, kind: str, within_s: float = 15.0) -> dict[str, Any]:
        wait_for(lambda: kind in self.told.kinds(), f"event {kind}", within_s)
        return self.told.last(kind)

    def verbs(self) -> list[str]:
        return [verb for _, verb in self.driver.calls]

    def close(self) -> None:
        self.driver.release()
        self.watch.close()


def quicken(monkeypatch: Any) -> None:
    """Sample ten times a second also while waiting, so that tests need not wait for seconds."""
    monkeypatch.setattr(loop_module, "SLOW_S", 0.1)
