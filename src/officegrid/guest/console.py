"""What the guest says to whoever watches its console, and how long its own start took.

Lines begin with `GRID-`; the host keeps the console in a file. docs/guest.md lists them.
"""

from __future__ import annotations

import os
import sys
import time

from officegrid.core.errors import OfficeGridError


def say(word: str, text: str) -> None:
    """One line. Never with a join code in it: consoles are kept and shown."""
    line = f"GRID-{word} {' '.join(text.split())}\n"
    # Some of what is said was made by others, halves of characters included.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def complain(error: OfficeGridError) -> None:
    """An error's three sentences on one line."""
    say("TROUBLE", words(error))


def words(error: OfficeGridError) -> str:
    return " ".join(part for part in (error.what, error.why, error.fix) if part)


def uptime_s() -> float:
    """Seconds since the kernel began, pauses and saves of the virtual machine not counted."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Milestones:
    """Seconds that each step of the start took: `mark` after each, `text` for GRID-TIMES."""

    def __init__(self) -> None:
        started_s = _process_started_s()
        self._steps = [("kernel+init", started_s), ("python", uptime_s() - started_s)]
        self._last_s = uptime_s()

    def mark(self, step: str) -> None:
        now_s = uptime_s()
        self._steps.append((step, now_s - self._last_s))
        self._last_s = now_s

    def text(self) -> str:
        steps = [*self._steps, ("ready", self._last_s)]
        return " ".join(f"{name}={seconds:.2f}" for name, seconds in steps)


def _process_started_s() -> float:
    """Seconds from the kernel's start to this process's; proc(5), /proc/pid/stat field 22."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            after_name = file.read().rpartition(")")[2].split()
        return int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return uptime_s()
