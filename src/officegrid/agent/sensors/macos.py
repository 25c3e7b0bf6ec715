"""Who sits at a Mac: the HID system's idle time, the console's users, and display assertions.

Sources: Apple, ioreg(8) with the properties HIDIdleTime of IOHIDSystem (nanoseconds) and
IOConsoleUsers of the registry's root (keys kCGSSessionOnConsoleKey, kCGSSessionUserIDKey,
CGSSessionScreenIsLocked, which is absent while unlocked); pmset(1) -g assertions; Quartz Event
Services, CGEventSourceSecondsSinceLastEventType. HIDIdleTime misses input that comes through
Screen Sharing; the event source sees it, but only inside the session, so the helper asks that
one and the smaller of the two counts.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import plistlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from officegrid.agent.channel.hub import Hub, Present
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.desktop import DesktopReading
from officegrid.agent.sensors.tty import Terminals
from officegrid.core.desk import Session

LOOK_EVERY_S = 1.0
COMMAND_S = 3.0
FRESH_S = 15.0
IDLE_COMMAND = ("/usr/sbin/ioreg", "-c", "IOHIDSystem", "-r", "-d", "1", "-w", "0")
USERS_COMMAND = ("/usr/sbin/ioreg", "-a", "-n", "Root", "-d", "1")
ASSERTIONS_COMMAND = ("/usr/bin/pmset", "-g", "assertions")
_COMBINED_SESSION_STATE, _ANY_INPUT = 0, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ConsoleUser:
    """One of IOConsoleUsers."""

    uid: int
    name: str
    on_console: bool
    locked: bool


def parse_idle_s(text: str) -> float:
    """HIDIdleTime out of ioreg's text, the smallest if there are several. Raises SensorError."""
    found = [int(digits) for digits in re.findall(r'"HIDIdleTime"\s*=\s*(\d+)', text)]
    if not found:
        raise SensorError("ioreg tells no HIDIdleTime")
    return min(found) / 1e9


def parse_users(plist: bytes) -> list[ConsoleUser]:
    """The logged-on users out of `ioreg -a -n Root -d 1`. Raises SensorError."""
    try:
        root = plistlib.loads(plist)
    except Exception as error:  # plistlib raises what its parsers do
        raise SensorError(f"ioreg's property list cannot be read ({error})") from None
    if isinstance(root, list):
        root = root[0] if root else {}
    if not isinstance(root, dict) or "IORegistryEntryName" not in root:
        raise SensorError("ioreg does not show the root of the registry")
    found: list[ConsoleUser] = []
    for entry in root.get("IOConsoleUsers", []):
        # The login window is listed too, as a session in which nobody has logged in yet.
        if isinstance(entry, dict) and entry.get("kCGSessionLoginDoneKey", False):
            found.append(
                ConsoleUser(
                    uid=int(entry.get("kCGSSessionUserIDKey", -1)),
                    name=str(entry.get("kCGSSessionUserNameKey", "")),
                    on_console=bool(entry.get("kCGSSessionOnConsoleKey", False)),
                    locked=bool(entry.get("CGSSessionScreenIsLocked", False)),
                )
            )
    return found


def parse_presenting(text: str) -> bool:
    """Does a program keep the display on (a video, a call), by `pmset -g assertions`?
    Raises SensorError."""
    names = "PreventUserIdleDisplaySleep|NoDisplaySleepAssertion"
    found = re.findall(rf"^\s*(?:{names})\s+(\d+)\s*$", text, re.M)
    if not found:
        raise SensorError("pmset tells no display assertions")
    return any(number != "0" for number in found)


def merge(
    users: list[ConsoleUser], idle_s: float, presenting: bool | None, reports: list[Session]
) -> list[Session]:
    """One session per logged-on user. Who is not in front of the console cannot be typing there;
    who is has the smaller of the Mac's idle time and what the helper says."""
    by_user = {report.id: report for report in reports}
    found: list[Session] = []
    for user in users:
        session = Session(
            id=f"user:{user.uid}", age_s=0.0, idle_s=idle_s, locked=user.locked or None,
            presenting=presenting, user=user.name,
        )  # fmt: skip
        report = by_user.pop(session.id, None)
        if not user.on_console:
            session = replace(session, idle_s=None, locked=True)
        elif report is not None and report.age_s <= FRESH_S and report.idle_s is not None:
            session = replace(session, idle_s=min(idle_s, report.idle_s))
        found.append(session)
    # A report without a user at the console: somebody came in by another door.
    return found + [report for report in by_user.values() if report.age_s <= FRESH_S]


class MacSessions:
    """Asks the system's own commands, at most once a second."""

    name = "macos"

    def __init__(
        self,
        hub: Hub,
        run: Callable[[tuple[str, ...]], bytes] | None = None,
        logins: Callable[[], list[tuple[str, str]]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hub, self._run, self._clock = hub, run or _run, clock
        self._logins = logins or _network_logins
        self._terminals = Terminals()
        self._looked_at_s = float("-inf")
        self._idle_s, self._presenting = 0.0, False
        self._users: list[ConsoleUser] = []
        self._trouble: SensorError | None = None
        self._told: list[Session] = []

    def read(self) -> list[Session]:
        """Raises SensorError."""
        now_s = self._clock()
        if now_s - self._looked_at_s >= LOOK_EVERY_S:
            self._looked_at_s = now_s
            self._trouble = None
            try:
                self._idle_s = parse_idle_s(self._run(IDLE_COMMAND).decode(errors="replace"))
                self._users = parse_users(self._run(USERS_COMMAND))
                said = self._run(ASSERTIONS_COMMAND).decode(errors="replace")
                self._presenting = parse_presenting(said)
            except SensorError as error:
                self._trouble = error
            self._tell_present()
        if self._trouble is not None:
            raise self._trouble
        sessions = merge(self._users, self._idle_s, self._presenting, self._hub.sessions())
        self._told = sessions + [self._network_session(*login) for login in self._logins()]
        return list(self._told)

    def _tell_present(self) -> None:
        users = frozenset(str(user.uid) for user in self._users)
        self._hub.know_present(Present(users=users) if self._trouble is None else None)

    def _network_session(self, user: str, terminal: str) -> Session:
        try:
            idle_s: float | None = self._terminals.idle_s(terminal)
        except SensorError:
            idle_s = None
        return Session(id=terminal, age_s=0.0, idle_s=idle_s, remote=True, user=user)

    def explain(self) -> list[str]:
        """What the system said at the last reading, or why it did not. Asks nobody."""
        if self._trouble is not None:
            return [f"macOS: {self._trouble}"]
        watching = "a program keeps the display on" if self._presenting else "no display assertion"
        lines = [f"macOS: no input for {self._idle_s:.0f} s, {watching}"]
        return lines + [f"{s.id} ({s.user}): {_words(s)}" for s in self._told]

    def close(self) -> None:
        """Nothing is held."""


class MacDesktop:
    """The helper's view: the event source of its own session."""

    def __init__(self) -> None:
        """Raises SensorError where there is no such library."""
        path = ctypes.util.find_library("ApplicationServices") if sys.platform == "darwin" else None
        if path is None:
            raise SensorError("ApplicationServices is not there")
        self._since = ctypes.CDLL(path).CGEventSourceSecondsSinceLastEventType
        self._since.argtypes, self._since.restype = (
            [ctypes.c_int32, ctypes.c_uint32],
            (ctypes.c_double),
        )

    def read(self) -> DesktopReading:
        """Never raises. Presentations are the agent's to see."""
        idle_s = float(self._since(_COMBINED_SESSION_STATE, _ANY_INPUT))
        return DesktopReading(idle_s if idle_s >= 0 else None, presenting=False)

    def close(self) -> None:
        """Nothing is held."""


def _network_logins() -> list[tuple[str, str]]:
    """(user, terminal) of each login over the network, by utmpx."""
    return [(entry.name, entry.terminal or "") for entry in psutil.users() if entry.host]


def _words(session: Session) -> str:
    if session.locked:
        return "locked or in the background"
    return "cannot tell" if session.idle_s is None else f"idle {session.idle_s:.0f} s"


def _run(command: tuple[str, ...]) -> bytes:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SensorError(f"{command[0]}: {error}") from None
    return done.stdout
