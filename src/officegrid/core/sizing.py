"""How many records the next unit gets.

A unit should take `unit_s` on the machine that asks. An unknown machine starts with a small
probe; sizes then follow the measured rate, growing at most `GROWTH` times a step so that one
lucky measurement cannot make a giant. Near the end they shrink by guided self-scheduling
(Polychronopoulos and Kuck 1987): never more than 1/`TAPER` of an even share of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PROBE_RECORDS = 16
GROWTH = 16
TAPER = 2
SMALLEST_UNIT_S = 1.0
SMOOTHING = 0.5  # weight of the newest measurement


def unit_size(
    *,
    records_per_s: float | None,
    last_size: int | None,
    others_records_per_s: Sequence[float],
    pending: int,
    slots: int,
    unit_s: float,
    largest: int = 50_000_000,
) -> int:
    """Records for the next unit, at least 1.

    `records_per_s` and `last_size` are this machine's own on this job (None: unknown);
    `others_records_per_s` are other machines' rates on the job; `slots` is how many units are
    being worked on at once, this one included.
    """
    if records_per_s is not None and last_size is not None:
        size = min(records_per_s * unit_s, last_size * GROWTH)
        smallest = records_per_s * min(SMALLEST_UNIT_S, unit_s)
    elif others_records_per_s:
        # An unknown machine may be ten times slower than the rest: a tenth of a unit is safe.
        middle = sorted(others_records_per_s)[len(others_records_per_s) // 2]
        # Never less than a probe, unless a probe is known to last longer than a unit should.
        size = max(min(PROBE_RECORDS, middle * unit_s), middle * unit_s / 10)
        smallest = 1.0
    else:
        size = smallest = PROBE_RECORDS
    share = pending / (TAPER * max(1, slots))
    size = min(size, max(share, smallest))
    return max(1, min(math.ceil(size), pending, largest))


def updated_rate(before: float | None, records: int, compute_s: float) -> float:
    """Exponentially smoothed records per second after one more unit."""
    measured = records / max(compute_s, 1e-4)
    if before is None:
        return measured
    return SMOOTHING * measured + (1 - SMOOTHING) * before
