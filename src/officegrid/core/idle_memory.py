"""What the idle policy remembers from sample to sample.

All hysteresis lives here. Three observations are kept:

- For each session, the last moment that shows a person: input, an unlock, a logon. Idle time
  never grows faster than the clock, whatever a sensor claims: of two readings that contradict
  each other the one that saw somebody wins.
- Since when other programs have used little CPU, and since when they have used much.
- When the PC last woke up: a gap of more than `GAP_S` between two samples, or a wall clock that
  ran ahead of the monotonic one by more than that (clocks which stand still during sleep show it
  so). Whatever was accumulated before is void. A person has most likely just opened the lid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from officegrid.core.desk import DeskPolicy, Sample, Session

GAP_S = 60.0
KNOCK_DROP_S = 2.0
"""An idle time that falls by more than this is new input, not a jitter of the reading."""
KNOCK_IDLE_S = 3.0
"""So little idle time at a locked session is somebody's hand, whether or not it fell: who goes on
typing under a lock that is not true keeps it near zero, and it never falls."""
LOCK_GRACE_S = 5.0
"""Input up to so long after the lock was seen belongs to locking: readings come late."""

INPUT, UNLOCK, LOGON, WAKE = "input", "unlock", "logon", "wake"


@dataclass(frozen=True, slots=True)
class Seat:
    """What is remembered of one session. Times are on the clock of `Sample.at_s`."""

    id: str
    touched_s: float
    """The last moment that shows a person here."""
    cause: str
    """What showed it: INPUT, UNLOCK or LOGON."""
    reading_s: float | None
    """The idle time last read."""
    locked_since_s: float | None
    knocked_s: float | None
    """When input last came to the locked session: somebody is about to unlock it."""


@dataclass(frozen=True, slots=True)
class IdleMemory:
    """Everything that `decide` remembers. An agent starts with `IdleMemory()`, or with
    `IdleMemory(running=True)` when it finds its VM running: it then needs no quiet time anew."""

    running: bool = False
    """The last decision was to run."""
    at_s: float | None = None
    wall_s: float = 0.0
    woke_s: float | None = None
    seats: tuple[Seat, ...] | None = None
    """None: sessions have never been known."""
    cpu_quiet_since_s: float | None = None
    cpu_busy_since_s: float | None = None
    settling: bool = False
    """Something other than input ended the last run: all must be well for a while."""
    well_since_s: float | None = None


def known(value: float | None) -> float | None:
    """The value, or None if it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def foreign_cpu(sample: Sample) -> float | None:
    """The share that other programs use, within 0 and 1; differences of counters overshoot."""
    share = known(sample.foreign_cpu)
    return None if share is None else min(max(share, 0.0), 1.0)


def note(policy: DeskPolicy, memory: IdleMemory, sample: Sample) -> IdleMemory:
    """The memory with this sample in it, before anything is decided."""
    if _woke(memory, sample):
        memory = replace(
            memory,
            running=False,
            woke_s=sample.at_s,
            cpu_quiet_since_s=None,
            settling=True,
            well_since_s=None,
            seats=_cut_back(memory.seats, sample.at_s),
        )
    share = foreign_cpu(sample)
    quiet = share is not None and share <= quiet_share(policy)
    busy = share is not None and share > policy.cpu_busy_share
    return replace(
        memory,
        at_s=sample.at_s,
        wall_s=sample.wall_s,
        seats=_seats(memory.seats, sample),
        cpu_quiet_since_s=_since(memory.cpu_quiet_since_s, quiet, sample.at_s),
        cpu_busy_since_s=_since(memory.cpu_busy_since_s, busy, sample.at_s),
    )


def quiet_share(policy: DeskPolicy) -> float:
    """The share that allows a start: never above the one that ends a run, or runs would flap."""
    return min(policy.cpu_idle_share, policy.cpu_busy_share)


def idle_time(memory: IdleMemory, seat: Seat, session: Session, at_s: float) -> tuple[float, str]:
    """Seconds since the last sign of a person in this session, and what that sign was.

    The session's `idle_s` must be known. Its age is not added: what happened since the reading
    is not known, and not known is not idle.
    """
    idle_s, cause = max(0.0, session.idle_s or 0.0), INPUT
    floors = [(seat.touched_s, seat.cause)]
    floors += [(memory.woke_s, WAKE)] if memory.woke_s is not None else []
    for moment_s, what in floors:
        # A millisecond of tolerance: subtraction must not turn 300 s into 299.999999 s.
        if at_s - moment_s + 0.001 < idle_s:
            idle_s, cause = max(0.0, at_s - moment_s), what
    return idle_s, cause


def _woke(memory: IdleMemory, sample: Sample) -> bool:
    if memory.at_s is None:
        return False
    step_s = sample.at_s - memory.at_s
    ahead_s = sample.wall_s - memory.wall_s - step_s
    return step_s < 0 or step_s > GAP_S or ahead_s > GAP_S


def _since(since_s: float | None, holds: bool, at_s: float) -> float | None:
    if not holds:
        return None
    return at_s if since_s is None else since_s


def _cut_back(seats: tuple[Seat, ...] | None, at_s: float) -> tuple[Seat, ...] | None:
    """No remembered moment may lie in the future of a clock that went back."""
    if seats is None:
        return None
    return tuple(
        replace(
            seat,
            touched_s=min(seat.touched_s, at_s),
            locked_since_s=_earlier(seat.locked_since_s, at_s),
            knocked_s=_earlier(seat.knocked_s, at_s),
        )
        for seat in seats
    )


def _earlier(moment_s: float | None, at_s: float) -> float | None:
    return None if moment_s is None else min(moment_s, at_s)


def _seats(seats: tuple[Seat, ...] | None, sample: Sample) -> tuple[Seat, ...] | None:
    if sample.sessions is None:
        return seats
    before = {seat.id: seat for seat in seats or ()}
    now: dict[str, Seat] = {}
    for session in sample.sessions:
        old = now.get(session.id) or before.get(session.id)
        now[session.id] = _seat(old, session, sample.at_s, appeared=seats is not None)
    return tuple(now.values())


def _seat(old: Seat | None, session: Session, at_s: float, *, appeared: bool) -> Seat:
    reading_s, age_s = known(session.idle_s), known(session.age_s)
    signs = [(old.touched_s, old.cause)] if old else []
    if reading_s is not None:
        signs.append((at_s - max(0.0, age_s or 0.0) - max(0.0, reading_s), INPUT))
    if old and old.locked_since_s is not None and session.locked is not True:
        signs.append((at_s, UNLOCK))
    if old is None and appeared:
        signs.append((at_s, LOGON))
    touched_s, cause = max(signs, key=lambda sign: sign[0], default=(-math.inf, INPUT))
    locked_since_s = _since(old.locked_since_s if old else None, session.locked is True, at_s)
    return Seat(
        id=session.id,
        touched_s=touched_s,
        cause=cause,
        reading_s=reading_s,
        locked_since_s=locked_since_s,
        knocked_s=_knock(old, locked_since_s, reading_s, at_s),
    )


def _knock(
    old: Seat | None, locked_since_s: float | None, reading_s: float | None, at_s: float
) -> float | None:
    """When somebody last touched the locked session: its idle time fell, or is next to nothing."""
    if old is None or old.locked_since_s is None or locked_since_s is None:
        return None
    if reading_s is None:
        return old.knocked_s
    touched_s = at_s - max(0.0, reading_s)
    if touched_s <= locked_since_s + LOCK_GRACE_S:
        return old.knocked_s
    if old.reading_s is not None and reading_s < old.reading_s - KNOCK_DROP_S:
        return at_s
    if reading_s < KNOCK_IDLE_S:
        return touched_s if old.knocked_s is None else max(touched_s, old.knocked_s)
    return old.knocked_s
