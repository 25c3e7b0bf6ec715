"""What to try when a VM does not do what it should: a bounded ladder, then patience. Pure.

    RETRY -> EMERGENCY_STOP -> RESTART_SERVICE -> DISCARD -> REIMPORT -> rest 5 min, 10 min … 1 h

Each failure climbs one rung, among those that the driver offers; a VM that runs well for a while
resets everything. Trouble that no rung cures (no hypervisor, no image, no memory …) rests at once
and is looked at again later. While the desk user waits for their memory, the short, urgent ladder
EMERGENCY_STOP -> RESTART_SERVICE is climbed instead, and its rests are short.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from officegrid.core.quantities import duration_text
from officegrid.core.vm import RepairStep, Trouble

RUNGS = (
    RepairStep.RETRY,
    RepairStep.EMERGENCY_STOP,
    RepairStep.RESTART_SERVICE,
    RepairStep.DISCARD,
    RepairStep.REIMPORT,
)
URGENT_RUNGS = (RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE)

INCURABLE = frozenset({
    Trouble.MISSING, Trouble.VERSION, Trouble.NO_VIRTUALIZATION, Trouble.CONFLICT,
    Trouble.PERMISSION, Trouble.IMAGE, Trouble.NAME_TAKEN, Trouble.MEMORY, Trouble.DISK_FULL,
    Trouble.UNSUPPORTED,
})  # fmt: skip
"""No rung helps: a person or time must."""

RETRY_AFTER_S = 5.0
CLIMB_AFTER_S = 1.0
REST_FIRST_S = 300.0
REST_MOST_S = 3600.0
URGENT_REST_FIRST_S = 10.0
URGENT_REST_MOST_S = 300.0
_MOST_DOUBLINGS = 20


@dataclass(frozen=True, slots=True)
class Ladder:
    """How far the repair of one VM has come. Times are the caller's monotonic seconds."""

    urgent: bool = False
    tried: tuple[RepairStep, ...] = ()
    step: RepairStep | None = None
    """The rung to climb next."""
    due_s: float = 0.0
    rest_until_s: float = float("-inf")
    rests: int = 0
    reason: str = ""
    """What went wrong last, as a sentence."""

    def is_due(self, at_s: float) -> bool:
        return self.step is not None and at_s >= self.due_s

    def is_resting(self, at_s: float) -> bool:
        return at_s < self.rest_until_s

    def is_quiet(self, at_s: float) -> bool:
        """Nothing is planned and nothing forbids to act: a new failure may be noted."""
        return self.step is None and not self.is_resting(at_s)


def failed(
    ladder: Ladder, trouble: Trouble, sentence: str, at_s: float, available: Collection[RepairStep]
) -> Ladder:
    """The ladder after one more failure: the next rung, or a rest when there is none."""
    if trouble in INCURABLE and not ladder.urgent:
        return _rest(replace(ladder, reason=sentence), at_s)
    for step in URGENT_RUNGS if ladder.urgent else RUNGS:
        if step in available and step not in ladder.tried:
            wait_s = 0.0 if ladder.urgent else CLIMB_AFTER_S
            due_s = at_s + (RETRY_AFTER_S if step is RepairStep.RETRY else wait_s)
            return replace(ladder, step=step, due_s=due_s, reason=sentence)
    return _rest(replace(ladder, reason=sentence), at_s)


def climbed(ladder: Ladder) -> Ladder:
    """The planned rung was tried, whether or not it helped: it is not tried again soon."""
    if ladder.step is None:
        return ladder
    return replace(ladder, tried=(*ladder.tried, ladder.step), step=None)


def healed(ladder: Ladder) -> Ladder:
    """All is well: the next failure starts at the first rung again."""
    return Ladder(urgent=ladder.urgent)


def explain(ladder: Ladder, at_s: float) -> str:
    """What is being done about the trouble, or an empty text."""
    if ladder.is_resting(at_s):
        rest = duration_text(ladder.rest_until_s - at_s)
        return f"{ladder.reason} The next look is in {rest}.".strip()
    if ladder.step is not None:
        return f"{ladder.reason} Next repair step: {ladder.step.value}.".strip()
    return ""


def _rest(ladder: Ladder, at_s: float) -> Ladder:
    first_s = URGENT_REST_FIRST_S if ladder.urgent else REST_FIRST_S
    most_s = URGENT_REST_MOST_S if ladder.urgent else REST_MOST_S
    rest_s = min(most_s, first_s * 2 ** min(ladder.rests, _MOST_DOUBLINGS))
    return replace(ladder, tried=(), step=None, rest_until_s=at_s + rest_s, rests=ladder.rests + 1)
