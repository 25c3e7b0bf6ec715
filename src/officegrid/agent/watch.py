"""One watch over one VM: driver, sensors and threads put together for one set of settings.

A reload of the settings ends a watch and begins another, which finds the VM as it is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from officegrid.agent.config import AgentConfig
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.files import Folders
from officegrid.agent.journal import Journal
from officegrid.agent.log import get_logger
from officegrid.agent.loop import Loop
from officegrid.agent.operator import Finished, Observer, Operator
from officegrid.agent.parts import DOUBTFUL, Ending, Parts
from officegrid.agent.registry import Choice, Nothing
from officegrid.agent.sampler import Sampler, Sessions, Wishes
from officegrid.agent.sensors.base import HostSensor
from officegrid.core.desk import Decision, DeskPolicy
from officegrid.core.idle import IdleMemory
from officegrid.core.vm import HOLDS_MEMORY, RepairStep
from officegrid.core.vmlife import Action, Memory

log = get_logger("watch")

POWER_OFF_WITHIN_S = 30.0


@dataclass(slots=True)
class Context:
    """What a watch needs from the agent around it."""

    sessions: Sessions
    host: HostSensor
    journal: Journal
    policy: Callable[[], DeskPolicy]
    wishes: Callable[[], Wishes]
    prepare: Callable[[Action], None]
    heard: Callable[[float], bool | None]
    joined: Callable[[], None]
    changed: Callable[[], None]
    unheard_s: Callable[[], float | None] = lambda: None
    hold: Callable[[], str] = lambda: ""
    waits: Callable[[], str] = lambda: ""
    """Why nothing may be started just now although nothing is wrong; empty: it may."""
    ended: Callable[[Finished], None] = lambda finished: None


class Watch:
    """`start`, then `end` and `join`; `over` says whether the loop has ended by itself."""

    def __init__(
        self,
        choice: Choice,
        settings: VmSettings,
        context: Context,
        *,
        boot_deadline_s: float,
        memory: Memory | None = None,
        idle: IdleMemory | None = None,
    ) -> None:
        self.choice = choice
        self.settings = settings
        driver, wake = choice.driver, threading.Event()
        self._context = context
        self._sampler = Sampler(context.sessions, context.host, wake.set, context.wishes)
        self._operator = Operator(driver, wake.set, context.prepare, context.ended)
        self._observer = Observer(driver, wake.set, choice.health)
        parts = Parts(
            sampler=self._sampler, operator=self._operator, observer=self._observer,
            journal=context.journal, capabilities=driver.capabilities(),
            vm_memory_mb=settings.memory_mb, wake=wake, policy=context.policy,
            heard=context.heard, joined=context.joined, changed=context.changed,
            unheard_s=context.unheard_s, hold=self._hold,
            boot_deadline_s=boot_deadline_s,
        )  # fmt: skip
        self.loop = Loop(parts, memory, idle)
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    def _hold(self) -> str:
        """Why nothing may be started. Trouble is told; to wait is none."""
        if said := self._context.hold():
            self._context.journal.trouble(said, once=True)
        return said or self._context.waits()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    @property
    def may_run(self) -> bool:
        """Does nothing and nobody keep the grid off this PC?"""
        return self.loop.view().verdict.decision is Decision.RUN

    @property
    def empty(self) -> bool:
        """Was no usable driver found?"""
        return isinstance(self.choice.driver, Nothing)

    @property
    def observer(self) -> Observer:
        return self._observer

    @property
    def sensor_trouble(self) -> str:
        return self._sampler.trouble

    def explain_sensors(self) -> list[str]:
        """Per source, what it says or why it cannot."""
        return self._context.sessions.explain()

    def start(self) -> None:
        self._observer.start()
        self._operator.start()
        self._sampler.start()
        self._thread.start()

    def end(self, how: Ending, within_s: float) -> bool:
        """End the loop; True if it did what it should within this time."""
        self.loop.end(how)
        self._thread.join(within_s)
        ended = not self._thread.is_alive() and self.fault is None
        return ended and (how is Ending.LEAVE or self.loop.released)

    def close(self) -> None:
        """End all threads; a verb that is still under way ends with the process."""
        self.loop.end(Ending.LEAVE)
        self._sampler.close()
        self._observer.close()
        self._operator.close(within_s=0.5)
        close_driver = getattr(self.choice.driver, "close", None)
        if close_driver is not None:  # one that keeps helper processes of its own
            close_driver()

    def release(self, within_s: float) -> bool:
        """Save or, if that does not work in time, power off. False: it may still be in memory."""
        if self.end(Ending.RELEASE, within_s):
            return True
        log.warning("not_released", within_s=within_s)
        if self.power_off():
            return True
        # A hypervisor that is not there any more cannot be asked for ever.
        return self.loop.view().vm.state not in HOLDS_MEMORY and not self.choice.usable

    def power_off(self, within_s: float = POWER_OFF_WITHIN_S) -> bool:
        """The last resort when the loop has failed or a verb does not end: nothing may run
        unwatched. True if nothing of ours is in memory any more."""
        gone = threading.Event()

        def work() -> None:
            if self._power_off():
                gone.set()

        # A driver may wait for its own verb under way: that must not keep the agent from ending.
        thread = threading.Thread(target=work, name="power-off", daemon=True)
        thread.start()
        thread.join(within_s)
        if not gone.is_set():
            log.error("power_off", why="the VM may still be in memory")
        return gone.is_set()

    def _power_off(self) -> bool:
        driver, by_force = self.choice.driver, RepairStep.EMERGENCY_STOP
        mild: list[Callable[[], None]] = [driver.pause, driver.stop]
        force: list[Callable[[], None]] = [lambda: driver.repair(by_force)]
        force = force if by_force in driver.capabilities().repairs else []
        # Beside a verb under way the mild ways only wait for it.
        verbs = force + mild if self._operator.busy is not None else mild + force
        for verb in verbs:
            try:
                verb()
            except Exception as error:
                log.error("power_off", why=f"{type(error).__name__}: {error}")
            if verb != driver.pause and driver.state().state not in HOLDS_MEMORY | DOUBTFUL:
                return True
        return False

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.fault = error


def vm_settings(config: AgentConfig, folders: Folders, image: Path | None = None) -> VmSettings:
    """The driver's settings; `image` is what the VM is made from where the settings name none.
    Makes the VM's folder (mode 0700). Raises OSError."""
    vm = config.vm
    folders.vm.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folders.vm, 0o700)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    # One core always stays the desk user's, whatever the settings say.
    most_cpus = max(1, cores - 1)
    return VmSettings(
        name=vm.name,
        folder=folders.vm,
        image=vm.image or image,
        memory_mb=vm.memory_mb,
        cpus=min(vm.cpus or most_cpus, most_cpus),
        cpu_cap_percent=vm.cpu_cap_percent,
        seed_folder=folders.seed,
        seed_iso=folders.seed_iso,
        options=dict(vm.options),
    )
