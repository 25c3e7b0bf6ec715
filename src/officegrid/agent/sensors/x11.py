"""Input and full-screen windows of an X11 desktop: XScreenSaver and the window manager's hints.

Not for Xwayland, the X server inside a Wayland desktop: it sees only what is typed into X
programs, so its idle time grows while somebody works.

Sources: X11 Screen Saver Extension; Extended Window Manager Hints 1.5 (_NET_ACTIVE_WINDOW,
_NET_WM_STATE, _NET_SUPPORTING_WM_CHECK).
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.xwire import XConnection

Answer = TypeVar("Answer")

RETRY_S = 5.0


class X11Desktop:
    """A kept connection to a display, opened anew after a failure (at most every five seconds)."""

    name = "X11"

    def __init__(
        self,
        display: str,
        xauthority: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._display, self._xauthority, self._clock = display, xauthority, clock
        self._connection: XConnection | None = None
        self._saver = 0
        self._trouble = ""
        self._retry_at_s = float("-inf")

    def idle_s(self) -> float:
        """Seconds since the last input. Raises SensorError."""
        return self._kept(lambda x: x.saver_info(self._saver).idle_s)

    def presenting(self) -> bool:
        """Is the window that has the user's attention full-screen? Raises SensorError."""
        return self._kept(full_screen)

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _kept(self, ask: Callable[[XConnection], Answer]) -> Answer:
        try:
            if self._connection is None:
                self._open()
            assert self._connection is not None
            return ask(self._connection)
        except SensorError as error:
            self._fail(str(error))
            raise
        except (struct.error, IndexError):
            self._fail("the X server sends nonsense")
            raise SensorError(self._trouble) from None

    def _fail(self, trouble: str) -> None:
        self._trouble = trouble
        if self._clock() >= self._retry_at_s:
            self._retry_at_s = self._clock() + RETRY_S
        self.close()

    def _open(self) -> None:
        if self._clock() < self._retry_at_s:
            raise SensorError(self._trouble)
        connection = XConnection(self._display, self._xauthority)
        try:
            if connection.extension("XWAYLAND") is not None:
                raise SensorError(
                    "this X server is Xwayland, which sees only part of the input; the helper "
                    "must be started inside the Wayland session"
                )
            saver = connection.extension("MIT-SCREEN-SAVER")
            if saver is None:
                raise SensorError("the X server lacks the MIT-SCREEN-SAVER extension")
        except BaseException:
            connection.close()
            raise
        self._connection, self._saver = connection, saver


def full_screen(x: XConnection) -> bool:
    """Does a full-screen window have the user's attention? Raises SensorError."""
    managed = x.numbers(x.root, "_NET_SUPPORTING_WM_CHECK")
    if managed:
        active = x.numbers(x.root, "_NET_ACTIVE_WINDOW")
        if not active or active[0] == 0:
            return False
        wanted = x.atom("_NET_WM_STATE_FULLSCREEN")
        return wanted != 0 and wanted in _of_window(x, active[0])
    # No window manager that tells: a kiosk. What covers the whole screen is full-screen.
    focus = x.focus()
    if focus in (0, 1, x.root):
        return False
    with contextlib.suppress(SensorError):
        width, height = x.geometry(focus)
        return width >= x.size[0] and height >= x.size[1]
    return False


def _of_window(x: XConnection, window: int) -> tuple[int, ...]:
    try:
        return x.numbers(window, "_NET_WM_STATE")
    except SensorError as error:
        if "reports error" in str(error):
            return ()  # it was closed just now
        raise
