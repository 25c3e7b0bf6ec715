"""Where local programs talk to the agent: session helpers report input, people pause and look.

A transport (`unix`, on Windows `pipe`) accepts local connections only, finds out who is at the
other end from the operating system, and passes each request, one JSON object, to `Hub.handle`.
The answer is one JSON object. Nothing here listens on a network.

    {"do": "session", "session": {...}}           helper: a reading of its own session
    {"do": "pause", "until_s": 1790000000.0}      user: not now, until (null: for ever)
    {"do": "unpause"}                             user: it may run again
    {"do": "status"}                              anybody: the agent's status

Answers: {"ok": true, ...} or {"ok": false, "error": {"what", "why", "fix"}}. The answer to a
reading also says {"fast": true} while a VM is up: look ten times a second then, not once.

Everybody may look. An admin may pause, and who is logged on here: as the system lists it, or by a
helper's report. A pause ends before its time only by who wanted it, by an admin, and by who is
logged on as the system lists it. A report proves nothing there, for any program can send one; so
where the system lists nobody (no logind), only the first two are left. What replaces somebody
else's pause ends it too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import psutil

from officegrid.core.desk import Session

MOST_REQUEST_BYTES = 4096
MOST_HELPERS_PER_SESSION = 16
MOST_REMARK_CHARS = 300
MOST_IDLE_S = 1e10
REPORT_COUNTS_S = 15.0
"""A helper's older report does not say that its user is still logged on."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the operating system says."""

    user: str
    """User id or SID."""
    session: str
    """Logon session id, "" where the system has none."""
    admin: bool
    """Root, or an elevated administrator, or the agent's own account."""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Present:
    """Who is logged on, as the operating system lists it: by user id, by session id, or both."""

    users: frozenset[str] = frozenset()
    sessions: frozenset[str] = frozenset()

    def has(self, peer: Peer) -> bool:
        return peer.user in self.users or peer.session in self.sessions


class Hub:
    """Thread-safe meeting point of transports and the agent's loop."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        status: Callable[[], dict[str, Any]],
        pause: Callable[[float | None, Peer], None],
        unpause: Callable[[Peer], None],
        fast: Callable[[], bool] = lambda: False,
        alive: Callable[[int], bool] = psutil.pid_exists,
        paused_by: Callable[[], str | None] | None = None,
    ) -> None:
        """`paused_by` tells whose pause is in force (a `Peer.user`; "": not known; None: there is
        none). Without it the hub knows of the pauses only that it has passed on itself."""
        self._clock = clock
        self._paused_by = paused_by or self._seen_pause
        self._seen: tuple[float | None, str] | None = None
        self._present: Present | None = None
        self._fast = fast
        self._alive = alive
        self._status = status
        self._pause = pause
        self._unpause = unpause
        self._lock = Lock()
        # Two helpers may speak for one session (one user, two desktops, no session id): each is
        # kept, or an idle desktop would hide a busy one every other second.
        self._sessions: dict[tuple[str, int], tuple[float, Session, str]] = {}

    def sessions(self) -> list[Session]:
        """The last reading of each session, with its age brought up to date; where several
        helpers speak for one session, the busiest and oldest of what they say."""
        now = self._clock()
        with self._lock:
            kept = list(self._sessions.values())
        found: dict[str, Session] = {}
        for at, s, _ in kept:
            reading = Session(
                id=s.id, age_s=max(0.0, now - at) + s.age_s, idle_s=s.idle_s, locked=s.locked,
                remote=s.remote, presenting=s.presenting, user=s.user,
            )  # fmt: skip
            other = found.get(s.id)
            found[s.id] = reading if other is None else _busier(reading, other)
        return list(found.values())

    def remarks(self) -> dict[str, str]:
        """What helpers say about why they cannot tell, by session id."""
        with self._lock:
            return {session.id: why for _, session, why in self._sessions.values() if why}

    def forget(self, session_id: str) -> None:
        """The session has ended (logoff): its silence means nothing any more."""
        with self._lock:
            for key in [key for key in self._sessions if key[0] == session_id]:
                del self._sessions[key]

    def know_present(self, present: Present | None) -> None:
        """For the sensors: who is logged on; None: the system has no such list, or is mute."""
        self._present = present

    def handle(self, peer: Peer, request: object) -> dict[str, Any]:
        """Answer one request. Raises what the callbacks raise."""
        match request:
            case {"do": "session", "session": dict(reading)}:
                return self._note(peer, reading)
            case {"do": "pause", "until_s": int() | float() | None as until_s}:
                return self._begin_pause(peer, float(until_s) if until_s is not None else None)
            case {"do": "unpause"}:
                return self._end_pause(peer)
            case {"do": "status"}:
                return {"ok": True, "status": self._status()}
        return _refusal("The agent does not understand this request.", "", "Use its own commands.")

    def _begin_pause(self, peer: Peer, until_s: float | None) -> dict[str, Any]:
        if not self._may_pause(peer):
            return _refusal(
                "You may not pause the grid on this PC.",
                "Only an administrator may, and who is logged on here.",
                "Log on at this PC, have the session helper started in your desktop "
                "(officegrid agent session), or ask your administrator.",
            )
        pauser = self._paused_by()
        if pauser is not None and not self._may_end(peer, pauser):
            return _refusal(
                "Somebody else has paused the grid on this PC.",
                "Your pause would replace theirs.",
                "Nothing to do while it lasts; ask again when it is over.",
            )
        self._pause(until_s, peer)
        self._seen = (until_s, peer.user)
        return {"ok": True}

    def _end_pause(self, peer: Peer) -> dict[str, Any]:
        if not self._may_end(peer, self._paused_by()):
            return _refusal(
                "You may not end this pause.",
                "Only who wanted it, who is logged on here, or an administrator may.",
                "Log on at this PC, or ask your administrator.",
            )
        self._unpause(peer)
        self._seen = None
        return {"ok": True}

    def _may_pause(self, peer: Peer) -> bool:
        if self._is_present(peer):
            return True
        if any(s.user == peer.user and s.age_s <= REPORT_COUNTS_S for s in self.sessions()):
            return True
        # Before the first list, or without one, the session that the system gave the caller must
        # do. Windows numbers that of its services 0.
        return self._present is None and peer.session not in ("", "0")

    def _may_end(self, peer: Peer, pauser: str | None) -> bool:
        return peer.user == pauser or self._is_present(peer)

    def _is_present(self, peer: Peer) -> bool:
        present = self._present
        return peer.admin or (present is not None and present.has(peer))

    def _seen_pause(self) -> str | None:
        seen = self._seen
        if seen is None or (seen[0] is not None and seen[0] <= time.time()):
            return None
        return seen[1]

    def _note(self, peer: Peer, reading: dict[str, Any]) -> dict[str, Any]:
        session = _session(peer, reading)
        if session is None:
            return _refusal("This is not a reading of a session.", "A field is missing or wrong.")
        why = reading.get("why", "")
        remark = "".join(c for c in str(why)[:MOST_REMARK_CHARS] if c.isprintable())
        with self._lock:
            others = [k for k in self._sessions if k[0] == session.id and k[1] != peer.pid]
            for key in others:
                # The helper was started anew: the new one speaks for the session.
                if not self._alive(key[1]):
                    del self._sessions[key]
            if len(others) >= MOST_HELPERS_PER_SESSION:
                return _refusal("Too many programs report this session.", "", "End some of them.")
            self._sessions[(session.id, peer.pid)] = (self._clock(), session, remark)
        return {"ok": True, "fast": self._fast()}


def _session(peer: Peer, reading: dict[str, Any]) -> Session | None:
    """The reading, under the session id that the operating system gave, whatever it says."""
    idle_s, locked = reading.get("idle_s"), reading.get("locked")
    presenting, remote = reading.get("presenting"), reading.get("remote", False)
    numbers = (
        isinstance(idle_s, int | float)
        and not isinstance(idle_s, bool)
        and 0 <= idle_s < MOST_IDLE_S
    )
    if not (numbers or idle_s is None):
        return None
    if any(not isinstance(flag, bool | None) for flag in (locked, presenting)):
        return None
    if not isinstance(remote, bool):
        return None
    return Session(
        id=peer.session or f"user:{peer.user}", age_s=0.0,
        idle_s=float(idle_s) if idle_s is not None else None,
        locked=locked, remote=remote, presenting=presenting, user=peer.user,
    )  # fmt: skip


def _busier(one: Session, other: Session) -> Session:
    """Two readings of one session as one: a doubt in either is a doubt."""
    idles = (one.idle_s, other.idle_s)
    known = [idle_s for idle_s in idles if idle_s is not None]
    shown = (one.presenting, other.presenting)
    return Session(
        id=one.id, age_s=max(one.age_s, other.age_s),
        idle_s=min(known) if len(known) == len(idles) else None,
        locked=one.locked if one.locked == other.locked else False,
        remote=one.remote or other.remote,
        presenting=True if True in shown else None if None in shown else False, user=one.user,
    )  # fmt: skip


def _refusal(what: str, why: str, fix: str = "") -> dict[str, Any]:
    return {"ok": False, "error": {"what": what, "why": why, "fix": fix}}
