"""Speaks just enough of the X11 protocol to ask a server how long its user has been idle.

Not Xlib: Xlib ends the whole process when the server dies, and waits for ever for one that hangs.
Here each answer has a deadline, and every trouble is a SensorError.

Sources of the formats: "X Window System Protocol" version 11 (connection setup, requests and
replies, all in our own byte order), "X11 Screen Saver Extension Protocol" 1.1, Xau's
Xauthority(5) file format.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from officegrid.agent.channel.peer import unix_socket
from officegrid.agent.sensors.base import SensorError

ANSWER_S = 1.0
SOCKETS = Path("/tmp/.X11-unix")
_COOKIE = b"MIT-MAGIC-COOKIE-1"
_ANY_FAMILY = 0xFFFF
_LOCAL_FAMILY = 256
_MOST_REPLY_BYTES = 1 << 20
_ANY_TYPE = 0


def display_number(display: str) -> int:
    """The number of a display on this PC, of ":0", ":0.0" or "unix:0".

    Raises SensorError for one on another machine: its idle time is not this PC's.
    """
    found = re.fullmatch(r"(?:unix)?:(\d{1,5})(?:\.\d+)?", display)
    if found is None:
        raise SensorError(f"the display {display!r} is not a display of this PC")
    return int(found[1])


def find_cookie(xauthority: bytes, number: int, host: bytes) -> bytes:
    """The secret for a local display out of an Xauthority file's bytes, b"" if it has none."""
    position, best = 0, b""
    try:
        while position < len(xauthority):
            (family,) = struct.unpack_from(">H", xauthority, position)
            position += 2
            parts: list[bytes] = []
            for _ in range(4):
                (length,) = struct.unpack_from(">H", xauthority, position)
                parts.append(xauthority[position + 2 : position + 2 + length])
                position += 2 + length
            address, shown, name, data = parts
            if name != _COOKIE or shown not in (b"", str(number).encode()):
                continue
            if family == _LOCAL_FAMILY and address == host:
                return data
            if family in (_ANY_FAMILY, _LOCAL_FAMILY):
                best = best or data
    except struct.error:
        pass  # a file cut short: what was found so far counts
    return best


@dataclass(frozen=True, slots=True)
class SaverInfo:
    """Answer of ScreenSaverQueryInfo."""

    idle_s: float
    state: int
    """0 off, 1 on, 3 disabled; says nothing about a lock."""


class XConnection:
    """One connection to the X server of a local display. All methods raise SensorError; after
    one of them, close it and open another."""

    def __init__(self, display: str, xauthority: Path | None = None) -> None:
        self._number = display_number(display)
        self._received = b""
        self._sequence = 0
        self._atoms: dict[str, int] = {}
        self._socket = self._connected()
        try:
            self.root, self.size = self._setup(_cookie(self._number, xauthority))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def extension(self, name: str) -> int | None:
        """Major opcode of an extension; None: the server does not have it."""
        text = name.encode()
        reply = self._ask(98, 0, struct.pack("=HH", len(text), 0) + _padded(text))
        present, opcode = struct.unpack_from("=BB", reply, 8)
        return int(opcode) if present else None

    def saver_info(self, opcode: int) -> SaverInfo:
        """How long ago the last input was; `opcode` is that of "MIT-SCREEN-SAVER"."""
        reply = self._ask(opcode, 1, struct.pack("=I", self.root))
        _, _, idle_ms = struct.unpack_from("=III", reply, 8)
        return SaverInfo(idle_s=idle_ms / 1000.0, state=reply[1])

    def atom(self, name: str) -> int:
        """The number of an atom, 0 where the server has never heard of it."""
        if name not in self._atoms:
            text = name.encode()
            reply = self._ask(16, 1, struct.pack("=HH", len(text), 0) + _padded(text))
            (number,) = struct.unpack_from("=I", reply, 8)
            if number == 0:
                return 0  # may come to be later
            self._atoms[name] = number
        return self._atoms[name]

    def numbers(self, window: int, name: str) -> tuple[int, ...]:
        """A window property of 32-bit values, () where it is not set."""
        atom = self.atom(name)
        if atom == 0:
            return ()
        reply = self._ask(20, 0, struct.pack("=IIIII", window, atom, _ANY_TYPE, 0, 1024))
        if reply[1] != 32:
            return ()
        (count,) = struct.unpack_from("=I", reply, 16)
        return struct.unpack_from(f"={count}I", reply, 32)

    def focus(self) -> int:
        """The window with the input focus; 0 or 1 where none has it."""
        return int(struct.unpack_from("=I", self._ask(43, 0, b""), 8)[0])

    def geometry(self, window: int) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = struct.unpack_from("=HH", self._ask(14, 0, struct.pack("=I", window)), 16)
        return int(width), int(height)

    def _connected(self) -> socket.socket:
        where = str(SOCKETS / f"X{self._number}")
        # Servers listen on the path and, on Linux, on the same name in the abstract space.
        names = [f"\0{where}", where] if sys.platform == "linux" else [where]
        trouble = ""
        for name in names:
            try:
                fresh = unix_socket()
            except OSError as error:
                raise SensorError(str(error)) from None
            fresh.settimeout(ANSWER_S)
            try:
                fresh.connect(name)
            except OSError as error:
                fresh.close()
                trouble = str(error)
                continue
            return fresh
        raise SensorError(f"no X server answers on display :{self._number} ({trouble})")

    def _setup(self, cookie: bytes) -> tuple[int, tuple[int, int]]:
        order = b"l" if sys.byteorder == "little" else b"B"
        name = _COOKIE if cookie else b""
        head = struct.pack("=cxHHHHxx", order, 11, 0, len(name), len(cookie))
        deadline_s = time.monotonic() + ANSWER_S
        self._send(head + _padded(name) + _padded(cookie))
        status, reason_bytes, length = struct.unpack("=BBxxxxH", self._take(8, deadline_s))
        if status != 1:
            reason = b"it does not say why"
            with contextlib.suppress(SensorError):  # it may hang up before it has said so
                reason = self._take(length * 4, deadline_s)[:reason_bytes].strip()
            text = reason.decode(errors="replace")
            raise SensorError(f"the X server of display :{self._number} refuses: {text}")
        body = self._take(length * 4, deadline_s)
        vendor_bytes, screens, formats = struct.unpack_from("=H2xBB", body, 16)
        at = 32 + (vendor_bytes + 3) // 4 * 4 + formats * 8
        if not screens:
            raise SensorError("the X server has no screen")
        (root,) = struct.unpack_from("=I", body, at)
        width, height = struct.unpack_from("=HH", body, at + 20)
        return int(root), (int(width), int(height))

    def _ask(self, opcode: int, detail: int, body: bytes) -> bytes:
        """The reply's bytes, its 32 byte head included."""
        deadline_s = time.monotonic() + ANSWER_S
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._send(struct.pack("=BBH", opcode, detail, 1 + len(body) // 4) + body)
        while True:
            head = self._take(32, deadline_s)
            kind, sequence, extra = head[0], *struct.unpack_from("=HI", head, 2)
            more = extra * 4 if kind in (1, 35) else 0
            if more > _MOST_REPLY_BYTES:
                raise SensorError("the X server sends nonsense")
            reply = head + self._take(more, deadline_s)
            if kind not in (0, 1):
                continue  # an event: we asked for none, but may be sent some
            if sequence != self._sequence:
                raise SensorError("the X server answers another question")
            if kind == 0:
                raise SensorError(f"the X server reports error {head[1]} for request {opcode}")
            return reply

    def _send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.sendall(data)
        except OSError as error:
            raise SensorError(f"the X server is gone ({error})") from None

    def _take(self, count: int, deadline_s: float) -> bytes:
        while len(self._received) < count:
            left_s = deadline_s - time.monotonic()
            try:
                if left_s <= 0:
                    raise TimeoutError
                self._socket.settimeout(left_s)
                data = self._socket.recv(65536)
            except TimeoutError:
                raise SensorError("the X server does not answer") from None
            except OSError as error:
                raise SensorError(f"the X server is gone ({error})") from None
            if not data:
                raise SensorError("the X server is gone")
            self._received += data
        taken, self._received = self._received[:count], self._received[count:]
        return taken


def _cookie(number: int, xauthority: Path | None) -> bytes:
    path = xauthority or Path(os.environ.get("XAUTHORITY") or Path.home() / ".Xauthority")
    with contextlib.suppress(OSError):
        return find_cookie(path.read_bytes(), number, socket.gethostname().encode())
    return b""


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
