"""What a desktop has given to the grid and what that cost its user: counted from its events.

    harvested   seconds its VM ran
    interruptions   how often a person came back while the grid used the PC
    yield times   from the first input to CPU, and to memory, released: the last ones are kept

`noted` maps counters and one event to counters; nothing else changes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

YIELD_TIMES_KEPT = 200
"""Of each kind: enough for a 99th percentile that is not the maximum, in about 2 kB of JSON."""

_BEGINS_USE = frozenset({"starting", "running"})
_ENDS_USE = frozenset({"saved", "stopped", "idle"})


@dataclass(frozen=True, slots=True)
class DeskStats:
    harvested_s: float = 0.0
    interruptions: int = 0
    starts: int = 0
    units_released: int = 0
    """By events of the desktop: what interruptions cost the grid."""
    cpu_back_ms: tuple[float, ...] = ()
    """Input to CPU released, the last ones, oldest first."""
    memory_back_ms: tuple[float, ...] = ()
    in_use: bool | None = None
    """Does the grid use the PC, by its events? None: nothing said yet."""


def noted(
    stats: DeskStats,
    kind: str,
    *,
    ran_s: float = 0.0,
    cpu_back_ms: float | None = None,
    memory_back_ms: float | None = None,
    units_released: int = 0,
) -> DeskStats:
    """The counters after one event of `kind` (wire.agent.DeskEventKind).

    `user_back` is one interruption per yield: however often it is said, it counts again only
    after the grid has used the PC again, and not at all when the VM had been saved or stopped
    for another reason before.
    """
    interrupts = kind == "user_back" and stats.in_use is not False
    in_use = stats.in_use
    if kind in _BEGINS_USE:
        in_use = True
    elif kind in _ENDS_USE or kind == "user_back":
        in_use = False
    return replace(
        stats,
        harvested_s=stats.harvested_s + ran_s,
        interruptions=stats.interruptions + interrupts,
        starts=stats.starts + (kind == "starting"),
        units_released=stats.units_released + units_released,
        cpu_back_ms=_kept(stats.cpu_back_ms, cpu_back_ms),
        memory_back_ms=_kept(stats.memory_back_ms, memory_back_ms),
        in_use=in_use,
    )


def _kept(times: tuple[float, ...], newest: float | None) -> tuple[float, ...]:
    return times if newest is None else (*times, newest)[-YIELD_TIMES_KEPT:]


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed (nearest
    rank); None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def to_plain(stats: DeskStats) -> dict[str, Any]:
    """For storage as JSON."""
    return asdict(stats)


def from_plain(plain: Mapping[str, Any]) -> DeskStats:
    """The inverse of `to_plain`; what is missing starts at its default, what is unknown is left
    out, so that releases can read one another's rows."""
    known = {one.name: plain[one.name] for one in fields(DeskStats) if one.name in plain}
    for name in ("cpu_back_ms", "memory_back_ms"):
        times: Sequence[float] = known.get(name, ())
        known[name] = tuple(times)
    return DeskStats(**known)
