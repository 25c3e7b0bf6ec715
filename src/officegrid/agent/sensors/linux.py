"""The sessions of a Linux PC: logind, the helpers' reports, terminals, input devices, and where the
agent runs inside a desktop itself, that desktop.

With logind the rule is `linux_rule`. A logind that is there but cannot be asked means that nobody
can tell. On a PC without one nothing can vouch for a session's end, so what a helper once reported
stays until its user has no process left, and a display that no helper reports is taken for a
desktop with somebody at it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from officegrid.agent.channel.hub import Hub, Present
from officegrid.agent.channel.peer import logon_session, unix_socket
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import AbsentError
from officegrid.agent.sensors.desktop import Desktop, DesktopReading, has_desktop
from officegrid.agent.sensors.evdev import Evdev
from officegrid.agent.sensors.linux_rule import (
    FRESH_S,
    USER_PREFIX,
    Evidence,
    Finding,
    judge,
    sits_somewhere,
)
from officegrid.agent.sensors.logind import Logind, Logon
from officegrid.agent.sensors.tty import Terminals
from officegrid.core.desk import Session

PROCESSES_EVERY_S = 30.0
DISPLAYS_EVERY_S = 5.0
X_SOCKETS = Path("/tmp/.X11-unix")
RUNTIME_FOLDERS = Path("/run/user")
SYSTEMD = Path("/run/systemd")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a Linux PC is asked; tests put their own here."""

    logind: Logind
    devices: Evdev
    terminals: Terminals
    desktop: Desktop | None
    """The one that the agent itself runs in."""
    x_sockets: Path = X_SOCKETS
    runtime_folders: Path = RUNTIME_FOLDERS
    systemd: Path = SYSTEMD


def open_sources(env: Mapping[str, str] = os.environ) -> Sources:
    """The real ones of this PC."""
    desktop = Desktop(env) if has_desktop(env) else None
    return Sources(Logind(), Evdev(), Terminals(), desktop)


@dataclass(slots=True)
class _Seen:
    """What one reading saw, source by source, for `explain`."""

    logind: list[Logon] | SensorError | None = None
    devices_idle_s: float | SensorError | None = None
    desktop: DesktopReading | None = None
    findings: list[Finding] | SensorError | None = None


class LinuxSessions:
    """All sessions of this PC."""

    name = "linux"

    def __init__(
        self, hub: Hub, sources: Sources, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hub, self._sources, self._clock = hub, sources, clock
        self._own_id = _own_session_id()
        self._seen = _Seen()
        self._users: set[int] = set()
        self._users_at_s = float("-inf")
        self._displays: list[tuple[str, int]] = []
        self._displays_at_s = float("-inf")

    def read(self) -> list[Session]:
        """Raises SensorError when nobody can tell who is logged on."""
        seen = _Seen()
        try:
            findings = self._findings(seen)
        except SensorError as error:
            seen.findings = error
            raise
        else:
            seen.findings = findings
        finally:
            self._seen = seen
        return [finding.session for finding in findings]

    def explain(self) -> list[str]:
        """Per source and session: what it said at the last reading, or why it could not. Asks
        nobody, so that it may be called from any thread."""
        seen, lines = self._seen, list[str]()
        if isinstance(seen.logind, list):
            lines.append(f"logind: {sum(logon.person for logon in seen.logind)} logged on")
        elif seen.logind is not None:
            lines.append(f"logind: {seen.logind}")
        if isinstance(seen.devices_idle_s, float):
            lines.append(f"input devices: idle {seen.devices_idle_s:.0f} s")
        elif seen.devices_idle_s is not None:
            lines.append(f"input devices: {seen.devices_idle_s}")
        desktop = self._sources.desktop
        if desktop is not None and seen.desktop is not None:
            idle_s, why = seen.desktop.idle_s, seen.desktop.why
            told = f"idle {idle_s:.0f} s" if idle_s is not None else "cannot tell"
            lines.append(f"own desktop ({desktop.source or 'no source'}): {told}")
            lines += [f"own desktop: {why}"] if why else []
        lines += [f"helper of {key}: {why}" for key, why in sorted(self._hub.remarks().items())]
        if seen.findings is None:
            return [*lines, "sessions: not read yet"]
        if isinstance(seen.findings, SensorError):
            return [*lines, f"sessions: not known ({seen.findings})"]
        return lines + ([f.sentence for f in seen.findings] or ["nobody is logged on"])

    def close(self) -> None:
        """Close all sources."""
        self._sources.logind.close()
        self._sources.devices.close()
        if self._sources.desktop is not None:
            self._sources.desktop.close()

    def _findings(self, seen: _Seen) -> list[Finding]:
        reports = self._hub.sessions()
        if self._sources.desktop is not None:
            reports = [r for r in reports if r.id != self._own_id]
            seen.desktop = self._sources.desktop.read()
            reports.append(self._own_session(seen.desktop))
        local_idle_s: float | None = None
        try:
            local_idle_s = seen.devices_idle_s = self._sources.devices.idle_s()
        except SensorError as error:
            seen.devices_idle_s = error
        try:
            logons = seen.logind = self._sources.logind.read()
        except SensorError as error:
            seen.logind = error
            self._hub.know_present(None)
            # Its folders show a logind, elogind too, that only we cannot talk to.
            there = any((self._sources.systemd / name).is_dir() for name in ("seats", "system"))
            if there or not isinstance(error, AbsentError):
                raise
            return self._without_logind(reports, local_idle_s)
        users = frozenset(str(logon.uid) for logon in logons if sits_somewhere(logon))
        self._hub.know_present(Present(users=users))
        findings, ended = judge(
            Evidence(tuple(logons), tuple(reports), local_idle_s, self._terminal_idle_s)
        )
        for session_id in ended:
            self._hub.forget(session_id)
        return findings

    def _own_session(self, seen: DesktopReading) -> Session:
        return Session(
            id=self._own_id, age_s=0.0, idle_s=seen.idle_s, presenting=seen.presenting,
            user=self._own_id.removeprefix(USER_PREFIX),
        )  # fmt: skip

    def _terminal_idle_s(self, logon: Logon) -> float | None:
        terminals = self._sources.terminals
        # Older ssh servers do not tell logind which terminal they gave out.
        names = [logon.tty] if logon.tty else terminals.of_user(logon.uid)
        idles: list[float] = []
        for name in names:
            try:
                idles.append(terminals.idle_s(name))
            except SensorError:
                continue
        return min(idles) if idles else None

    def _without_logind(self, reports: list[Session], local_idle_s: float | None) -> list[Finding]:
        now_s = self._clock()
        findings: list[Finding] = []
        for report in reports:
            if report.age_s > FRESH_S and not self._has_processes(report.user, now_s):
                self._hub.forget(report.id)
                continue
            findings.append(Finding(report, f"{report.id}: its helper, {report.age_s:.0f} s ago"))
        findings += self._terminal_findings(reports)
        return findings + self._unreported_displays(reports, local_idle_s, now_s)

    def _terminal_findings(self, reports: list[Session]) -> list[Finding]:
        reported = {report.user for report in reports}
        findings: list[Finding] = []
        for name, uid in self._sources.terminals.all():
            if str(uid) in reported:
                continue  # a terminal window of a desktop that is reported
            try:
                idle_s: float | None = self._sources.terminals.idle_s(name)
            except SensorError:
                continue  # closed meanwhile
            session = Session(id=name, age_s=0.0, idle_s=idle_s, remote=True, user=str(uid))
            findings.append(Finding(session, f"terminal {name} of user {uid}: idle {idle_s:.0f} s"))
        for entry in psutil.users():
            name = entry.terminal or ""
            if not name.startswith("tty"):
                continue
            try:
                idle_s = self._sources.terminals.idle_s(name)
            except SensorError:
                idle_s = None
            session = Session(id=name, age_s=0.0, idle_s=idle_s, user=entry.name)
            findings.append(Finding(session, f"console {name} of {entry.name}"))
        return findings

    def _unreported_displays(
        self, reports: list[Session], local_idle_s: float | None, now_s: float
    ) -> list[Finding]:
        if now_s - self._displays_at_s >= DISPLAYS_EVERY_S:
            self._displays_at_s = now_s
            self._displays = _displays(self._sources.x_sockets, self._sources.runtime_folders)
        reported = {report.user for report in reports}
        findings: list[Finding] = []
        for name, uid in self._displays:
            # An X server may run as root for whoever reports it.
            if str(uid) in reported or (uid == 0 and reported):
                continue
            session = Session(
                id=name, age_s=0.0, idle_s=local_idle_s, presenting=None, user=str(uid)
            )
            findings.append(
                Finding(session, f"{name} of user {uid}: there is no logind, and no helper reports")
            )
        return findings

    def _has_processes(self, user: str, now_s: float) -> bool:
        if now_s - self._users_at_s >= PROCESSES_EVERY_S:
            self._users_at_s = now_s
            self._users = _users_with_processes()
        return not user.isdecimal() or int(user) in self._users


def _own_session_id() -> str:
    if sys.platform == "win32":
        return ""
    uid = os.geteuid()
    return logon_session(os.getpid(), uid) or f"{USER_PREFIX}{uid}"


def _users_with_processes() -> set[int]:
    found: set[int] = set()
    if sys.platform == "win32":
        return found
    for process in psutil.process_iter():
        try:
            found.add(process.uids().real)
        except psutil.Error:
            continue
    return found


def _displays(x_sockets: Path, runtime_folders: Path) -> list[tuple[str, int]]:
    """(name, owner) of each display server that answers."""
    candidates = [(f"display :{p.name[1:]}", p) for p in sorted(x_sockets.glob("X*"))]
    candidates += [
        (f"display {p.name} of {p.parent.name}", p)
        for p in sorted(runtime_folders.glob("*/wayland-*"))
        if p.suffix != ".lock"
    ]
    found: list[tuple[str, int]] = []
    for name, path in candidates:
        if _answers(path):
            try:
                found.append((name, path.stat().st_uid))
            except OSError:
                continue
    return found


def _answers(path: Path) -> bool:
    probe: socket.socket = unix_socket()
    with probe:
        probe.settimeout(0.2)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False  # left behind by a server that is gone
        except OSError:
            return True
    return True
