"""The life of a worker VM: `observed state + verdict + memory + time -> next action`. Pure.

One table, `TABLE`, has a row of guarded verbs for each state and each want; the first guard that
holds decides. `validate` proves what the table must never do (start while the desk user waits,
leave memory held without a way to free it). The caller asks `next_action` whenever nothing is
under way, carries the action out, tells `vmlife.done` the outcome, and observes again.

    WAIT       nothing to do now; the reason says what is waited for
    REPAIR     climb one rung of the ladder, see core.repair; RETRY means: just go on
    others     the driver's verb of that name

A want other than RUN that comes while START is under way is the caller's: it cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from officegrid.core.vm import VmState
from officegrid.core.vmlife import (
    NEVER_S,
    Action,
    Facts,
    Memory,
    Verb,
    Want,
    is_overdue,
    notice,
    saved_too_often,
)

Guard = Callable[[Memory, Facts], bool]


@dataclass(frozen=True, slots=True)
class Row:
    guard: Guard
    verb: Verb
    reason: str


def next_action(memory: Memory, facts: Facts) -> tuple[Memory, Action]:
    """What to do now. Ask only while no verb is under way and the state is freshly observed."""
    memory = notice(memory, facts)
    if facts.at_s < memory.locked_until_s:
        return memory, Action(Verb.WAIT, "the VM is locked; tried again in a moment", facts.want)
    for row in TABLE[facts.status.state, facts.want]:
        if row.guard(memory, facts):
            return memory, _action(row, memory, facts)
    raise AssertionError("validate() makes sure that the last guard always holds")


def _action(row: Row, memory: Memory, facts: Facts) -> Action:
    if row.verb is not Verb.REPAIR:
        return Action(row.verb, row.reason, facts.want)
    ladder = memory.ladder if facts.want is Want.RUN else memory.urgent
    return Action(Verb.REPAIR, ladder.reason, facts.want, ladder.step)


# --- guards ----------------------------------------------------------------------------------


def _always(_: Memory, __: Facts) -> bool:
    return True


def _resting(memory: Memory, facts: Facts) -> bool:
    return memory.ladder.is_resting(facts.at_s)


def _repair_planned(memory: Memory, facts: Facts) -> bool:
    return memory.ladder.step is not None and not memory.ladder.is_due(facts.at_s)


def _repair_due(memory: Memory, facts: Facts) -> bool:
    return memory.ladder.is_due(facts.at_s)


def _urgent_due(memory: Memory, facts: Facts) -> bool:
    return memory.urgent.is_due(facts.at_s)


def _cannot_import(_: Memory, facts: Facts) -> bool:
    return not facts.can.imports


def _discard_due(memory: Memory, _: Facts) -> bool:
    return memory.discard_due


def _must_stop(memory: Memory, facts: Facts) -> bool:
    return memory.must_stop and not _resting(memory, facts) and _allowed(memory, facts, Verb.STOP)


def _must_stop_repair(memory: Memory, facts: Facts) -> bool:
    return memory.must_stop and _repair_due(memory, facts)


def _resting_may_stop(memory: Memory, facts: Facts) -> bool:
    return _resting(memory, facts) and _may_stop(memory, facts)


def _may_pause(memory: Memory, facts: Facts) -> bool:
    return facts.can.pauses and _allowed(memory, facts, Verb.PAUSE)


def _may_save(memory: Memory, facts: Facts) -> bool:
    often = saved_too_often(memory, facts)
    return facts.can.saves and not often and _allowed(memory, facts, Verb.SAVE)


def _may_stop(memory: Memory, facts: Facts) -> bool:
    # Once every urgent rung has failed, a rest: the desk user's PC is not to be worn down either.
    return not memory.urgent.is_resting(facts.at_s) and _allowed(memory, facts, Verb.STOP)


def _overdue_may_stop(memory: Memory, facts: Facts) -> bool:
    return is_overdue(memory, facts) and _may_stop(memory, facts)


def _overdue_urgent_due(memory: Memory, facts: Facts) -> bool:
    return is_overdue(memory, facts) and _urgent_due(memory, facts)


def _may_stop_saved_too_often(memory: Memory, facts: Facts) -> bool:
    return facts.can.saves and saved_too_often(memory, facts) and _may_stop(memory, facts)


def _may_discard(memory: Memory, facts: Facts) -> bool:
    return _allowed(memory, facts, Verb.DISCARD)


def _save_later(memory: Memory, facts: Facts) -> bool:
    paused_s = facts.at_s - memory.state_since_s
    return not facts.memory_short and paused_s < facts.limits.save_delay_s


def _just_starting(memory: Memory, facts: Facts) -> bool:
    return facts.at_s - memory.state_since_s < facts.limits.urgent_starting_s


def _just_unknown(memory: Memory, facts: Facts) -> bool:
    return facts.at_s - memory.state_since_s < facts.limits.urgent_unknown_s


def _allowed(memory: Memory, facts: Facts, verb: Verb) -> bool:
    return facts.at_s >= memory.refused.get(verb, NEVER_S)


# --- the table -------------------------------------------------------------------------------

_REST = Row(_resting, Verb.WAIT, "given up for a while")
_PLANNED = Row(_repair_planned, Verb.WAIT, "the next repair step is due in a moment")
_CLIMB = Row(_repair_due, Verb.REPAIR, "")
_URGENT = Row(_urgent_due, Verb.REPAIR, "")
_MEND = (_REST, _PLANNED, _CLIMB)
_HOLD = Row(_always, Verb.WAIT, "every way to free the memory failed just now; tried again soon")
_GONE = (Row(_always, Verb.WAIT, "the PC is the desk user's, nothing of ours is in memory"),)
_TOO_OFTEN = Row(_may_stop_saved_too_often, Verb.STOP, "saved too often within the last hour")
_SAVE = Row(_may_save, Verb.SAVE, "give the memory back")
_UNKNOWN = Row(_just_unknown, Verb.WAIT, "the hypervisor did not say how the VM is")
_OVERDUE = (
    Row(_overdue_urgent_due, Verb.REPAIR, ""),
    Row(_overdue_may_stop, Verb.STOP, "it has used the desk user's CPU for too long"),
)
_STOP = Row(_may_stop, Verb.STOP, "give the memory back without saving")

TABLE: Mapping[tuple[VmState, Want], tuple[Row, ...]] = {
    (VmState.ABSENT, Want.RUN): (
        *_MEND,
        Row(_cannot_import, Verb.WAIT, "there is no VM and this driver cannot make one"),
        Row(_always, Verb.IMPORT_IMAGE, "there is no VM yet"),
    ),
    (VmState.OFF, Want.RUN): (
        *_MEND,
        Row(_always, Verb.START, "boot"),
    ),
    (VmState.SAVED, Want.RUN): (
        *_MEND,
        Row(_discard_due, Verb.DISCARD, "the saved state cannot be used"),
        Row(_always, Verb.START, "go on from the saved state"),
    ),
    (VmState.STARTING, Want.RUN): (*_MEND, Row(_always, Verb.WAIT, "the VM is starting")),
    (VmState.RUNNING, Want.RUN): (
        Row(_must_stop, Verb.STOP, "the VM runs but is of no use"),
        Row(_must_stop_repair, Verb.REPAIR, ""),
        Row(_always, Verb.WAIT, "the VM is running"),
    ),
    (VmState.PAUSED, Want.RUN): (
        Row(_resting_may_stop, Verb.STOP, "given up for a while: its memory is freed"),
        *_MEND,
        Row(_always, Verb.RESUME, "nobody is here any more"),
    ),
    (VmState.SAVING, Want.RUN): (
        *_MEND,
        Row(_always, Verb.WAIT, "the VM is being saved; it starts again after that"),
    ),
    (VmState.STOPPING, Want.RUN): (*_MEND, Row(_always, Verb.WAIT, "the VM is stopping")),
    (VmState.BROKEN, Want.RUN): (*_MEND, Row(_always, Verb.WAIT, "the VM is broken")),
    (VmState.UNKNOWN, Want.RUN): (
        *_MEND,
        Row(_always, Verb.WAIT, "the hypervisor did not say how the VM is"),
    ),
    (VmState.ABSENT, Want.YIELD): _GONE,
    (VmState.OFF, Want.YIELD): _GONE,
    (VmState.SAVED, Want.YIELD): _GONE,
    (VmState.STARTING, Want.YIELD): (
        _URGENT,
        Row(_just_starting, Verb.WAIT, "the VM is starting; it is paused as soon as it runs"),
        _STOP,
        _HOLD,
    ),
    (VmState.RUNNING, Want.YIELD): (
        *_OVERDUE,
        Row(_may_pause, Verb.PAUSE, "give the CPU back"),
        _URGENT,
        _TOO_OFTEN,
        _SAVE,
        _STOP,
        _HOLD,
    ),
    (VmState.PAUSED, Want.YIELD): (
        _URGENT,
        Row(_save_later, Verb.WAIT, "paused in memory; saved in a moment unless the PC is left"),
        _TOO_OFTEN,
        _SAVE,
        _STOP,
        _HOLD,
    ),
    (VmState.SAVING, Want.YIELD): (_URGENT, Row(_always, Verb.WAIT, "the VM is being saved")),
    (VmState.STOPPING, Want.YIELD): (_URGENT, Row(_always, Verb.WAIT, "the VM is stopping")),
    (VmState.BROKEN, Want.YIELD): (_URGENT, _STOP, _HOLD),
    (VmState.UNKNOWN, Want.YIELD): (_URGENT, _UNKNOWN, _STOP, _HOLD),
    (VmState.ABSENT, Want.RELEASE): _GONE,
    (VmState.OFF, Want.RELEASE): _GONE,
    (VmState.SAVED, Want.RELEASE): (
        Row(_may_discard, Verb.DISCARD, "the saved memory will not be wanted; the disk is kept"),
        Row(_always, Verb.WAIT, "dropping the saved memory failed; tried again soon"),
    ),
    (VmState.STARTING, Want.RELEASE): (_URGENT, _STOP, _HOLD),
    (VmState.RUNNING, Want.RELEASE): (
        *_OVERDUE,
        Row(_may_pause, Verb.PAUSE, "give the CPU back"),
        _URGENT,
        _STOP,
        _HOLD,
    ),
    (VmState.PAUSED, Want.RELEASE): (_URGENT, _STOP, _HOLD),
    (VmState.SAVING, Want.RELEASE): (_URGENT, Row(_always, Verb.WAIT, "the VM is being saved")),
    (VmState.STOPPING, Want.RELEASE): (_URGENT, Row(_always, Verb.WAIT, "the VM is stopping")),
    (VmState.BROKEN, Want.RELEASE): (_URGENT, _STOP, _HOLD),
    (VmState.UNKNOWN, Want.RELEASE): (_URGENT, _UNKNOWN, _STOP, _HOLD),
}

_RELEASING = frozenset({Verb.WAIT, Verb.PAUSE, Verb.SAVE, Verb.STOP, Verb.DISCARD, Verb.REPAIR})
_POSSIBLE: Mapping[Verb, frozenset[VmState]] = {
    Verb.IMPORT_IMAGE: frozenset({VmState.ABSENT}),
    Verb.START: frozenset({VmState.OFF, VmState.SAVED}),
    Verb.PAUSE: frozenset({VmState.RUNNING}),
    Verb.RESUME: frozenset({VmState.PAUSED}),
    Verb.SAVE: frozenset({VmState.RUNNING, VmState.PAUSED}),
    Verb.DISCARD: frozenset({VmState.SAVED}),
}


def validate(table: Mapping[tuple[VmState, Want], tuple[Row, ...]] = TABLE) -> list[str]:
    """What is wrong with a table, as sentences; none for a sound one."""
    wrong = []
    for state in VmState:
        for want in Want:
            rows = table.get((state, want), ())
            where = f"({state.value}, {want.value})"
            if not rows or rows[-1].guard is not _always:
                wrong.append(f"{where} may leave no row that applies")
            if any(row.guard is _always for row in rows[:-1]):
                wrong.append(f"{where} has rows that are never reached")
            verbs = {row.verb for row in rows}
            if want is not Want.RUN and not verbs <= _RELEASING:
                wrong.append(f"{where} starts something while the PC is to be given back")
            if want is not Want.RUN and state in _MUST_FREE and Verb.STOP not in verbs:
                wrong.append(f"{where} has no way to free the memory")
            if want is not Want.RUN and state is VmState.RUNNING and rows[:2] != _OVERDUE:
                wrong.append(f"{where} may try the mild ways for ever while the CPU is kept")
            if want is not Want.RUN and state in _MAY_STICK and Verb.REPAIR not in verbs:
                wrong.append(f"{where} has no repair")
            wrong += [
                f"{where} asks for {verb.value}, which that state does not allow"
                for verb in sorted(verbs & set(_POSSIBLE))
                if state not in _POSSIBLE[verb]
            ]
    return wrong


_MUST_FREE = frozenset({
    VmState.STARTING, VmState.RUNNING, VmState.PAUSED, VmState.BROKEN, VmState.UNKNOWN,
})  # fmt: skip
_MAY_STICK = _MUST_FREE | {VmState.SAVING, VmState.STOPPING}
