"""What is remembered about a worker VM's life, and how events change it. Pure.

`notice` learns from an observation (it ended by itself, its guest never reported in, it is stuck),
`done` from the outcome of a verb. `core.vmcycle` decides on what is remembered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from officegrid.core import repair
from officegrid.core.quantities import duration_text
from officegrid.core.repair import URGENT_RUNGS, Ladder
from officegrid.core.vm import HOLDS_MEMORY, Capabilities, RepairStep, Trouble, VmState, VmStatus

HOUR_S = 3600.0
REFUSED_S = 30.0
STOP_AGAIN_S = 10.0
LOCKED_URGENT_S = 0.2
MOST_LOCKED_TRIES = 5
NEVER_S = float("-inf")


class Want(StrEnum):
    RUN = "run"
    YIELD = "yield"
    """Give CPU and memory back, keep the guest's state."""
    RELEASE = "release"
    """Give CPU and memory back; the guest's state will not be wanted."""


class Verb(StrEnum):
    WAIT = "wait"
    IMPORT_IMAGE = "import_image"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    SAVE = "save"
    STOP = "stop"
    DISCARD = "discard"
    REPAIR = "repair"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take before they count as failed, and the desk's own limits."""

    saves_per_hour: int = 6
    save_delay_s: float = 0.0
    boot_deadline_s: float = 300.0
    """From start or resume until the guest has reported in."""
    steady_s: float = 60.0
    """A VM that has run well for this long is healthy."""
    starting_s: float = 180.0
    saving_s: float = 600.0
    stopping_s: float = 60.0
    unknown_s: float = 15.0
    unheard_s: float = 600.0
    """A running worker that the coordinator has not heard for so long is of no use."""
    urgent_unknown_s: float = 3.0
    urgent_starting_s: float = 5.0
    urgent_running_s: float = 10.0
    """While the desk user is there, nothing milder than a stop is tried after this."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision needs, at one moment."""

    at_s: float
    status: VmStatus
    want: Want
    can: Capabilities
    limits: Limits
    reported_in: bool | None = None
    """Has the guest been heard since the last start? None: nobody could hear it."""
    memory_short: bool = False
    """Then a paused VM is saved without delay."""
    unheard_s: float | None = None
    """For how long the coordinator, in touch all the while, has not heard the worker. None: it
    cannot say."""
    observed: bool = True
    """False: the status is what the last verb promised; nobody has looked since."""


@dataclass(frozen=True, slots=True)
class Action:
    verb: Verb
    reason: str
    want: Want
    step: RepairStep | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered between decisions. Times are monotonic seconds."""

    ladder: Ladder = field(default_factory=Ladder)
    urgent: Ladder = field(default_factory=lambda: Ladder(urgent=True))
    refused: Mapping[Verb, float] = field(default_factory=dict)
    """Verbs that failed and are not tried again before this time."""
    locked_tries: int = 0
    locked_until_s: float = NEVER_S
    """Something else is busy with the VM: nothing is tried before this time."""
    saves_at_s: tuple[float, ...] = ()
    state: VmState | None = None
    state_since_s: float = 0.0
    want: Want = Want.YIELD
    up_since_s: float | None = None
    """Set while the VM should be running: by a start, a resume, or when it was found so."""
    reported_in: bool = False
    must_stop: bool = False
    """It runs, but is of no use: power off, then go on with the ladder."""
    discard_due: bool = False
    discarded: bool = False
    claimed: Verb | None = None
    """The last verb, which reported success; an observation has not yet borne it out."""
    cpu_since_s: float | None = None
    """Since when the VM has been seen running although the desk user is there."""
    notes: tuple[str, ...] = ()
    """Trouble noticed by the last `next_action`, for the log and the coordinator."""


def notice(memory: Memory, facts: Facts) -> Memory:
    """The memory after an observation."""
    if facts.want is not memory.want:
        # Another visit, or another absence: everything may be tried afresh.
        urgent = repair.healed(memory.urgent) if memory.want is Want.RUN else memory.urgent
        memory = replace(memory, want=facts.want, refused={}, locked_until_s=NEVER_S, urgent=urgent)
        if facts.want is Want.RUN and memory.claimed in (Verb.PAUSE, Verb.SAVE):
            memory = replace(memory, claimed=None)
    memory = replace(memory, notes=())
    if facts.status.state is not memory.state:
        memory = replace(memory, state=facts.status.state, state_since_s=facts.at_s)
    holds = facts.status.state in HOLDS_MEMORY | {VmState.BROKEN, VmState.UNKNOWN}
    if facts.observed and not holds:
        memory = replace(memory, urgent=repair.healed(memory.urgent), must_stop=False)
    memory = _notice_cpu(memory, facts)
    memory = _notice_lie(memory, facts)
    memory = _notice_end(memory, facts)
    if facts.status.state is VmState.RUNNING:
        memory = _notice_running(memory, facts)
    return _notice_stuck(memory, facts)


def done(memory: Memory, action: Action, facts: Facts, error: tuple[Trouble, str] | None) -> Memory:
    """The memory after `action` has succeeded (no error) or failed (trouble and sentence).
    `facts.at_s` is the time it ended; the other facts may be those before the action."""
    at_s = facts.at_s
    if action.verb is Verb.SAVE:  # the disk was written to, whether or not it worked
        recent = tuple(s for s in memory.saves_at_s if s > at_s - HOUR_S)
        memory = replace(memory, saves_at_s=(*recent, at_s))
    if action.verb is Verb.REPAIR:
        memory = _climbed(memory, action)
    if error is None:
        return _succeeded(memory, action, at_s)
    return _failed(memory, action, facts, *error)


def slept(memory: Memory, gap_s: float) -> Memory:
    """The PC slept, or the clock jumped, for this long: nothing that was timed counts it."""
    since_s = memory.state_since_s + gap_s
    up_s = None if memory.up_since_s is None else memory.up_since_s + gap_s
    cpu_s = None if memory.cpu_since_s is None else memory.cpu_since_s + gap_s
    return replace(memory, state_since_s=since_s, up_since_s=up_s, cpu_since_s=cpu_s)


def explain(memory: Memory, at_s: float) -> str:
    """What is wrong with the VM and what is done about it; empty when all is well."""
    return repair.explain(memory.urgent, at_s) or repair.explain(memory.ladder, at_s)


def is_overdue(memory: Memory, facts: Facts) -> bool:
    """Has the VM been seen running for too long although the desk user is there?"""
    since_s = memory.cpu_since_s
    return since_s is not None and facts.at_s - since_s >= facts.limits.urgent_running_s


def saved_too_often(memory: Memory, facts: Facts) -> bool:
    """Would one more save exceed the hourly limit (disk wear)?"""
    recent = sum(1 for saved_s in memory.saves_at_s if saved_s > facts.at_s - HOUR_S)
    return recent >= facts.limits.saves_per_hour


# --- what an observation says ----------------------------------------------------------------


def _notice_cpu(memory: Memory, facts: Facts) -> Memory:
    """Since when the CPU has been kept from the desk user; what a verb promised does not end it."""
    if facts.want is Want.RUN:
        return replace(memory, cpu_since_s=None)
    if not facts.observed or facts.status.state is VmState.UNKNOWN:
        return memory
    if facts.status.state is not VmState.RUNNING:
        return replace(memory, cpu_since_s=None)
    return memory if memory.cpu_since_s is not None else replace(memory, cpu_since_s=facts.at_s)


def _notice_lie(memory: Memory, facts: Facts) -> Memory:
    """A verb that reported success, and an observation since then that says otherwise."""
    verb, state = memory.claimed, facts.status.state
    if verb is None or not facts.observed or state in _ON_THE_WAY:
        return memory
    memory = replace(memory, claimed=None)
    held = {VmState.PAUSED} if verb is Verb.RESUME else {VmState.RUNNING, VmState.PAUSED}
    if state not in (held - {VmState.PAUSED} if verb is Verb.PAUSE else held):
        return memory
    sentence = f"The hypervisor said that {verb.value} had worked, but the VM is {state.value}."
    if verb in (Verb.PAUSE, Verb.SAVE):  # there are other ways to give the PC back
        refused = {**memory.refused, verb: facts.at_s + REFUSED_S}
        return _note(replace(memory, refused=refused), sentence)
    if verb is Verb.RESUME and facts.want is not Want.RUN:
        return memory
    if facts.want is Want.RUN and state is VmState.RUNNING:
        memory = replace(memory, must_stop=True)
    ladder = memory.ladder if facts.want is Want.RUN else memory.urgent
    if not ladder.is_quiet(facts.at_s):
        return _note(memory, sentence)
    return _trouble(memory, Trouble.STUCK, sentence, facts)


_ON_THE_WAY = frozenset({
    VmState.STARTING, VmState.SAVING, VmState.STOPPING, VmState.BROKEN, VmState.UNKNOWN,
})  # fmt: skip


def _notice_end(memory: Memory, facts: Facts) -> Memory:
    state, up_since_s = facts.status.state, memory.up_since_s
    if up_since_s is None or state in HOLDS_MEMORY | {VmState.UNKNOWN}:
        return memory
    memory = replace(memory, up_since_s=None)
    if state is VmState.ABSENT:
        return _note(memory, "The VM was deleted while it ran; it is made anew when possible.")
    ran = duration_text(max(0.0, facts.at_s - up_since_s))
    sentence = f"The VM ended by itself after {ran}. {facts.status.detail}".strip()
    if facts.want is not Want.RUN:
        return _note(memory, sentence)
    return _trouble(memory, Trouble.FAILED, sentence, facts)


def _notice_running(memory: Memory, facts: Facts) -> Memory:
    if facts.want is not Want.RUN:
        return memory
    since_s = facts.at_s if memory.up_since_s is None else memory.up_since_s
    reported_in = memory.reported_in or facts.reported_in is True
    memory = replace(memory, up_since_s=since_s, reported_in=reported_in)
    up_s = facts.at_s - since_s
    unheard_s = min(up_s, facts.unheard_s or 0.0)
    if unheard_s >= facts.limits.unheard_s and not memory.must_stop:
        sentence = (
            f"The coordinator has not heard the worker in the VM for {duration_text(unheard_s)}."
        )
        memory = replace(memory, must_stop=True, reported_in=False)
        return _trouble(memory, Trouble.STUCK, sentence, facts)
    if memory.must_stop:
        return memory  # it stays of no use until it has been stopped
    if up_s >= facts.limits.steady_s and (reported_in or facts.reported_in is None):
        return replace(
            memory, ladder=repair.healed(memory.ladder), discarded=False, must_stop=False
        )
    silent = facts.reported_in is False and not reported_in
    if silent and up_s >= facts.limits.boot_deadline_s:
        sentence = (
            f"The worker in the VM has not reported in {duration_text(up_s)} after the start; "
            f"{duration_text(facts.limits.boot_deadline_s)} are allowed."
        )
        memory = replace(memory, must_stop=True)
        return _trouble(memory, Trouble.STUCK, sentence, facts)
    return memory


def _notice_stuck(memory: Memory, facts: Facts) -> Memory:
    """Count a state that lasts too long as a failure, once per rung."""
    state, running = facts.status.state, facts.want is Want.RUN
    lasted_s = facts.at_s - memory.state_since_s
    limits = facts.limits
    if is_overdue(memory, facts):  # only ever while the desk user is there
        lasted_s = facts.at_s - (memory.cpu_since_s or facts.at_s)
    allowed_s = {
        VmState.RUNNING: limits.urgent_running_s if is_overdue(memory, facts) else None,
        VmState.STARTING: limits.starting_s if running else limits.urgent_starting_s,
        VmState.SAVING: limits.saving_s,
        VmState.STOPPING: limits.stopping_s,
        VmState.UNKNOWN: limits.unknown_s if running else limits.urgent_unknown_s,
        VmState.BROKEN: 0.0,
    }.get(state)
    if allowed_s is None or lasted_s < allowed_s:
        return memory
    # In these states stop is tried first while the desk user waits; its failure climbs.
    stop_first = state in (VmState.RUNNING, VmState.STARTING, VmState.UNKNOWN, VmState.BROKEN)
    if not running and stop_first and facts.at_s >= memory.refused.get(Verb.STOP, NEVER_S):
        return memory
    ladder = memory.ladder if running else memory.urgent
    if not ladder.is_quiet(facts.at_s):
        return memory
    for_long = f" for {duration_text(lasted_s)}" if lasted_s >= 1 else ""
    detail = f": {facts.status.detail}" if facts.status.detail else ""
    return _trouble(memory, Trouble.STUCK, f"The VM is {state.value}{for_long}{detail}.", facts)


# --- what an outcome says --------------------------------------------------------------------


def _succeeded(memory: Memory, action: Action, at_s: float) -> Memory:
    claimed = None if action.step is RepairStep.RETRY else action.verb
    memory = replace(memory, locked_tries=0, locked_until_s=NEVER_S, claimed=claimed)
    match action.verb:
        case Verb.START:
            return replace(
                memory, up_since_s=at_s, reported_in=False, must_stop=False, claimed=None
            )
        case Verb.RESUME:
            return replace(memory, up_since_s=at_s)
        case Verb.PAUSE | Verb.SAVE | Verb.REPAIR:
            return replace(memory, up_since_s=None)
        case Verb.STOP:
            # If it turns out not to have stopped, `_notice_lie` climbs rather than stop again.
            refused = {**memory.refused, Verb.STOP: at_s + STOP_AGAIN_S}
            return replace(memory, up_since_s=None, must_stop=False, refused=refused)
        case Verb.DISCARD:
            return replace(memory, discard_due=False)
        case _:
            return memory


def _failed(
    memory: Memory, action: Action, facts: Facts, trouble: Trouble, sentence: str
) -> Memory:
    at_s, urgent = facts.at_s, action.want is not Want.RUN
    if trouble is Trouble.CANCELLED:
        return replace(memory, up_since_s=None)
    if trouble is Trouble.LOCKED and memory.locked_tries < MOST_LOCKED_TRIES:
        wait_s = LOCKED_URGENT_S if urgent else float(2**memory.locked_tries)
        return replace(memory, locked_tries=memory.locked_tries + 1, locked_until_s=at_s + wait_s)
    memory = replace(memory, locked_tries=0)
    if trouble is Trouble.SAVED_STATE and not memory.discarded and not urgent:
        return replace(memory, discard_due=True, discarded=True)
    again_s = STOP_AGAIN_S if action.verb is Verb.STOP else REFUSED_S
    if action.verb is not Verb.REPAIR:
        memory = replace(memory, refused={**memory.refused, action.verb: at_s + again_s})
    if urgent and action.verb is Verb.SAVE and trouble in repair.INCURABLE:
        # Not now, because the memory must be freed first; but before the next start.
        ladder = repair.failed(memory.ladder, trouble, sentence, at_s, ())
        return replace(memory, ladder=ladder)
    if urgent and action.verb in (Verb.PAUSE, Verb.SAVE, Verb.DISCARD):
        return memory  # there are other ways to give the PC back
    return _climb_on(memory, action.want, trouble, sentence, facts)


def _climbed(memory: Memory, action: Action) -> Memory:
    if action.want is Want.RUN:
        return replace(memory, ladder=repair.climbed(memory.ladder))
    return replace(memory, urgent=repair.climbed(memory.urgent))


def _trouble(memory: Memory, trouble: Trouble, sentence: str, facts: Facts) -> Memory:
    """A failure that nobody reported but that was noticed."""
    return _climb_on(_note(memory, sentence), facts.want, trouble, sentence, facts)


def _climb_on(memory: Memory, want: Want, trouble: Trouble, sentence: str, facts: Facts) -> Memory:
    available, at_s = facts.can.repairs, facts.at_s
    if want is Want.RUN:
        ladder = repair.failed(memory.ladder, trouble, sentence, at_s, available)
        return replace(memory, ladder=ladder)
    urgent = repair.failed(memory.urgent, trouble, sentence, at_s, available & set(URGENT_RUNGS))
    return replace(memory, urgent=urgent)


def _note(memory: Memory, sentence: str) -> Memory:
    return replace(memory, notes=(*memory.notes, sentence))
