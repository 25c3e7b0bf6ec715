"""Faults for the fake driver, by verb and call number, and the clocks it can run on.

    plan = Plan().fail("save", Trouble.DISK_FULL).slow("start", 30.0).unknown(3)
    plan.die("start", call=2)            # the second start: its process dies in the middle
    plan.fail("stop", Trouble.STUCK, leaves=VmState.STOPPING,
              cured_by=RepairStep.RESTART_SERVICE)

`call` is the number of the call, from 1, counted over all driver objects that share the plan;
without it the next `times` calls of that verb are meant. One call suffers the first fault that
fits it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from officegrid.core.vm import RepairStep, Trouble, VmState

VERBS = frozenset({
    "state", "import_image", "start", "pause", "resume", "save", "stop", "discard", "delete",
})  # fmt: skip


class Clock(Protocol):
    """What the fake measures time with."""

    def now(self) -> float:
        """Monotonic seconds."""

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        """Let time pass. True if `cancel` was set before it was over."""


class RealClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        if cancel is not None:
            return cancel.wait(seconds)
        time.sleep(seconds)
        return False


class VirtualClock:
    """Time that passes only when somebody waits or calls `advance`: tests take no time.

    `on_wait`, if given, is called with the time before each wait: a test may set the very
    `cancel` that is being waited with, to strike in the middle of a verb.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self.on_wait: Callable[[float], None] | None = None

    def now(self) -> float:
        with self._lock:
            return self._now_s

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now_s += seconds

    def wait(self, seconds: float, cancel: threading.Event | None = None) -> bool:
        if self.on_wait is not None:
            self.on_wait(self.now())
        if cancel is not None and cancel.is_set():
            return True
        self.advance(seconds)
        return False


class FaultKind(StrEnum):
    RAISE = "raise"
    HANG = "hang"
    SLOW = "slow"
    NO_EFFECT = "no_effect"
    DIE = "die"
    LOSE_SAVED = "lose_saved"
    LIE = "lie"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens instead of, or beside, what should."""

    kind: FaultKind
    trouble: Trouble = Trouble.FAILED
    seconds: float = 0.0
    state: VmState | None = None
    """LIE: what `state` says. RAISE: the state that the VM is left in."""
    cured_by: RepairStep | None = None
    """RAISE: the mildest rung of the repair ladder that helps."""


class Plan:
    """Which call of which verb goes wrong, and how. Thread-safe; empty: all goes well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[tuple[str, range, Fault]] = []
        self._calls: Counter[str] = Counter()

    def on(self, verb: str, fault: Fault, *, call: int | None = None, times: int = 1) -> Plan:
        """Add a fault; returns the plan, so that faults can be chained."""
        if verb not in VERBS:
            raise ValueError(f"the driver has no verb {verb!r}")
        with self._lock:
            first = self._calls[verb] + 1 if call is None else call
            self._faults.append((verb, range(first, first + times), fault))
        return self

    def fail(
        self,
        verb: str,
        trouble: Trouble,
        *,
        call: int | None = None,
        times: int = 1,
        leaves: VmState | None = None,
        cured_by: RepairStep | None = None,
    ) -> Plan:
        """Raise DriverError(trouble) and leave the VM as it was, or in the state `leaves`."""
        fault = Fault(FaultKind.RAISE, trouble, state=leaves, cured_by=cured_by)
        return self.on(verb, fault, call=call, times=times)

    def hang(
        self, verb: str, *, call: int | None = None, times: int = 1, seconds: float = 3600.0
    ) -> Plan:
        """Do nothing until cancelled (start) or `release()`; TIMEOUT after `seconds`."""
        return self.on(verb, Fault(FaultKind.HANG, seconds=seconds), call=call, times=times)

    def slow(self, verb: str, seconds: float, *, call: int | None = None, times: int = 1) -> Plan:
        """Take so much longer, then succeed."""
        return self.on(verb, Fault(FaultKind.SLOW, seconds=seconds), call=call, times=times)

    def no_effect(self, verb: str, *, call: int | None = None, times: int = 1) -> Plan:
        """Return as if it had worked, with the VM in the state it was in."""
        return self.on(verb, Fault(FaultKind.NO_EFFECT), call=call, times=times)

    def die(self, verb: str, *, call: int | None = None, times: int = 1) -> Plan:
        """The VM's process is gone in the middle of the verb, which raises FAILED."""
        return self.on(verb, Fault(FaultKind.DIE), call=call, times=times)

    def lose_saved_state(self, *, call: int | None = None, times: int = 1) -> Plan:
        """`save` succeeds, but what it wrote is not there afterwards."""
        return self.on("save", Fault(FaultKind.LOSE_SAVED), call=call, times=times)

    def lie(self, state: VmState, *, call: int | None = None, times: int = 1) -> Plan:
        """`state` says this, whatever is true."""
        return self.on("state", Fault(FaultKind.LIE, state=state), call=call, times=times)

    def unknown(self, times: int = 1, *, call: int | None = None) -> Plan:
        """`state` cannot tell for so many calls."""
        return self.lie(VmState.UNKNOWN, call=call, times=times)

    def calls(self, verb: str) -> int:
        """How often the verb has been called."""
        with self._lock:
            return self._calls[verb]

    def next(self, verb: str) -> Fault | None:
        """Count one call; the fault that it suffers, if any."""
        with self._lock:
            self._calls[verb] += 1
            number = self._calls[verb]
            return next((f for v, calls, f in self._faults if v == verb and number in calls), None)
