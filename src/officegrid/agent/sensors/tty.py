"""Typing on text terminals: consoles, and the pseudo-terminals of ssh.

The access time of a terminal moves when a program reads what was typed. Since Linux 3.9 it moves
in steps of eight seconds, so that keystrokes cannot be timed (drivers/tty/tty_io.c,
tty_update_time); the steps are taken off again here, so the idle time is never too long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from officegrid.agent.sensors.base import SensorError

STEP_S = 8.0
DEVICES = Path("/dev")


class Terminals:
    """Idle times of terminals by their access times; a reading costs one stat each."""

    def __init__(
        self, devices: Path = DEVICES, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._devices, self._wall_clock = devices, wall_clock

    def idle_s(self, name: str) -> float:
        """Seconds since somebody typed on "tty1" or "pts/0". Raises SensorError."""
        if not name or name.startswith(("/", ".")) or ".." in name:
            raise SensorError("the session has no terminal")
        try:
            touched_s = (self._devices / name).stat().st_atime
        except OSError as error:
            raise SensorError(f"terminal {name}: {error.strerror}") from None
        # A time in the future (the clock was set back) counts as just now.
        return max(0.0, self._wall_clock() - touched_s - STEP_S)

    def of_user(self, uid: int) -> list[str]:
        """The pseudo-terminals that belong to a user."""
        return [name for name, owner in self.all() if owner == uid]

    def all(self) -> list[tuple[str, int]]:
        """All pseudo-terminals with the user id of their owners."""
        found: list[tuple[str, int]] = []
        try:
            entries = list(os.scandir(self._devices / "pts"))
        except OSError:
            return []
        for entry in entries:
            if entry.name.isdecimal():
                try:
                    found.append((f"pts/{entry.name}", entry.stat().st_uid))
                except OSError:
                    continue  # closed meanwhile
        return found
