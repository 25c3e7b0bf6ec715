"""Finding the records that bring a program down.

A program is run over a range of records. If it dies, hangs or gives a wrong answer, the range
is divided and each part is run again, until the records that do it stand alone:

    with a hint  [a .......... c .......... b)   →  [a, c)   [c, c + w)   [c + w, b)
    without      [a ....................... b)   →  [a, m)   [m, b)

A record that stands alone is tried again until it has failed `attempts` times, then it is given
up. Ranges come out strictly from left to right, so results arrive in record order. Each failure
either shrinks a range or uses up one of a bounded number of attempts: the search always ends.

This module imports nothing outside the standard library: the harness that runs a user's Python
program loads it by its path. Named tuples, because loading `dataclasses` takes longer than all
the rest of that harness.
"""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """Records `[start, end)`; `failures` counts how often they failed while standing alone."""

    start: int
    end: int
    failures: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start


class GivenUp(NamedTuple):
    """A record that failed too often; `error` is what its last attempt said."""

    record: int
    error: str
    attempts: int


class Isolation:
    """A worklist over `[start, end)`.

    Call `next()`, run that range, report `succeeded` or `failed`; repeat until `next()` is None.
    `attempts` >= 1 is how often one record is tried in all. `step` cuts the work into ranges of
    at most that many records from the beginning (one run of an executable each).
    """

    def __init__(self, start: int, end: int, attempts: int, step: int | None = None) -> None:
        if attempts < 1 or (step is not None and step < 1):
            raise ValueError("attempts and step must be at least 1")
        self._attempts = attempts
        self._step = step
        self._todo = [Range(start, end)] if end > start else []  # the leftmost range is last

    def next(self) -> Range | None:
        """The leftmost range that is still to be run, or None when all records have an outcome."""
        if not self._todo:
            return None
        top = self._todo[-1]
        if self._step is not None and top.length > self._step:
            cut = top.start + self._step
            self._todo[-1:] = [Range(cut, top.end), Range(top.start, cut)]
        return self._todo[-1]

    def succeeded(self, ran: Range) -> None:
        """The range that `next()` gave is done. Raises ValueError for any other range."""
        self._take(ran)

    def failed(
        self, ran: Range, error: str, culprit: int | None = None, width: int = 1
    ) -> GivenUp | None:
        """Divide the range, or count the failure of a single record.

        `culprit` and `width` say that records `[culprit, culprit + width)` were being worked on.
        The hint may be wrong: a record is given up only after it has failed standing alone.
        Returns the record if it is given up now. Raises ValueError if `ran` is not what `next()`
        gave.
        """
        self._take(ran)
        if ran.length == 1:
            failures = ran.failures + 1
            if failures >= self._attempts:
                return GivenUp(ran.start, error, failures)
            self._todo.append(Range(ran.start, ran.end, failures))
            return None
        parts = self._around(ran, culprit, width) or self._halves(ran)
        self._todo.extend(reversed(parts))
        return None

    def give_up(self, ran: Range, error: str) -> list[GivenUp]:
        """Give up a whole range at once, for a failure that no division can cure."""
        self._take(ran)
        return [GivenUp(record, error, ran.failures + 1) for record in range(ran.start, ran.end)]

    def _take(self, ran: Range) -> None:
        if not self._todo or self._todo[-1] != ran:
            raise ValueError(f"{ran} is not the range that next() gave")
        self._todo.pop()

    def _around(self, ran: Range, culprit: int | None, width: int) -> list[Range]:
        """The range cut around the suspects; empty if the hint is of no use."""
        if culprit is None or width < 1 or not ran.start <= culprit < ran.end:
            return []
        after = min(culprit + width, ran.end)
        if (culprit, after) == (ran.start, ran.end):
            return []
        # The failure that led here counts for a lone suspect, but never as its only trial.
        failures = 1 if after - culprit == 1 and self._attempts > 1 else 0
        parts = [
            Range(ran.start, culprit),
            Range(culprit, after, failures),
            Range(after, ran.end),
        ]
        return [part for part in parts if part.length > 0]

    @staticmethod
    def _halves(ran: Range) -> list[Range]:
        middle = ran.start + ran.length // 2
        return [Range(ran.start, middle), Range(middle, ran.end)]
