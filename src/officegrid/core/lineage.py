"""Which records ran under which pin, from the parts that cover them."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import NamedTuple


class Covered(NamedTuple):
    """Records `[start, end)` committed in `generation` under `pin`; later generations replace
    earlier ones where they overlap."""

    start: int
    end: int
    generation: int
    pin: int


def ranges_by_pin(parts: Iterable[Covered]) -> dict[int, list[tuple[int, int]]]:
    """By pin: the ranges whose newest part ran under it, merged, in order.

    `parts` come by (start, generation) and may overlap. Time: n log n.
    """
    found: dict[int, list[tuple[int, int]]] = {}

    def note(pin: int, start: int, end: int) -> None:
        ranges = found.setdefault(pin, [])
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, end))

    # A sweep: `open_parts` holds those that reach over `at`, the newest generation first.
    open_parts: list[tuple[int, int, int, int]] = []
    at = 0

    def sweep(until: int | None) -> None:
        nonlocal at
        while open_parts:
            _, _, end, pin = open_parts[0]
            if end <= at:
                heappop(open_parts)
                continue
            stop = end if until is None else min(end, until)
            if stop > at:
                note(pin, at, stop)
                at = stop
            if until is not None and at >= until:
                return
        if until is not None:
            at = max(at, until)

    for number, part in enumerate(parts):
        sweep(part.start)
        heappush(open_parts, (-part.generation, number, part.end, part.pin))
    sweep(None)
    return found
