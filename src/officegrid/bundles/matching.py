"""Where in an old stream the contents of a segment of the new one come from.

A segment is looked at in slots. Of each slot a short probe is searched in the old stream: first
where the slots before it say, then near there, then everywhere, as long as a budget of bytes to
look at lasts. So insertions, removals, drifting rows and moved blocks are all followed, and only
how small a delta becomes depends on it, never whether it is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

SLOTS = 16
_PROBE_BYTES = 48
_PROBES_A_SLOT = 4
_LEAST_DISTINCT = 6  # a probe of zeros or spaces is found everywhere and says nothing
_MOST_SKIPPED = 16
_SCAN_BYTES = 4 * 1024 * 1024
_BUDGET_TIMES = 8
_BUDGET_BYTES = 4 * 1024**3

Region = tuple[int, int]
"""Offset and length in the old stream."""


class Matcher:
    """Follows one new stream, segment by segment, through one old one."""

    def __init__(
        self,
        old: BinaryIO,
        old_bytes: int,
        new_bytes: int,
        segment_bytes: int,
        budget_bytes: int | None = None,
    ) -> None:
        """`old` is read at any place; `segment_bytes` is the largest segment there will be;
        `budget_bytes` is how much of the old stream may be looked at by searches everywhere."""
        self._old = old
        self._old_bytes = old_bytes
        self._new_bytes = new_bytes
        self._near_bytes = max(segment_bytes // 8, 256)
        self._whole_bytes = 3 * segment_bytes // 2  # no more than slots with their margins take
        self._shift = 0  # a place in the old stream less its place in the new one
        self._found_any = False
        if budget_bytes is None:
            budget_bytes = _BUDGET_TIMES * old_bytes + _BUDGET_BYTES
        self._budget_bytes = budget_bytes
        self._skip = self._next_skip = 0
        self._window = b""
        self._window_start = 0

    def same_at(self, start: int, segment: bytes) -> int | None:
        """Where in the old stream all of `segment` (at `start` of the new one) lies, if there."""
        place = start + self._shift
        if place < 0 or place + len(segment) > self._old_bytes:
            return None
        return place if self._read(place, len(segment)) == segment else None

    def regions(self, start: int, segment: bytes) -> list[Region]:
        """What of the old stream resembles `segment`: ascending, apart, together at most
        1.5 times the largest segment."""
        if self._old_bytes <= self._whole_bytes:
            return [(0, self._old_bytes)] if self._old_bytes else []
        slot_bytes = -(-len(segment) // SLOTS)
        self._open_window(start, len(segment))
        places = [
            self._place(start, segment, at, min(at + slot_bytes, len(segment)))
            for at in range(0, len(segment), slot_bytes)
        ]
        known = [place for place in places if place is not None]
        fallback = known[0] if known else self._guess(start)
        margin = max(slot_bytes // 4, _PROBE_BYTES)
        spans = []
        for number, place in enumerate(places):
            fallback = fallback if place is None else place
            at = fallback + number * slot_bytes
            begin = max(0, at - margin)
            end = min(self._old_bytes, at + slot_bytes + margin)
            if begin < end:
                spans.append((begin, end))
        return _merged(spans)

    def _guess(self, start: int) -> int:
        """Of a segment that nothing is known about: as far in as it is in the new stream."""
        if self._found_any:
            return start + self._shift
        return start * self._old_bytes // max(1, self._new_bytes)

    def _place(self, start: int, segment: bytes, at: int, end: int) -> int | None:
        """Where the segment would begin in the old stream, by what the slot [at, end) says."""
        probes = list(_probes(segment, at, end))
        for place, probe in probes:
            found = self._find_near(start + place + self._shift, probe)
            if found is not None:
                return self._found(found, start + place) + start
        if not probes:
            return None
        if self._skip:
            self._skip -= 1
            return None
        place, probe = probes[0]
        found = self._find_far(start + place + self._shift, probe)
        if found is None:
            # Much that is new comes in a row: looking everywhere for each slot of it is dear.
            self._next_skip = min(2 * self._next_skip + 1, _MOST_SKIPPED)
            self._skip = self._next_skip
            return None
        self._found(found, start + place)
        self._open_window(start, len(segment))
        return start + self._shift

    def _found(self, old_place: int, new_place: int) -> int:
        self._shift = old_place - new_place
        self._found_any = True
        self._skip = self._next_skip = 0
        return self._shift

    def _find_near(self, expected: int, probe: bytes) -> int | None:
        """The place of `probe` that is closest to `expected`, if there is one nearby."""
        at = expected - self._window_start
        if at >= 0 and self._window.startswith(probe, at):
            return expected
        low, high = max(0, at - self._near_bytes), at + self._near_bytes
        after = self._window.find(probe, max(0, at), max(0, high + len(probe)))
        before = self._window.rfind(probe, low, max(0, at + len(probe)))
        places = [place for place in (before, after) if place >= 0]
        if not places:
            return None
        return min(places, key=lambda place: abs(place - at)) + self._window_start

    def _find_far(self, expected: int, probe: bytes) -> int | None:
        """Looks everywhere, from `expected` outwards; None also when the budget is used up."""
        for start in _outwards(expected // _SCAN_BYTES, -(-self._old_bytes // _SCAN_BYTES)):
            if self._budget_bytes <= 0:
                return None
            block = self._read(start * _SCAN_BYTES, _SCAN_BYTES + len(probe) - 1)
            self._budget_bytes -= len(block)
            place = block.find(probe)
            if place >= 0:
                return start * _SCAN_BYTES + place
        return None

    def _open_window(self, start: int, length: int) -> None:
        """Have in memory what slots of a segment at `start` look at if the shift stays."""
        begin = start + self._shift - self._near_bytes
        end = start + self._shift + length + self._near_bytes
        self._window_start = max(0, begin)
        self._window = self._read(self._window_start, max(0, end - self._window_start))

    def _read(self, place: int, length: int) -> bytes:
        self._old.seek(place)
        return self._old.read(length)


def _probes(segment: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Some strings of the slot that may be telling, with their places in the segment."""
    step = (end - at) // _PROBES_A_SLOT
    for number in range(_PROBES_A_SLOT):
        place = at + number * step + step // 2
        probe = segment[place : place + _PROBE_BYTES]
        if len(probe) == _PROBE_BYTES and len(set(probe)) >= _LEAST_DISTINCT:
            yield place, probe


def _outwards(middle: int, count: int) -> Iterator[int]:
    """All of 0 … count-1, those close to `middle` first."""
    middle = min(max(middle, 0), max(count - 1, 0))
    for distance in range(count):
        if middle + distance < count:
            yield middle + distance
        if distance and middle - distance >= 0:
            yield middle - distance


def _merged(spans: list[tuple[int, int]]) -> list[Region]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return [(begin, end - begin) for begin, end in merged]
