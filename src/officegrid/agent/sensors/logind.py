"""Who is logged on, as systemd-logind knows: one entry per session, kept current by its signals.

Sources: org.freedesktop.login1(5) (Manager.ListSessions, Session properties). Its IdleHint is
not used: desktops set it late or never. LockedHint is believed when it says locked, and says
nothing otherwise, because many lockers do not set it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import AbsentError, Bus

SERVICE = "org.freedesktop.login1"
PATH = "/org/freedesktop/login1"
REFRESH_S = 30.0
"""Signals tell every change at once; this is for what they miss."""
_GRAPHICAL = ("x11", "wayland", "mir", "web")


@dataclass(frozen=True, slots=True)
class Logon:
    """One of logind's sessions."""

    id: str
    uid: int
    user: str
    seat: str
    """"seat0" for somebody at this PC, "" for who came over the network."""
    kind: str
    """x11, wayland, tty, or unspecified."""
    group: str
    """Logind's class: user, greeter, lock-screen, background, manager, …"""
    remote: bool
    locked: bool
    active: bool
    """In front on its seat; another session, or the login screen, may be instead."""
    state: str
    """online, active, closing; opening."""
    tty: str

    @property
    def person(self) -> bool:
        """Somebody is logged on here: no login screen, no cron job, nothing that is ending."""
        return self.group.startswith("user") and self.state != "closing"

    @property
    def graphical(self) -> bool:
        """A desktop, which only a helper inside can read."""
        return self.kind in _GRAPHICAL or (self.kind not in ("tty",) and bool(self.seat))


class Logind:
    """Reads the sessions over the system bus; asks again only when something changed."""

    def __init__(
        self, bus: Bus | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus or Bus("SYSTEM", clock=clock)
        self._clock = clock
        self._known: list[Logon] | None = None
        self._read_at_s = float("-inf")
        self._watching = False

    def read(self) -> list[Logon]:
        """All sessions. Raises SensorError; AbsentError: this PC has no logind."""
        try:
            if not self._watching:
                self._bus.watch(SERVICE, PATH)
                self._watching = True
            changed = self._bus.signalled()
            now_s = self._clock()
            if self._known is None or changed or now_s - self._read_at_s >= REFRESH_S:
                self._known = self._all()
                self._read_at_s = now_s
        except SensorError:
            self._known = None
            raise
        return self._known

    def close(self) -> None:
        """Hang up."""
        self._bus.close()

    def _all(self) -> list[Logon]:
        (listed,) = self._bus.call(SERVICE, PATH, f"{SERVICE}.Manager", "ListSessions")
        found: list[Logon] = []
        for entry in listed:
            try:
                (properties,) = self._bus.call(
                    SERVICE, entry[4], "org.freedesktop.DBus.Properties", "GetAll", "s",
                    (f"{SERVICE}.Session",),
                )  # fmt: skip
            except AbsentError:
                continue  # it ended since it was listed
            found.append(logon_of(str(entry[0]), properties))
        return found


def logon_of(session_id: str, properties: dict[str, tuple[str, Any]]) -> Logon:
    """A session out of GetAll's answer: names to (signature, value) pairs."""

    def value(name: str, otherwise: Any) -> Any:
        return properties.get(name, ("", otherwise))[1]

    return Logon(
        id=session_id,
        uid=int(value("User", (0, ""))[0]),
        user=str(value("Name", "")),
        seat=str(value("Seat", ("", ""))[0]),
        kind=str(value("Type", "unspecified")),
        group=str(value("Class", "user")),
        remote=bool(value("Remote", False)),
        locked=bool(value("LockedHint", False)),
        active=bool(value("Active", True)),
        state=str(value("State", "active")),
        tty=str(value("TTY", "")),
    )
