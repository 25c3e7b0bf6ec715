"""Which job the next free slot works for.

Higher priority first. Among equals, the job that holds the fewest units now, then the one that
was served longest ago: slots spread evenly over jobs, and a grid with one slot alternates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    job: str
    priority: int
    live_leases: int
    created_at: float


def order(candidates: Iterable[Candidate], last_served: Mapping[str, float]) -> list[str]:
    """Job ids in the order in which they should be tried. `last_served` is in seconds."""
    ranked = sorted(
        candidates,
        key=lambda c: (
            -c.priority,
            c.live_leases,
            last_served.get(c.job, 0.0),
            c.created_at,
            c.job,
        ),
    )
    return [c.job for c in ranked]
