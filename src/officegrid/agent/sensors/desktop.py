"""One Linux desktop, seen from inside: the user's idle time, and whether they are watching.

Which source is asked depends on the desktop. X11: XScreenSaver, and full-screen windows. GNOME on
Wayland: Mutter's idle monitor. Other Wayland desktops: ext-idle-notify-v1. Programs that hold off
idleness are asked for on the session bus (GNOME, KDE). A Wayland desktop is never judged by its
Xwayland.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import AbsentError, Bus, session_bus_address
from officegrid.agent.sensors.mutter import SessionBusDesktop
from officegrid.agent.sensors.wayland import WaylandIdle, wayland_socket
from officegrid.agent.sensors.x11 import X11Desktop

PRESENTING_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class DesktopReading:
    """What can be told; None with the reason in `why`."""

    idle_s: float | None
    presenting: bool | None
    why: str = ""


class IdleSource(Protocol):
    """Tells a desktop's idle time."""

    name: str

    def idle_s(self) -> float: ...

    def close(self) -> None: ...


def has_desktop(env: Mapping[str, str] = os.environ) -> bool:
    """Was this process started inside a graphical session?"""
    return bool(env.get("WAYLAND_DISPLAY") or env.get("DISPLAY"))


class Desktop:
    """The desktop that the environment names; keeps its connections."""

    def __init__(
        self, env: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises SensorError when there is no desktop in the environment."""
        if not has_desktop(env):
            raise SensorError("neither DISPLAY nor WAYLAND_DISPLAY is set: not in a desktop")
        self._clock = clock
        self._bus = _session_bus(clock)
        wayland = env.get("XDG_SESSION_TYPE") == "wayland" or bool(env.get("WAYLAND_DISPLAY"))
        self._x11 = None if wayland else X11Desktop(env["DISPLAY"], clock=clock)
        self._notifier: WaylandIdle | None = None
        if wayland and env.get("WAYLAND_DISPLAY"):
            self._notifier = WaylandIdle(wayland_socket(env["WAYLAND_DISPLAY"]), clock=clock)
        found: list[IdleSource | None] = [self._x11, self._bus, self._notifier]
        self._sources: list[IdleSource] = [source for source in found if source is not None]
        self._chosen: IdleSource | None = None
        self._presenting: bool | None = None
        self._presenting_at_s = float("-inf")
        self._presenting_why = ""

    def read(self) -> DesktopReading:
        """Never raises."""
        try:
            idle_s: float | None = self._idle_s()
            why = ""
        except SensorError as error:
            idle_s, why = None, str(error)
        if self._clock() - self._presenting_at_s >= PRESENTING_EVERY_S:
            self._look_for_presentation()
        return DesktopReading(idle_s, self._presenting, why or self._presenting_why)

    def close(self) -> None:
        """Hang up."""
        for source in self._sources:
            source.close()

    @property
    def source(self) -> str:
        """Who tells the idle time, "" while nobody does."""
        return self._chosen.name if self._chosen is not None else ""

    def _idle_s(self) -> float:
        if self._chosen is not None:
            try:
                return self._chosen.idle_s()
            except SensorError:
                self._chosen = None
                raise
        troubles: list[str] = []
        for source in self._sources:
            try:
                idle_s = source.idle_s()
            except SensorError as error:
                troubles.append(f"{source.name}: {error}")
                continue
            self._chosen = source
            return idle_s
        raise SensorError("; ".join(troubles))

    def _look_for_presentation(self) -> None:
        self._presenting_at_s = self._clock()
        said: list[bool] = []
        troubles: list[str] = []
        failed = False
        if self._chosen is self._notifier and self._notifier is not None:
            said.append(False)  # whoever watches a video is not idle there
        for ask in (self._x11, self._bus):
            if ask is None:
                continue
            try:
                said.append(ask.presenting())
            except AbsentError as error:
                troubles.append(str(error))
            except SensorError as error:
                troubles.append(str(error))
                failed = True
        known = bool(said) and not failed
        self._presenting = True if True in said else False if known else None
        self._presenting_why = ""
        if self._presenting is None:
            self._presenting_why = f"cannot see presentations: {'; '.join(troubles)}"


def _session_bus(clock: Callable[[], float]) -> SessionBusDesktop | None:
    try:
        return SessionBusDesktop(Bus(session_bus_address(), clock=clock))
    except AbsentError:
        return None
