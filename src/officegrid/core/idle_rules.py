"""The rules of the idle policy, one function each: does it object to running now, and why?

Each takes a `Moment` and returns an `Objection` with sentences for the desk user and the grid
admin, or None. A rule whose reading is not known says nothing: `silent` objects to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from officegrid.core.desk import DeskPolicy, Hours, Rule, Sample, Session
from officegrid.core.deskrules import (
    DAY_MINUTES,
    DAYS,
    format_hours,
    inside_any,
    minutes_until_allowed,
)
from officegrid.core.idle_memory import (
    INPUT,
    LOGON,
    UNLOCK,
    WAKE,
    IdleMemory,
    Seat,
    foreign_cpu,
    idle_time,
    known,
    quiet_share,
)
from officegrid.core.quantities import duration_text

Number = float | int | str | bool | None

RECENT_S = 60.0
"""Input that is younger means that somebody sits here; older input that it was not long enough."""
LOCK_SCREEN_S = 30.0
"""Somebody touched the locked PC: so long it is theirs, to unlock it without waiting."""
NO_END_S = 10 * 365 * 86400.0
"""A pause that is longer is for ever."""
LONG_PAUSE_S = 8 * 3600.0
"""A VM that is not wanted for longer than this is powered off, not saved."""


@dataclass(frozen=True, slots=True)
class Moment:
    """All that a rule may look at."""

    policy: DeskPolicy
    memory: IdleMemory
    sample: Sample
    vm_memory_mb: int = 0

    def seats(self) -> list[tuple[Session, Seat]]:
        seats = {seat.id: seat for seat in self.memory.seats or ()}
        return [(session, seats[session.id]) for session in self.sample.sessions or ()]


@dataclass(frozen=True, slots=True)
class Objection:
    """Why the grid may not use the PC now."""

    rule: Rule
    sentence: str
    change: str
    numbers: dict[str, Number] = field(default_factory=dict)
    discard: bool = False
    lasting: bool = True
    """It will not pass by itself soon, so it is worth naming beside a more important one."""
    by_input: bool = False
    """Somebody really used the PC: the next start has its own waiting time."""


def span_text(seconds: float) -> str:
    """A time that has passed, rounded down: "299.9 s" is not yet five minutes."""
    return duration_text(math.floor(max(0.0, seconds)))


def left_text(seconds: float) -> str:
    """A time that is left, rounded up: never "0 s" while something is left."""
    return duration_text(math.ceil(max(0.0, seconds)))


def _ago(seconds: float) -> str:
    return "just now" if seconds < 1 else f"{span_text(seconds)} ago"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


# --- what people said


def never(moment: Moment) -> Objection | None:
    if not moment.policy.never:
        return None
    return Objection(
        Rule.NEVER,
        "The rules for this PC say that it never takes part.",
        "Changes when the rule 'never' is taken back.",
        discard=True,
    )


def drain(moment: Moment) -> Objection | None:
    if not moment.sample.drain:
        return None
    return Objection(
        Rule.DRAIN,
        "The grid admin has taken this PC out of service.",
        "Starts again when the grid admin puts it back into service.",
        discard=True,
    )


def user_pause(moment: Moment) -> Objection | None:
    """The wall clock decides; one that was set back prolongs the pause."""
    until_s = moment.sample.pause_until_s
    if until_s is None or moment.sample.wall_s >= until_s:
        return None
    left_s = until_s - moment.sample.wall_s
    if not left_s < NO_END_S:
        return Objection(
            Rule.USER_PAUSE,
            "The user of this PC paused the grid here until further notice.",
            "Starts again when the user ends the pause.",
            discard=True,
        )
    return Objection(
        Rule.USER_PAUSE,
        f"The user of this PC paused the grid here; {left_text(left_s)} are left.",
        f"Ends in {left_text(left_s)}, or when the user ends the pause.",
        {"pause_left_s": round(left_s, 1)},
        discard=left_s > LONG_PAUSE_S,
    )


# --- what nobody can tell


def silent(moment: Moment) -> Objection | None:
    """Silence means busy."""
    what = _unknown_session(moment) or _unknown_host(moment.sample)
    if what is None:
        return None
    sentence, numbers = what
    return Objection(
        Rule.SILENT,
        f"{sentence} What nobody can tell counts as busy.",
        "Starts when the sensor answers again and all is well; 'officegrid agent status' shows it.",
        numbers,
    )


def _unknown_session(moment: Moment) -> tuple[str, dict[str, Number]] | None:
    sessions, limit_s = moment.sample.sessions, moment.policy.sensor_timeout_s
    if sessions is None:
        return "No sensor can tell whether somebody uses this PC.", {}
    for session in sessions:
        numbers: dict[str, Number] = {"session": session.id[:64]}
        age_s = known(session.age_s)
        if age_s is None:
            return "It is not known how old a session's last reading is.", numbers
        if age_s > limit_s:
            numbers |= {"silent_s": round(age_s, 1), "sensor_timeout_s": limit_s}
            return (
                f"The sensor of a session has been silent for {span_text(age_s)}"
                f" (at most {left_text(limit_s)} are allowed).",
                numbers,
            )
        locked = session.locked is True
        if known(session.idle_s) is None and not (locked and moment.policy.lock_counts):
            return "It is not known when a session was last used.", numbers
        if session.presenting is None and not locked:
            return "It is not known whether something is being presented.", numbers
    return None


def _unknown_host(sample: Sample) -> tuple[str, dict[str, Number]] | None:
    if known(sample.foreign_cpu) is None:
        return "It is not known how much CPU other programs use.", {}
    if sample.on_battery is None:
        return "It is not known whether this PC runs on battery.", {}
    if sample.memory_free_mb is None:
        return "It is not known how much memory is free.", {}
    return None


# --- who is here


def input_rule(moment: Moment) -> Objection | None:
    """Every session must be away: locked, or without input for long enough."""
    worst: tuple[float, str, Session] | None = None
    for session, seat in moment.seats():
        if session.locked is True and moment.policy.lock_counts:
            knock = _lock_screen(moment, seat)
            if knock is not None:
                return knock
        elif known(session.idle_s) is not None:
            idle_s, cause = idle_time(moment.memory, seat, session, moment.sample.at_s)
            if worst is None or idle_s < worst[0]:
                worst = (idle_s, cause, session)
    needed_s = moment.policy.idle_s
    if worst is None or worst[0] >= needed_s:
        return None
    idle_s, cause, session = worst
    left_s = left_text(needed_s - idle_s)
    lock = ""
    if moment.policy.lock_counts:
        every = "every session" if len(moment.sample.sessions or ()) > 1 else "the session"
        lock = f", or at once when {every} is locked"
    recent = idle_s < RECENT_S and cause != WAKE
    return Objection(
        Rule.INPUT if recent else Rule.NOT_YET,
        f"{_SIGNS[cause]} {_ago(idle_s)}; the grid starts after {span_text(needed_s)}"
        " without input.",
        f"Starts in {left_s} if nobody touches it{lock}.",
        {"idle_s": round(idle_s, 1), "needed_s": needed_s, "session": session.id[:64]},
        lasting=False,
        by_input=(session.idle_s or 0.0) < needed_s,
    )


_SIGNS = {
    INPUT: "Somebody used this PC",
    UNLOCK: "This PC was unlocked",
    LOGON: "Somebody logged on to this PC",
    WAKE: "This PC woke up or its clock jumped",
}


def _lock_screen(moment: Moment, seat: Seat) -> Objection | None:
    if seat.knocked_s is None:
        return None
    passed_s = moment.sample.at_s - seat.knocked_s
    if passed_s >= LOCK_SCREEN_S:
        return None
    return Objection(
        Rule.INPUT,
        f"Somebody touched this locked PC {_ago(passed_s)}, perhaps to unlock it.",
        f"Starts in {left_text(LOCK_SCREEN_S - passed_s)} if it stays locked.",
        {"idle_s": round(passed_s, 1), "needed_s": LOCK_SCREEN_S, "session": seat.id[:64]},
        lasting=False,
        by_input=True,
    )


def remote_session(moment: Moment) -> Objection | None:
    if moment.policy.remote_session:
        return None
    if not any(s.remote and s.locked is not True for s in moment.sample.sessions or ()):
        return None
    return Objection(
        Rule.REMOTE,
        "Somebody is connected to this PC from elsewhere.",
        "Starts when the remote session is locked or disconnected.",
    )


def presenting(moment: Moment) -> Objection | None:
    if not any(s.presenting and s.locked is not True for s in moment.sample.sessions or ()):
        return None
    return Objection(
        Rule.PRESENTING,
        "A full-screen program, a presentation or a call is on this PC's screen.",
        "Starts when that has ended.",
    )


# --- what the machine allows


def battery(moment: Moment) -> Objection | None:
    if moment.policy.on_battery or not moment.sample.on_battery:
        return None
    return Objection(
        Rule.BATTERY,
        "This PC runs on battery.",
        "Starts when it is plugged in.",
        {"on_battery": True},
    )


def hours(moment: Moment) -> Objection | None:
    policy, weekday, minute = moment.policy, moment.sample.weekday, moment.sample.minute
    if inside_any(policy.quiet_hours, weekday, minute):
        sentence = f"These are quiet hours ({_hours_text(policy.quiet_hours)})."
    elif policy.run_hours and not inside_any(policy.run_hours, weekday, minute):
        sentence = f"The grid runs here only in these hours: {_hours_text(policy.run_hours)}."
    else:
        return None
    wait = minutes_until_allowed(policy, weekday, minute)
    if wait is None:
        change = "Changes only with the rules: they leave no hour to run in."
        return Objection(Rule.HOURS, sentence, change)
    then = weekday * DAY_MINUTES + minute + wait
    clock = f"{DAYS[then // DAY_MINUTES % 7]} {then % DAY_MINUTES // 60:02}:{then % 60:02}"
    return Objection(
        Rule.HOURS,
        sentence,
        f"Starts on {clock} at the earliest, in {duration_text(wait * 60)}.",
        {"hours_left_s": wait * 60},
    )


def _hours_text(spans: Sequence[Hours]) -> str:
    texts = [format_hours(span) for span in spans]
    more = [f"and {len(texts) - 4} more"] if len(texts) > 4 else []
    return "; ".join(texts[:4] + more)


def cpu(moment: Moment) -> Objection | None:
    """Hysteresis: much for a while ends a run, little for a while allows one."""
    share, memory, policy = foreign_cpu(moment.sample), moment.memory, moment.policy
    if share is None:
        return None
    at_s, since_s = moment.sample.at_s, memory.cpu_quiet_since_s
    numbers: dict[str, Number] = {"foreign_cpu": round(share, 3)}
    if memory.running:
        busy_since_s = memory.cpu_busy_since_s
        if busy_since_s is None or at_s - busy_since_s < policy.cpu_busy_s:
            return None
        busy_for_s = at_s - busy_since_s
        sentence = (
            f"Other programs have used more than {_percent(policy.cpu_busy_share)} of the CPU"
            f" for {span_text(busy_for_s)} ({_percent(share)} now)."
        )
        numbers |= {"busy_for_s": round(busy_for_s, 1), "cpu_busy_share": policy.cpu_busy_share}
    elif since_s is None:
        sentence = f"Other programs use {_percent(share)} of the CPU."
        numbers["cpu_idle_share"] = quiet_share(policy)
    elif at_s - since_s < policy.cpu_idle_s:
        quiet_for_s = at_s - since_s
        return Objection(
            Rule.CPU,
            f"Other programs have used little CPU for {span_text(quiet_for_s)} so far"
            f" ({_percent(share)} now).",
            f"Starts in {left_text(policy.cpu_idle_s - quiet_for_s)} if that stays at or below"
            f" {_percent(quiet_share(policy))}.",
            numbers | {"quiet_for_s": round(quiet_for_s, 1), "needed_s": policy.cpu_idle_s},
            lasting=False,
        )
    else:
        return None
    change = (
        f"Starts after {left_text(policy.cpu_idle_s)} at or below {_percent(quiet_share(policy))}."
    )
    return Objection(Rule.CPU, sentence, change, numbers)


def memory_rule(moment: Moment) -> Objection | None:
    """To start, all of `memory_free_mb` must be free beside our VM; to go on, half of it."""
    free_mb = moment.sample.memory_free_mb
    if free_mb is None:
        return None
    to_start_mb = moment.vm_memory_mb + moment.policy.memory_free_mb
    spare_mb = moment.policy.memory_free_mb
    needed_mb = to_start_mb - (spare_mb // 2 if moment.memory.running else 0)
    if free_mb >= needed_mb:
        return None
    parts = f" ({moment.vm_memory_mb} MB for itself)" if moment.vm_memory_mb else ""
    return Objection(
        Rule.MEMORY,
        f"{free_mb} MB of memory are available; the grid needs {needed_mb} MB{parts}.",
        f"Starts when {to_start_mb - free_mb} MB more are free.",
        {"memory_free_mb": free_mb, "memory_needed_mb": needed_mb},
    )


RULES: tuple[Callable[[Moment], Objection | None], ...] = (
    never, drain, user_pause, silent, input_rule, remote_session, presenting, battery, hours,
    cpu, memory_rule,
)  # fmt: skip
"""Most important first; `core.idle` says why in this order."""
