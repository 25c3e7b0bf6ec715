"""What the session helper of Linux and macOS reports: the desktop that it runs in.

It runs as the desktop's user, started with the session. When, and how often, is
`agent.session_helper`'s to say; here is what is read, and when the desktop has gone for good.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from officegrid.agent.channel.unix_client import Connection
from officegrid.agent.sensors.desktop import Desktop, DesktopReading
from officegrid.agent.session_helper import SessionHelper

DESKTOP_GONE_S = 60.0


class OwnDesktop(Protocol):
    """`desktop.Desktop` or `macos.MacDesktop`."""

    def read(self) -> DesktopReading: ...

    def close(self) -> None: ...


class OwnReading:
    """Call it for a reading as the hub takes it: idle_s, presenting, remote, why. Never raises."""

    def __init__(
        self,
        desktop: OwnDesktop | None = None,
        *,
        env: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`desktop` is the one that `env` names, unless given. Raises SensorError when this
        process is not in a desktop."""
        self._desktop = desktop or _own_desktop(env)
        self._remote = any(env.get(name) for name in ("SSH_CONNECTION", "XRDP_SESSION"))
        self._clock = clock
        self._seen_at_s: float | None = None
        self.gone = False
        """The desktop was there, and has not answered for a minute: its session has ended."""

    def __call__(self) -> dict[str, Any]:
        reading, now_s = self._desktop.read(), self._clock()
        if reading.idle_s is not None:
            self._seen_at_s, self.gone = now_s, False
        elif self._seen_at_s is not None:
            self.gone = now_s - self._seen_at_s > DESKTOP_GONE_S
        return {
            "idle_s": reading.idle_s, "presenting": reading.presenting,
            "remote": self._remote, "why": reading.why,
        }  # fmt: skip

    def close(self) -> None:
        """Hang up."""
        self._desktop.close()


def run_helper(path: Path, stop: Event, *, own: OwnReading | None = None) -> None:
    """Report to the agent whose socket is `path` until `stop` is set or the desktop is gone. An
    agent that is away is waited for.

    Raises SensorError when this process is not in a desktop.
    """
    reading = own or OwnReading()
    agent = Connection(path)

    def read() -> dict[str, Any]:
        found = reading()
        if reading.gone or stop.is_set():
            helper.end.set()
        return found

    helper = SessionHelper(read, agent)
    try:
        helper.run()
    finally:
        agent.close()
        reading.close()


def _own_desktop(env: Mapping[str, str]) -> OwnDesktop:
    if sys.platform == "darwin":
        from officegrid.agent.sensors.macos import MacDesktop

        return MacDesktop()
    return Desktop(env)
