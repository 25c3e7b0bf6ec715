"""Virtual time: a heap of things to do, and the chronicle of what was done."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass


class Timeline:
    """`now` is in virtual seconds. What is due at the same moment runs in the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do `action` in `delay_s` seconds."""
        self._number += 1
        heapq.heappush(self._planned, (self.now + max(0.0, delay_s), self._number, action))

    def step(self) -> bool:
        """Do the next thing; False when nothing is planned."""
        if not self._planned:
            return False
        at, _, action = heapq.heappop(self._planned)
        self.now = max(self.now, at)
        self.steps += 1
        action()
        return True


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the chronicle; `job` and `[start, end)` say which records it is about."""

    at: float
    text: str
    job: str = ""
    start: int = 0
    end: int = 0

    def __str__(self) -> str:
        where = f" {self.job}[{self.start},{self.end})" if self.job else ""
        return f"{self.at:12.3f}{where}  {self.text}"


class Chronicle:
    """Everything that happened, in order. Two runs of one seed have the same `digest()`."""

    def __init__(self, timeline: Timeline, echo: Callable[[str], None] | None = None) -> None:
        self.lines: list[Line] = []
        self._timeline = timeline
        self._hash = hashlib.sha256()
        self._echo = echo

    def note(self, text: str, job: str = "", start: int = 0, end: int = 0) -> None:
        line = Line(self._timeline.now, text, job, start, end)
        self.lines.append(line)
        words = str(line)
        self._hash.update(words.encode() + b"\n")
        if self._echo is not None:
            self._echo(words)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def story(self, job: str, start: int, end: int, last: int = 50) -> list[str]:
        """The last lines about these records of a job, and some about the grid as a whole."""
        about = [x for x in self.lines if x.job == job and x.start < end and x.end > start]
        around = [x for x in self.lines if not x.job]
        told = [*about[-last:], *around[-last // 2 :]]
        left_out = len(about) + len(around) - len(told)
        lines = [str(line) for line in sorted(told, key=lambda line: line.at)]
        return [f"({left_out} earlier lines left out)", *lines] if left_out else lines
