"""All session sensors of this PC as one: who is here, or None when nobody can tell.

`open_sensors` chooses by configuration and operating system. None means that the agent takes the
user for present, so every failure ends there, and `explain` says in words which one it was. It
tells what the last reading saw and asks nobody: who looks at the status delays no reading.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from threading import Lock
from typing import Literal

from officegrid.agent.channel.hub import Hub, Present
from officegrid.agent.sensors.base import SensorError, SessionSensor
from officegrid.core.desk import Session
from officegrid.core.errors import UsageError

OLD_S = 5.0
"""The loop reads every two seconds at least; an explanation that is older says so."""


class Sensors:
    """The session sensors that the agent's loop reads; safe to use from several threads."""

    def __init__(self, source: SessionSensor) -> None:
        self._source = source
        self._lock = Lock()
        self._last: tuple[float, tuple[Session, ...] | None] | None = None
        self.trouble = ""
        """Why the last reading was None; "" when it was not."""

    def read(self) -> tuple[Session, ...] | None:
        """Every session at which somebody can be; () when nobody is logged on; None: nobody can
        tell. Never raises."""
        sessions: tuple[Session, ...] | None = None
        trouble = ""
        try:
            with self._lock:
                sessions = tuple(self._source.read())
        except SensorError as error:
            trouble = str(error)
        except Exception as error:  # a fault in a sensor must not look like an empty room
            trouble = f"{self._source.name}: {type(error).__name__}: {error}"
        self.trouble = trouble
        self._last = (time.monotonic(), sessions)
        return sessions

    def explain(self) -> list[str]:
        """Per source, what it said last or why it could not: for `officegrid agent status`.
        Cheap, and never waits for a reading."""
        last = self._last
        if last is None:
            return [f"{self._source.name}: not read yet"]
        age_s = time.monotonic() - last[0]
        old = [f"the last reading was {age_s:.0f} s ago"] if age_s > OLD_S else []
        return old + self._explained(last[1])

    def _explained(self, sessions: tuple[Session, ...] | None) -> list[str]:
        explain = getattr(self._source, "explain", None)
        if explain is not None:
            try:
                lines: list[str] = explain()
            except Exception as error:
                return [f"{self._source.name}: {type(error).__name__}: {error}"]
            return lines
        if sessions is None:
            return [f"{self._source.name}: {self.trouble}"]
        if not sessions:
            return [f"{self._source.name}: nobody is logged on"]
        return [f"{self._source.name}: {_words(session)}" for session in sessions]

    def close(self) -> None:
        """Close all sources."""
        with self._lock:
            self._source.close()


def open_sensors(kind: Literal["auto", "file"], file: Path | None, hub: Hub) -> Sensors:
    """The sensors of this PC, or the file that somebody else writes.

    Raises UsageError when kind "file" names no file.
    """
    if kind == "file":
        if file is None:
            raise UsageError(
                "The presence file is not named.",
                '[sensors] has kind = "file", but no file.',
                'Add file = "/path/to/presence.json", or say kind = "auto".',
            )
        from officegrid.agent.sensors.file import FileSensor

        return Sensors(FileSensor(file))
    return Sensors(_of_this_system(hub))


def _of_this_system(hub: Hub) -> SessionSensor:
    if sys.platform == "win32":
        from officegrid.agent.sensors.windows import AllSessions

        def know(sessions: frozenset[str] | None) -> None:
            hub.know_present(None if sessions is None else Present(sessions=sessions))

        return AllSessions(hub.sessions, present=know)
    if sys.platform == "darwin":
        from officegrid.agent.sensors.macos import MacSessions

        return MacSessions(hub)
    from officegrid.agent.sensors.linux import LinuxSessions, open_sources

    return LinuxSessions(hub, open_sources())


def _words(session: Session) -> str:
    told = "cannot tell the idle time" if session.idle_s is None else f"idle {session.idle_s:.0f} s"
    if session.locked:
        told += ", locked"
    if session.presenting:
        told += ", presenting"
    if session.remote:
        told += ", remote"
    whose = f" of {session.user}" if session.user else ""
    return f"session {session.id}{whose}: {told}, {session.age_s:.0f} s ago"
