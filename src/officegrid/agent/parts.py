"""What the loop works with, how it can end, and what others may see of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from officegrid.agent.journal import Journal
from officegrid.agent.operator import Observer, Operator
from officegrid.agent.sampler import Sampler
from officegrid.core.desk import DeskPolicy, Rule, Sample, Verdict
from officegrid.core.vm import Capabilities, VmState, VmStatus
from officegrid.core.vmlife import Verb

MOST_INPUT_AGE_S = 60.0


class Ending(StrEnum):
    RELEASE = "release"
    """Pause, save, gone; then the loop ends."""
    SHUTDOWN = "shutdown"
    """The PC shuts down: power off at once, do not make it wait."""
    LEAVE = "leave"
    """The loop ends, the VM stays as it is."""


@dataclass(slots=True)
class Parts:
    """What the loop works with; made by `agent.main`, or by a test."""

    sampler: Sampler
    operator: Operator
    observer: Observer
    journal: Journal
    capabilities: Capabilities
    vm_memory_mb: int
    wake: threading.Event
    """The same that sampler, operator and observer set."""
    policy: Callable[[], DeskPolicy]
    heard: Callable[[float], bool | None] = lambda since_s: None
    """Has the coordinator heard of the guest's worker since then? None: it cannot say."""
    unheard_s: Callable[[], float | None] = lambda: None
    """For how long the coordinator, in touch all the while, has not heard the guest's worker."""
    hold: Callable[[], str] = lambda: ""
    """Why nothing may be started on this PC now; empty: it may. Whoever says so has told it."""
    joined: Callable[[], None] = lambda: None
    """Called when the guest has been heard."""
    changed: Callable[[], None] = lambda: None
    """Called when the status changed enough to be reported at once."""
    boot_deadline_s: float = 300.0
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class View:
    """What people may see of the loop at one moment."""

    verdict: Verdict
    vm: VmStatus
    doing: str
    trouble: str
    since_s: float
    """Monotonic time since when decision and rule have been the same."""


AFTER = {
    Verb.IMPORT_IMAGE: VmState.OFF,
    Verb.START: VmState.RUNNING,
    Verb.PAUSE: VmState.PAUSED,
    Verb.RESUME: VmState.RUNNING,
    Verb.SAVE: VmState.SAVED,
    Verb.STOP: VmState.OFF,
    Verb.DISCARD: VmState.OFF,
}
"""What a verb that succeeded promises; believed until the next observation."""

DOUBTFUL = frozenset({VmState.UNKNOWN, VmState.BROKEN})


PERSONS = frozenset({
    Rule.INPUT, Rule.NOT_YET, Rule.PRESENTING, Rule.REMOTE, Rule.USER_PAUSE,
})  # fmt: skip
"""Rules by which the PC is given back to a person; the rest is nobody's return."""


def input_time(sample: Sample, verdict: Verdict) -> float:
    """When the desk user wanted the PC back, in monotonic seconds: at the input where one was
    the reason, else when the sensors said so."""
    if verdict.rule is not Rule.INPUT:
        return sample.at_s
    idle = [s.idle_s + s.age_s for s in sample.sessions or () if s.idle_s is not None]
    age_s = min(idle, default=0.0)
    return sample.at_s - (age_s if age_s <= MOST_INPUT_AGE_S else 0.0)
