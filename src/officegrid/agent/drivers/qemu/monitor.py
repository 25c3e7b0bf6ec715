"""QMP, the control protocol of a running QEMU, over a unix socket.

Format: QEMU "QMP protocol specification": JSON objects, one per line. QEMU greets with
`{"QMP": …}`, expects `qmp_capabilities`, answers each command with `{"return": …}` or
`{"error": {"class": …, "desc": …}}`, and mixes in `{"event": …}` as it likes.

Plain blocking sockets: every verb of the driver blocks anyway, each call has a time limit that
holds whatever QEMU does, and a connection costs about a millisecond. One socket serves one
client at a time; therefore a VM has two, `control` for verbs and `look` for looking.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

MOST_REPLY_BYTES = 16 * 2**20
MOST_PATH_BYTES = 100
"""A unix socket's address holds 108 bytes on Linux, 104 on macOS."""


class NoAnswer(Exception):  # noqa: N818
    """QEMU did not answer in time. What it does, nobody knows."""


class NotThere(Exception):  # noqa: N818
    """Nobody listens on the socket, or the connection ended: QEMU is starting, or gone."""


class Refused(Exception):  # noqa: N818
    """QEMU answered with an error; its text is the message."""


class Monitor:
    """One connection. `timeout_s` is for connecting and greeting together."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._received = bytearray()
        self._socket = _connect(path, timeout_s)
        deadline = time.monotonic() + timeout_s
        try:
            if "QMP" not in self._read(deadline):
                raise NotThere("what answers is not QEMU")
            self._exchange({"execute": "qmp_capabilities"}, deadline)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._socket.close()

    def call(self, command: str, *, timeout_s: float, **arguments: Any) -> Any:
        """What the command returns. Raises Refused, NoAnswer, NotThere."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        return self._exchange(request, time.monotonic() + timeout_s)

    def send_file(
        self, descriptor: int, command: str, *, timeout_s: float, **arguments: Any
    ) -> Any:
        """`call` for `getfd` and `add-fd`, which take an open file along with the words."""
        if sys.platform == "win32":
            raise Refused("files cannot be handed to QEMU on Windows")
        request = {
            "execute": command,
            "arguments": {k.replace("_", "-"): v for k, v in arguments.items()},
        }
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        return self._exchange(request, time.monotonic() + timeout_s, rights)

    def _exchange(
        self, request: dict[str, Any], deadline: float,
        rights: list[tuple[int, int, array.array[int]]] | None = None,
    ) -> Any:  # fmt: skip
        text = json.dumps(request).encode() + b"\n"
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            if rights is not None and sys.platform != "win32":
                self._socket.sendmsg([text], rights)
            else:
                self._socket.sendall(text)
        except TimeoutError:
            raise NoAnswer("it does not take the command") from None
        except OSError as error:
            raise NotThere(str(error)) from None
        while True:
            reply = self._read(deadline)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise Refused(str(reply["error"].get("desc", reply["error"])))

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise NoAnswer("it does not answer")
            try:
                self._socket.settimeout(left_s)
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise NoAnswer("it does not answer") from None
            except OSError as error:
                raise NotThere(str(error)) from None
            if not chunk or len(self._received) > MOST_REPLY_BYTES:
                raise NotThere("the connection ended")
            self._received += chunk
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        try:
            reply = json.loads(line)
        except ValueError:
            raise NotThere("what answers is not QEMU") from None
        return reply if isinstance(reply, dict) else {}


def _connect(path: Path, timeout_s: float) -> socket.socket:
    """Long paths are taken through a descriptor of their folder, where the system allows it."""
    if sys.platform == "win32":
        raise NotThere("QEMU on Windows is not supported")
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout_s)
    try:
        with contextlib.ExitStack() as opened:
            address = str(path)
            if len(os.fsencode(address)) > MOST_PATH_BYTES:
                folder = os.open(path.parent, os.O_RDONLY)
                opened.callback(os.close, folder)
                address = f"/proc/self/fd/{folder}/{path.name}"
            connection.connect(address)
    except TimeoutError:
        connection.close()
        raise NoAnswer("it does not take the connection") from None
    except OSError as error:
        connection.close()
        # A full queue of waiting clients: it is there, but does not serve them.
        if isinstance(error, BlockingIOError):
            raise NoAnswer("it does not take the connection") from None
        raise NotThere(str(error)) from None
    return connection
