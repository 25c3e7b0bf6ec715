"""Alarms about identity: when one machine seems to be in two places, what that means, in words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from officegrid.core.quantities import duration_text

LASTS_S = 24 * 3600.0
"""An alarm ends when nothing has happened for so long."""
TOLD_EVERY_S = 3600.0
"""The story of a machine gets one line about it in this time."""


class AlarmKind(StrEnum):
    CLONED = "cloned"
    """A worker on other hardware asked for work under this identity."""
    TURNS = "turns"
    """Two workers take this machine's place from one another."""
    AGENTS = "agents"
    """Two agents report as this desktop."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """`since` and `last_at` are seconds since the epoch, `times` counts what happened."""

    kind: AlarmKind
    since: float
    last_at: float
    times: int = 1
    told_at: float = 0.0
    """When the machine's story got its last line about it."""


def again(before: Alarm | None, kind: AlarmKind, now: float) -> tuple[Alarm, bool]:
    """It happened (again). True: the machine's story is to get a line about it now."""
    if before is None or not is_open(before, now):
        return Alarm(kind, now, now, 1, now), True
    tell = not 0 <= now - before.told_at < TOLD_EVERY_S
    told_at = now if tell else before.told_at
    return Alarm(kind, before.since, now, before.times + 1, told_at), tell


def is_open(alarm: Alarm, now: float) -> bool:
    """Is it still worth a mark? A clock that was set back does not end it."""
    return now - alarm.last_at < LASTS_S


_SHORT = {
    AlarmKind.CLONED: "a copy on other hardware asked for work under this identity",
    AlarmKind.TURNS: "two workers take turns under this identity",
    AlarmKind.AGENTS: "two agents report as this desktop",
}


def alarm_words(alarm: Alarm, now: float) -> str:
    """One line: "two workers take turns under this identity (7 times, last 2 min ago)"."""
    many = f"{alarm.times} times, last " if alarm.times > 1 else ""
    return f"{_SHORT[alarm.kind]} ({many}{duration_text(max(0.0, now - alarm.last_at))} ago)"


def event_text(name: str, kind: AlarmKind) -> str:
    """The line for the machine's story."""
    match kind:
        case AlarmKind.CLONED:
            return f"a worker on other hardware asked for work as {name} and was refused"
        case AlarmKind.TURNS:
            return (
                f"a worker that had been replaced asked for work as {name} again: two workers "
                "take turns under this identity"
            )
        case AlarmKind.AGENTS:
            return (
                f"a report of an earlier run of {name}'s agent was ignored; if that agent still "
                "runs, two computers share one identity: join each with a code of its own"
            )


def why_alarm(name: str, role: str, alarm: Alarm, now: float) -> list[str]:
    """Sentences: what is wrong, what it means, what mends it."""
    start = f"ALARM for {name}: {alarm_words(alarm, now)}."
    match alarm.kind:
        case AlarmKind.CLONED:
            return [
                start,
                f"Its disk or its profile was copied. {name} itself was not touched; the copy "
                "gets an identity of its own as soon as it asks for one.",
                "If nobody of you copied it, its token may be stolen: "
                f"{_revoked(name)}, and join it with a new code{_anew(name, role)}.",
            ]
        case AlarmKind.TURNS:
            return [
                start,
                f"The profile of {name} is in use on two computers, or an old saved state of it "
                "was restored. Nothing is processed twice, but each ends the units of the other.",
                "Join one of the two with a code of its own "
                f"(`officegrid join-code --role {role}`). If you do not know the second one: "
                f"{_revoked(name)}, and join the right one again{_anew(name, role)}.",
            ]
        case AlarmKind.AGENTS:
            return [
                start,
                f"The disk of {name} was copied to another PC. The one whose agent started last "
                "counts; the other starts nothing.",
                "Join one of the two with a code of its own: `officegrid join-code --role agent`, "
                f"and there {ANEW}.",
            ]


ANEW = "`officegrid join URL --install --anew`"
"""What gives a desktop another identity."""
_VM = "/vm"
"""The worker of the desktop pc-7 is called pc-7/vm."""


def _revoked(name: str) -> str:
    """A desktop's worker does not come back without its desktop."""
    return f"`officegrid revoke {name.removesuffix(_VM)}`"


def _anew(name: str, role: str) -> str:
    if role == "agent" or name.endswith(_VM):
        return f" for the role agent: on that PC, {ANEW}"
    return ""
