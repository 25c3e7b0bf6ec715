"""Carries out one verb at a time on a thread of its own, and observes the VM on another.

The loop never waits for either. An observation that began before the last verb ended is void.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from officegrid.agent.drivers.base import Driver
from officegrid.agent.log import get_logger
from officegrid.core.errors import OfficeGridError
from officegrid.core.vm import (
    DriverError,
    Health,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)
from officegrid.core.vmlife import Action, Verb

log = get_logger("operator")

DETECT_EVERY_S = 900.0
DETECT_AGAIN_S = 60.0
"""While the driver is unusable."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A verb's end. Times are monotonic seconds."""

    action: Action
    began_s: float
    ended_s: float
    error: tuple[Trouble, str] | None = None
    held: str = ""
    """Not even begun, because of this: what the guest needs could not be had."""


class Operator:
    """`prepare` is called before each verb and may raise OfficeGridError to put it off, or
    DriverError, which counts as the verb's own; `ended` after each, before the loop hears of it.
    Both on the operator's thread."""

    def __init__(
        self,
        driver: Driver,
        wake: Callable[[], None],
        prepare: Callable[[Action], None],
        ended: Callable[[Finished], None] = lambda finished: None,
    ) -> None:
        self._driver = driver
        self._wake = wake
        self._prepare = prepare
        self._ended = ended
        self._orders: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._cancel = threading.Event()
        self.busy: Action | None = None
        self.busy_since_s = 0.0
        self.prepared = False
        """Is the verb under way past its preparation?"""
        self._forced = False
        self.cancelled = False
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, action: Action) -> None:
        """Only while nothing is under way."""
        self._cancel.clear()
        self.cancelled = False
        self.prepared = self._forced = False
        self.busy, self.busy_since_s = action, time.monotonic()
        self._orders.put(action)

    def cancel(self) -> None:
        """Call off a start; other verbs go on."""
        if not self.cancelled:
            self.cancelled = True
            self._cancel.set()

    def force(self) -> bool:
        """End the VM beside a verb that does not end; True if that was begun now. The one case in
        which a driver is called by a second thread."""
        offered = RepairStep.EMERGENCY_STOP in self._driver.capabilities().repairs
        if self._forced or not offered:
            return False
        self._forced = True
        threading.Thread(target=self._force, name="force", daemon=True).start()
        return True

    def take(self) -> Finished | None:
        """The end of the verb that was under way, once."""
        try:
            finished = self._finished.get_nowait()
        except queue.Empty:
            return None
        self.busy = None
        return finished

    def close(self, within_s: float) -> bool:
        """End the thread; False if a verb is still under way after this time."""
        self._orders.put(None)
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (action := self._orders.get()) is not None:
            finished = self._carry_out(action)
            self._ended(finished)
            self._finished.put(finished)
            self._wake()

    def _force(self) -> None:
        try:
            self._driver.repair(RepairStep.EMERGENCY_STOP)
        except Exception as error:
            log.error("force", why=f"{type(error).__name__}: {error}")

    def _carry_out(self, action: Action) -> Finished:
        began_s = time.monotonic()
        try:
            self._prepare(action)
        except DriverError as error:  # it knows that the verb would fail, and how
            return Finished(action, began_s, time.monotonic(), _trouble(error))
        except OfficeGridError as error:
            said = f"{error.what} {error.why}".strip()
            return Finished(action, began_s, time.monotonic(), held=said)
        self.prepared = True
        self._wake()
        try:
            perform(self._driver, action, self._cancel)
        except DriverError as error:
            return Finished(action, began_s, time.monotonic(), _trouble(error))
        except Exception as error:  # a fault in a driver is trouble with its VM
            said = f"The driver made a mistake in {action.verb}: {type(error).__name__}: {error}"
            log.error("driver_fault", verb=action.verb, why=said)
            return Finished(action, began_s, time.monotonic(), (Trouble.FAILED, said))
        return Finished(action, began_s, time.monotonic())


def _trouble(error: DriverError) -> tuple[Trouble, str]:
    return error.trouble, " ".join(part for part in (error.what, error.why, error.fix) if part)


def perform(driver: Driver, action: Action, cancel: threading.Event) -> None:
    """Call the driver's verb. RETRY calls nothing: the next ordinary verb is the retry."""
    match action.verb:
        case Verb.START:
            driver.start(cancel)
        case Verb.REPAIR:
            if action.step is not None and action.step is not RepairStep.RETRY:
                driver.repair(action.step)
        case Verb.WAIT:
            return
        case verb:
            getattr(driver, verb.value)()


@dataclass(frozen=True, slots=True)
class Observation:
    status: VmStatus
    began_s: float


class Observer:
    """Asks the driver how the VM is, and now and then whether the driver can work at all."""

    def __init__(self, driver: Driver, wake: Callable[[], None], health: Health) -> None:
        self._driver = driver
        self._wake = wake
        self.health = health
        self.latest: Observation | None = None
        self.every_s = 60.0
        self.paused = False
        self._detect_s = time.monotonic() + self._detect_in_s()
        self._asked = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        self._asked.set()
        self._thread.start()

    def ask(self) -> None:
        """Look now."""
        self._asked.set()

    def set_pace(self, every_s: float) -> None:
        faster = every_s < self.every_s
        self.every_s = every_s
        if faster:
            self._asked.set()

    def close(self, within_s: float = 1.0) -> None:
        self._stopping = True
        self._asked.set()
        self._thread.join(within_s)

    def _run(self) -> None:
        while True:
            self._asked.wait(self.every_s)
            self._asked.clear()
            if self._stopping:
                return
            if self.paused:
                continue
            began_s = time.monotonic()
            self.latest = Observation(self._state(), began_s)
            self._wake()
            if began_s >= self._detect_s and not self.paused:
                self._detect()

    def _state(self) -> VmStatus:
        try:
            return self._driver.state()
        except Exception as error:  # drivers promise not to raise; one that does cannot tell
            log.error("driver_fault", verb="state", why=f"{type(error).__name__}: {error}")
            return VmStatus(VmState.UNKNOWN, f"{type(error).__name__}: {error}")

    def _detect(self) -> None:
        try:
            self.health = self._driver.detect()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            self.health = Health(HealthLevel.UNUSABLE, f"The driver made a mistake: {said}")
        self._detect_s = time.monotonic() + self._detect_in_s()
        self._wake()

    def _detect_in_s(self) -> float:
        unusable = self.health.level is HealthLevel.UNUSABLE
        return DETECT_AGAIN_S if unusable else DETECT_EVERY_S
