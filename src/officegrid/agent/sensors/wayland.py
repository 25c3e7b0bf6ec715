"""Input on a Wayland desktop that speaks ext-idle-notify-v1 (KDE Plasma, sway, labwc, COSMIC …).

The compositor tells when the user has been idle for a second and when they are back. A program
that asks the screen to stay on (a video, a call) keeps a session from becoming idle, so nothing
more need be asked about presentations. Each second the compositor must answer a question, or its
silence would look like an idle user.

Sources: Wayland protocol (wire format; wl_display, wl_registry, wl_callback), ext-idle-notify-v1.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from officegrid.agent.channel.peer import unix_socket
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import AbsentError

IDLE_AFTER_MS = 1000
ANSWER_S = 1.0
RETRY_S = 5.0
ALIVE_EVERY_S = 1.0
_DISPLAY, _REGISTRY, _CALLBACK = 1, 2, 3
_HEAD = struct.Struct("=II")  # object; size in the upper half, opcode in the lower
_NOTIFIER = "ext_idle_notifier_v1"


class WaylandIdle:
    """A kept connection to the compositor, opened anew after a failure."""

    name = "Wayland"

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._socket: socket.socket | None = None
        self._received = b""
        self._globals: dict[int, str] = {}
        self._next_id = _CALLBACK + 1
        self._done = False
        self._idle_since_s: dict[int, float | None] = {}
        self._alive_at_s = float("-inf")
        self._retry_at_s = float("-inf")
        self._trouble = SensorError("not tried yet")

    def idle_s(self) -> float:
        """Seconds since the last input or inhibition, 0 within the first second.
        Raises SensorError; AbsentError: the compositor does not speak this protocol."""
        try:
            if self._socket is None:
                self._open()
            if self._clock() - self._alive_at_s >= ALIVE_EVERY_S:
                self._roundtrip()
            else:
                self._drain()
        except SensorError as error:
            self._fail(error)
            raise
        except (OSError, struct.error, ValueError) as error:
            self._fail(SensorError(f"the Wayland compositor is gone ({error})"))
            raise self._trouble from None
        now_s, since = self._clock(), list(self._idle_since_s.values())
        known = [at_s for at_s in since if at_s is not None]
        if len(known) < len(since):
            return 0.0
        return max(0.0, now_s - max(known)) + IDLE_AFTER_MS / 1000.0

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._received = None, b""

    def _fail(self, trouble: SensorError) -> None:
        if self._clock() >= self._retry_at_s:
            self._retry_at_s = self._clock() + RETRY_S
        self._trouble = trouble
        self.close()

    def _open(self) -> None:
        if self._clock() < self._retry_at_s:
            raise self._trouble
        self._socket = unix_socket()
        self._socket.settimeout(ANSWER_S)
        self._socket.connect(str(self._path))
        self._globals, self._idle_since_s, self._next_id = {}, {}, _CALLBACK + 1
        self._send(_DISPLAY, 1, struct.pack("=I", _REGISTRY))
        self._roundtrip()
        notifiers = [n for n, interface in self._globals.items() if interface == _NOTIFIER]
        seats = [n for n, interface in self._globals.items() if interface == "wl_seat"]
        if not notifiers or not seats:
            raise AbsentError("this Wayland desktop does not offer ext-idle-notify-v1")
        notifier = self._bind(notifiers[0], _NOTIFIER)
        for seat in seats:
            bound = self._bind(seat, "wl_seat")
            watch = self._new_id()
            self._send(notifier, 1, struct.pack("=III", watch, IDLE_AFTER_MS, bound))
            self._idle_since_s[watch] = None
        self._roundtrip()

    def _bind(self, number: int, interface: str) -> int:
        text = interface.encode() + b"\0"
        bound = self._new_id()
        padded = text + bytes(-len(text) % 4)
        self._send(
            _REGISTRY, 0,
            struct.pack("=II", number, len(text)) + padded + struct.pack("=II", 1, bound),
        )  # fmt: skip
        return bound

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _roundtrip(self) -> None:
        """Ask the compositor to answer, and take in all that it says until it does."""
        deadline_s = time.monotonic() + ANSWER_S
        self._done = False
        self._send(_DISPLAY, 0, struct.pack("=I", _CALLBACK))
        while not self._done:
            self._take(deadline_s - time.monotonic())
        self._alive_at_s = self._clock()

    def _drain(self) -> None:
        while self._take(0.0):
            pass

    def _send(self, target: int, opcode: int, body: bytes) -> None:
        assert self._socket is not None
        self._socket.settimeout(ANSWER_S)
        size = _HEAD.size + len(body)
        self._socket.sendall(_HEAD.pack(target, size << 16 | opcode) + body)

    def _take(self, wait_s: float) -> bool:
        """Take in what came within `wait_s`; 0: only what is there. False: nothing was."""
        assert self._socket is not None
        self._socket.settimeout(max(0.0, wait_s))
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, TimeoutError):
            if wait_s == 0.0:
                return False
            raise SensorError("the Wayland compositor does not answer") from None
        if not data:
            raise SensorError("the Wayland compositor is gone")
        self._received += data
        while len(self._received) >= _HEAD.size:
            target, word = _HEAD.unpack_from(self._received)
            size, opcode = word >> 16, word & 0xFFFF
            if size < _HEAD.size:
                raise SensorError("the Wayland compositor sends nonsense")
            if len(self._received) < size:
                break
            body, self._received = self._received[_HEAD.size : size], self._received[size:]
            self._event(target, opcode, body)
        return True

    def _event(self, target: int, opcode: int, body: bytes) -> None:
        if target == _CALLBACK:
            return  # its number is free again once delete_id says so
        if target == _DISPLAY and opcode == 1:
            self._done = self._done or struct.unpack("=I", body)[0] == _CALLBACK
        elif target == _DISPLAY and opcode == 0:
            raise SensorError("the Wayland compositor reports an error")
        elif target == _REGISTRY and opcode == 0:
            number, length = struct.unpack_from("=II", body)
            self._globals[number] = body[8 : 8 + length - 1].decode(errors="replace")
        elif target in self._idle_since_s:
            self._idle_since_s[target] = self._clock() if opcode == 0 else None


def wayland_socket(display: str) -> Path:
    """The compositor's socket of WAYLAND_DISPLAY. Raises SensorError."""
    if display.startswith("/"):
        return Path(display)
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if not folder:
        raise SensorError("XDG_RUNTIME_DIR is not set")
    return Path(folder) / display
