"""Presence data that somebody else supplies, as a JSON file.

    {"at": 1790000000.0, "sessions": [{"id": "1", "idle_s": 12.5, "locked": false,
                                       "remote": false, "presenting": false, "user": "anna"}]}
    {"at": 1790000000.0, "idle_s": 12.5, "locked": false}       short for one session

`at` is the time of the reading, in seconds since the epoch. Write the file under another name and
rename it, so that it is never read half written. An empty list of sessions means that nobody is
logged on. A file that is missing, wrong or from the future says nothing, and an old one counts
as old: the agent then takes the user for present.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from officegrid.agent.sensors.base import SensorError
from officegrid.core.desk import Session

MOST_BYTES = 65536
MOST_SESSIONS = 1000
FUTURE_S = 2.0
"""Clocks of the same PC may differ by a rounding, not by more."""
EMPTY_TIMEOUT_S = 15.0
"""An empty list has no session that could carry its age."""


@dataclass(frozen=True, slots=True)
class _Kept:
    stamp: tuple[int, int, int]
    at_s: float
    sessions: tuple[Session, ...]
    trouble: str = ""


class FileSensor:
    """Reads the file again when it changed; otherwise a reading costs one stat."""

    name = "file"

    def __init__(self, path: Path, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._path, self._wall_clock = path, wall_clock
        self._kept: _Kept | None = None

    def read(self) -> list[Session]:
        """The sessions of the file with their present age. Raises SensorError."""
        try:
            about = self._path.stat()
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if self._kept is None or self._kept.stamp != stamp:
                self._kept = self._load(stamp)
        except FileNotFoundError:
            self._kept = None
            raise SensorError(f"the file {self._path} does not exist") from None
        except OSError as error:
            self._kept = None
            raise SensorError(f"the file {self._path} cannot be read ({error})") from None
        kept = self._kept
        if kept.trouble:
            raise SensorError(f"the file {self._path}: {kept.trouble}")
        age_s = self._wall_clock() - kept.at_s
        if age_s < -FUTURE_S:
            raise SensorError(f"the file {self._path} is from {-age_s:.0f} s in the future")
        age_s = max(0.0, age_s)
        if not kept.sessions and age_s > EMPTY_TIMEOUT_S:
            raise SensorError(f"the file {self._path} was written {age_s:.0f} s ago")
        return [replace(session, age_s=age_s) for session in kept.sessions]

    def close(self) -> None:
        """Nothing is held."""

    def _load(self, stamp: tuple[int, int, int]) -> _Kept:
        with self._path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        try:
            at_s, sessions = parse(data)
        except ValueError as error:
            return _Kept(stamp, 0.0, (), str(error))
        return _Kept(stamp, at_s, sessions)


def parse(data: bytes) -> tuple[float, tuple[Session, ...]]:
    """(time of the reading, sessions) of a file's bytes; raises ValueError with a sentence."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    at_s = _number(found, "at")
    if at_s is None:
        raise ValueError("'at' is missing")
    listed = found.get("sessions", [found])
    if not isinstance(listed, list) or len(listed) > MOST_SESSIONS:
        raise ValueError("'sessions' is not a list of sessions")
    sessions = tuple(_session(entry, str(number)) for number, entry in enumerate(listed, 1))
    if len({session.id for session in sessions}) < len(sessions):
        raise ValueError("two sessions have the same id")
    return at_s, sessions


def _session(entry: Any, otherwise: str) -> Session:
    if not isinstance(entry, dict):
        raise ValueError("a session is not a JSON object")
    if "idle_s" not in entry and entry.get("locked") is not True:
        raise ValueError("a session has neither 'idle_s' nor 'locked': true")
    remote = _flag(entry, "remote", False)
    if remote is None:
        raise ValueError("'remote' is neither true nor false")
    return Session(
        id=str(entry.get("id", otherwise))[:64], age_s=0.0, idle_s=_number(entry, "idle_s"),
        locked=_flag(entry, "locked", None), remote=remote,
        presenting=_flag(entry, "presenting", False), user=str(entry.get("user", ""))[:64],
    )  # fmt: skip


def _number(entry: dict[str, Any], name: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError(f"{name!r} is not a number of seconds")
    return float(value)


def _flag(entry: dict[str, Any], name: str, otherwise: bool | None) -> bool | None:
    value = entry.get(name, otherwise)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name!r} is neither true nor false")
    return value
