"""A desktop in words: its state for a list, and why it does or does not work, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from officegrid.core.desk import Rule
from officegrid.core.quantities import duration_text
from officegrid.core.vm import VmState

DeskState = Literal[
    "working", "starting", "idle", "user here", "waits", "paused", "saved", "drained", "trouble",
    "silent",
]  # fmt: skip

Number = float | int | str | bool | None


@dataclass(frozen=True, slots=True)
class DeskFacts:
    """What the coordinator knows of a desktop. Times are in seconds before now."""

    name: str
    heard_ago_s: float | None
    """The agent's last report; None: there was none."""
    silent: bool
    """The agent has not been heard of for longer than it may be."""
    drain: bool = False
    decision: str = "yield"
    rule: str = ""
    sentence: str = ""
    change: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    vm: str = "unknown"
    health: str = ""
    health_sentence: str = ""
    trouble: str = ""
    """What the agent said of the last trouble that no run has followed."""
    worker: str = ""
    """Name of the worker in its VM; "" when none has joined."""
    worker_heard_ago_s: float = 0.0
    worker_online: bool = False
    units: int = 0
    claimable_jobs: int = 0
    below_floor: bool = False
    """It gets no units, because a program of it is too old; others say why."""
    rests: bool = False
    """It takes no units for a moment, because it could not run one; others say why."""


_HERE = {
    Rule.INPUT: "user here",
    Rule.REMOTE: "user here, from elsewhere",
    Rule.PRESENTING: "user here, presenting",
}
_WAITS = {
    Rule.CPU: "other programs are busy",
    Rule.MEMORY: "too little memory free",
    Rule.BATTERY: "on battery",
    Rule.HOURS: "outside its hours",
    Rule.USER_PAUSE: "its user said not now",
    Rule.NEVER: "never on this PC",
    Rule.SILENT: "cannot tell whether somebody is there",
    Rule.DRAIN: "drained",
}


def desk_state(facts: DeskFacts) -> tuple[DeskState, str]:
    """(state, words with the reason) of a desktop; every desktop is in exactly one."""
    if facts.silent or facts.heard_ago_s is None:
        if facts.worker_online:
            return "working", "working, its agent is silent"
        ago = facts.heard_ago_s
        return "silent", "silent" if ago is None else f"silent for {duration_text(ago)}"
    if facts.trouble or facts.health == "unusable" or facts.vm == VmState.BROKEN:
        return "trouble", "trouble"
    if facts.drain:
        return "drained", "drained"
    if facts.vm == VmState.PAUSED:
        return "paused", _because("paused", facts)
    if facts.decision == "run":
        if facts.vm == VmState.RUNNING:
            return "working", "working"
        return "starting", "starting"
    if facts.rule in _HERE:
        return "user here", _HERE[Rule(facts.rule)]
    left_s = starts_in_s(facts)
    if left_s is not None:
        return "idle", f"idle, starts in {duration_text(left_s)}"
    if facts.rule in (Rule.NOT_YET, Rule.SETTLING):
        return "idle", "idle, but something else is in the way"
    if facts.vm in (VmState.SAVED, VmState.SAVING):
        return "saved", _because("saved", facts)
    return "waits", _because("waits", facts)


def _because(word: str, facts: DeskFacts) -> str:
    reason = _HERE.get(facts.rule) or _WAITS.get(facts.rule)  # type: ignore[call-overload]
    return f"{word}: {reason}" if reason and facts.decision != "run" else word


def starts_in_s(facts: DeskFacts) -> float | None:
    """How long until the desktop starts if nothing changes there; None: it does not say, or more
    than time is in the way. From the numbers of `core.idle`, aged by the report's age."""
    numbers = facts.numbers
    passed = {Rule.NOT_YET: "idle_s", Rule.SETTLING: "well_s", Rule.CPU: "quiet_for_s"}
    needed_s, name = numbers.get("needed_s"), passed.get(facts.rule, "")  # type: ignore[call-overload]
    so_far_s = numbers.get(name)
    if "also" in numbers or not _is_number(needed_s) or not _is_number(so_far_s):
        return None
    left_s = float(needed_s or 0.0) - float(so_far_s or 0.0) - (facts.heard_ago_s or 0.0)
    return max(0.0, left_s)


def _is_number(value: Number) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def why_desk(facts: DeskFacts) -> list[str]:
    """Why the desktop works or does not, most important first: silence, drain, trouble, the
    agent's last decision and what would change it, then its worker and the work there is."""
    sentences = [*_silence(facts), *_drain(facts), *_trouble(facts)]
    if facts.heard_ago_s is None:
        return sentences
    if facts.sentence:
        before = "Its last word was: " if facts.silent else f"{facts.name}: "
        sentences.append(before + _ended(facts.sentence))
    if facts.change and not facts.silent:
        sentences.append(_ended(facts.change))
    if facts.decision == "run" and not facts.silent:
        sentences += _work(facts)
    return sentences


def _silence(facts: DeskFacts) -> list[str]:
    name = facts.name
    if facts.heard_ago_s is None:
        return [
            f"{name} has joined, but its agent has not reported yet.",
            "Start it there with `officegrid agent run`, or see `officegrid agent status` there.",
        ]
    if not facts.silent:
        return []
    ago = duration_text(facts.heard_ago_s)
    if facts.worker_online:
        return [
            f"The agent of {name} has not been heard of for {ago}; its worker still is.",
            "See `officegrid agent status` there, and the agent's log.",
        ]
    return [
        f"{name} has not been heard of for {ago}: it is off, asleep, or without network.",
        "If it is on, see `officegrid agent status` there, and the agent's log.",
    ]


def _drain(facts: DeskFacts) -> list[str]:
    if not facts.drain:
        return []
    return [
        f"{facts.name} is drained: an admin took it out of service. "
        f"`officegrid drain {facts.name} --off` puts it back."
    ]


def _trouble(facts: DeskFacts) -> list[str]:
    sentences = []
    if facts.trouble:
        sentences.append(f"{facts.name} is in trouble: {_ended(facts.trouble)}")
    if facts.health in ("degraded", "unusable") and facts.health_sentence:
        can = "can run no VM" if facts.health == "unusable" else "works, but not as it should"
        sentences.append(f"{facts.name} {can}: {_ended(facts.health_sentence)}")
    return sentences


def _work(facts: DeskFacts) -> list[str]:
    if not facts.worker:
        return ["The worker in its VM has not joined yet; it does when the VM has booted."]
    if not facts.worker_online:
        ago = duration_text(facts.worker_heard_ago_s)
        return [f"The worker in its VM has not been heard of for {ago}; the VM is {facts.vm}."]
    if facts.units:
        many = "s" if facts.units > 1 else ""
        return [f"Its worker is working on {facts.units} unit{many}."]
    if facts.below_floor or facts.rests:
        return []
    if facts.claimable_jobs == 0:
        return ["Its worker has nothing to do: no job has records pending."]
    return ["Its worker should ask for a unit within seconds."]


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
