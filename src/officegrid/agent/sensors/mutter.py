"""What GNOME and KDE desktops say on the session bus: input, and programs that hold off idleness.

Sources: Mutter, data/dbus-interfaces/org.gnome.Mutter.IdleMonitor.xml (GetIdletime: milliseconds);
gnome-session, org.gnome.SessionManager.xml (IsInhibited, flag 8: the session being marked idle);
KDE PowerDevil, org.kde.Solid.PowerManagement.PolicyAgent.xml (HasInhibition, policy 4: changing
the screen's settings). Video players, calls and presentations inhibit these.
"""

from __future__ import annotations

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import AbsentError, Bus

_GNOME_IDLE_FLAG = 8
_KDE_SCREEN_POLICY = 4
_KDE = "org.kde.Solid.PowerManagement.PolicyAgent"


class SessionBusDesktop:
    """Asks the desktop over an open session bus."""

    name = "session bus"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def idle_s(self) -> float:
        """Seconds since the last input, as GNOME's compositor knows. Raises SensorError;
        AbsentError: this is not GNOME."""
        (idle_ms,) = self._bus.call(
            "org.gnome.Mutter.IdleMonitor",
            "/org/gnome/Mutter/IdleMonitor/Core",
            "org.gnome.Mutter.IdleMonitor",
            "GetIdletime",
        )
        if not isinstance(idle_ms, int) or idle_ms < 0:
            raise SensorError(f"GetIdletime: {idle_ms!r} is no time")
        return idle_ms / 1000.0

    def presenting(self) -> bool:
        """Does a program ask that the session not become idle? Raises SensorError;
        AbsentError: neither GNOME nor KDE can be asked."""
        try:
            return self._true(
                "org.gnome.SessionManager", "/org/gnome/SessionManager",
                "org.gnome.SessionManager", "IsInhibited", _GNOME_IDLE_FLAG,
            )  # fmt: skip
        except AbsentError:
            return self._true(
                _KDE, "/org/kde/Solid/PowerManagement/PolicyAgent", _KDE, "HasInhibition",
                _KDE_SCREEN_POLICY,
            )  # fmt: skip

    def close(self) -> None:
        """Hang up."""
        self._bus.close()

    def _true(self, service: str, path: str, interface: str, method: str, flag: int) -> bool:
        answer = self._bus.call(service, path, interface, method, "u", (flag,))
        if not answer or not isinstance(answer[0], bool):
            raise SensorError(f"{interface}.{method}: {answer!r} is no answer")
        return answer[0]
