"""What a desk is measured with: real key strokes, the CPU time of a thread, the agent's log.

Sources: proc(5), /proc/PID/task/TID/schedstat (its first number is the thread's time on a CPU, in
ns; the kernel brings it up to date at its clock tick and at each switch); clock_getcpuclockid(3)
(CPU time of another process); MIT-SCREEN-SAVER (how long ago the X server took the last input).
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from officegrid.agent.sensors.xwire import XConnection

SAMPLE_S = 0.002
TYPE_EVERY_S = 0.4
T = TypeVar("T")
_CPUCLOCK_SCHED = 2


class Person:
    """Moves the pointer of a real X server. `x` is a `tests/desktops.py` XServer."""

    def __init__(self, x: object) -> None:
        self._x = x
        self._asks = XConnection(x.display)  # type: ignore[attr-defined]
        opcode = self._asks.extension("MIT-SCREEN-SAVER")
        assert opcode is not None
        self._opcode = opcode
        self._step = 1

    def move(self) -> float:
        """One movement; the monotonic second at which the X server took it (to 1 ms)."""
        self._step = -self._step
        step = str(self._step)
        self._x.do("mousemove_relative", "--", step, step)  # type: ignore[attr-defined]
        before_s = time.monotonic()
        return before_s - self._asks.saver_info(self._opcode).idle_s

    def close(self) -> None:
        self._asks.close()


class Typing:
    """Somebody who goes on working at the desk: `with Typing(person): …`."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._type, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _type(self) -> None:
        while not self._done.wait(TYPE_EVERY_S):
            self._person.move()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads, ended ones too; exact to the ns."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def guest_thread(pid: int) -> Path:
    """The schedstat of the thread that runs the guest's processor: the one that ran the most."""
    found = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return max(found, key=_ran_ns)


def _ran_ns(schedstat: Path) -> int:
    return int(schedstat.read_bytes().split()[0])


@dataclass
class CpuWatch:
    """Follows one thread from `with` on: when did it last get CPU time?"""

    schedstat: Path
    seen: list[tuple[float, int]] = field(default_factory=list)
    """(monotonic second, ns on a CPU)."""

    def __enter__(self) -> CpuWatch:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def released_s(self) -> float:
        """The first monotonic second after which its CPU time never grew again."""
        last_s = self.seen[0][0]
        for (_, before), (at_s, now) in pairwise(self.seen):
            if now > before:
                last_s = at_s
        return last_s

    def resolution_s(self) -> float:
        """The median distance between two growths, while it ran."""
        grew = [b[0] for a, b in pairwise(self.seen) if b[1] > a[1]]
        gaps = [b - a for a, b in pairwise(grew)]
        return statistics.median(gaps) if gaps else SAMPLE_S

    def _follow(self) -> None:
        descriptor = os.open(self.schedstat, os.O_RDONLY)
        try:
            while not self._done.is_set():
                ran = int(os.pread(descriptor, 64, 0).split()[0])
                self.seen.append((time.monotonic(), ran))
                time.sleep(SAMPLE_S)
        except (OSError, IndexError):
            return  # the process has ended
        finally:
            os.close(descriptor)


class Log:
    """The agent's log as it grows. A mark is a position in it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mark(self) -> int:
        return self._path.stat().st_size

    def when(self, mark: int, words: str) -> float | None:
        """The monotonic second of the first line after the mark with these words; to 1 ms."""
        with self._path.open("rb") as file:
            file.seek(mark)
            for line in file.read().decode("utf-8", "replace").splitlines(keepends=True):
                if words in line and line.endswith("\n"):
                    at = datetime.fromisoformat(line.split()[0]).timestamp()
                    return time.monotonic() - (time.time() - at)
        return None

    def wait(self, mark: int, words: str, within_s: float) -> float:
        return until(lambda: self.when(mark, words), f"the agent's log says {words!r}", within_s)


def until(
    look: Callable[[], T | None], what: str, within_s: float, every_s: float = 0.01
) -> T:  # fmt: skip
    """The first value that is not None. Raises TimeoutError naming `what`."""
    deadline_s = time.monotonic() + within_s
    while (value := look()) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"after {within_s:g} s still not: {what}")
        time.sleep(every_s)
    return value


def spread(values_s: Sequence[float], unit: str = "ms") -> str:
    """p50, p99 and the longest of some times, for people."""
    factor, digits = (1000, 0) if unit == "ms" else (1, 1)
    ordered = sorted(factor * value for value in values_s)
    p50 = statistics.median(ordered)
    p99 = ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)]
    words = f"p50 {p50:.{digits}f}, p99 {p99:.{digits}f}, longest {ordered[-1]:.{digits}f} {unit}"
    return f"{words} (of {len(ordered)})"
