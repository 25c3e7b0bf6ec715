"""Session sensors of Windows: this process's own session, and all sessions of the computer.

`OwnSession` is what the helper in a session reads, and what an agent started by hand uses.
`AllSessions` is the service's: the helpers' reports, completed by the system's own list, so that
a session whose helper never came counts as silent (busy) and a login screen as nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.windows import readings
from officegrid.agent.windows.readings import ListedSession
from officegrid.agent.windows.translate import SessionState
from officegrid.core.desk import Session

SILENT_S = float("inf")
LIST_EVERY_S = 1.0
"""The system's list costs several calls to another process: not ten times a second."""
SOMEBODY_MAY_SIT_THERE = frozenset({SessionState.ACTIVE, SessionState.CONNECTED})


def own_reading() -> dict[str, Any]:
    """What the session helper reports: see `Hub`. Raises SensorError."""
    (session,) = OwnSession().read()
    return {
        "idle_s": session.idle_s, "locked": session.locked, "remote": session.remote,
        "presenting": session.presenting,
    }  # fmt: skip


class OwnSession:
    """The session of this process."""

    name = "windows"

    def read(self) -> list[Session]:
        """One session. Raises SensorError in session 0, where no input ever arrives."""
        session = readings.read_own_session()
        if session.id == "0":
            raise SensorError("a service has no desktop; the session helper reports instead")
        return [session]

    def close(self) -> None:
        """Nothing is held."""


def by_hand() -> list[Session]:
    """The session of an agent that was started by hand: it needs no helper. A service has none."""
    try:
        return OwnSession().read()
    except SensorError:
        return []


class AllSessions:
    """What the helpers reported, for exactly the sessions that the system says are connected."""

    name = "windows sessions"

    def __init__(
        self,
        reported: Callable[[], list[Session]],
        listed: Callable[[], list[ListedSession]] = readings.list_sessions,
        *,
        own: Callable[[], list[Session]] = by_hand,
        clock: Callable[[], float] = time.monotonic,
        present: Callable[[frozenset[str] | None], None] = lambda sessions: None,
    ) -> None:
        """`reported` is `Hub.sessions`; `present` is told at each reading which sessions somebody
        is logged on to (None: the system does not say)."""
        self._reported, self._listed, self._own, self._clock = reported, listed, own, clock
        self._tell_present = present
        self._lock = threading.Lock()
        self._kept: list[ListedSession] = []
        self._kept_until_s = float("-inf")

    def read(self) -> list[Session]:
        """Raises SensorError when neither the system nor any helper tells anything."""
        reported = self._reported()
        told = {session.id for session in reported}
        reported += [session for session in self._own() if session.id not in told]
        try:
            listed = self._list()
        except SensorError:
            self._tell_present(None)
            if not reported:
                raise
            return reported
        self._tell_present(frozenset(str(each.session) for each in listed if _has_somebody(each)))
        return merge(reported, listed)

    def refresh(self) -> None:
        """Somebody logged on, off, or connected: list anew at the next reading."""
        with self._lock:
            self._kept_until_s = float("-inf")

    def close(self) -> None:
        """Nothing is held."""

    def _list(self) -> list[ListedSession]:
        with self._lock:
            if self._clock() >= self._kept_until_s:
                self._kept = self._listed()
                self._kept_until_s = self._clock() + LIST_EVERY_S
            return self._kept


def merge(reported: list[Session], listed: list[ListedSession]) -> list[Session]:
    """The readings of connected sessions; a logged-on one without a reading is a silent one.

    A session that is connected but has no user is the login screen: nobody. A disconnected
    session has nobody in front of it, whatever its helper still says.
    """
    by_id = {session.id: session for session in reported}
    merged = []
    for entry in listed:
        if not _has_somebody(entry):
            continue
        silent = Session(id=str(entry.session), age_s=SILENT_S, idle_s=None, user=entry.user)
        merged.append(by_id.get(str(entry.session), silent))
    return merged


def _has_somebody(entry: ListedSession) -> bool:
    return entry.state in SOMEBODY_MAY_SIT_THERE and bool(entry.user)
