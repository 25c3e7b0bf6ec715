"""Talking to the agent through its unix socket: one request, or a connection kept for many.

The client makes sure that it talks to an agent and not to somebody who got hold of the path: the
process at the other end must run as root, as the caller, or as the owner of the socket's folder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from officegrid.agent.channel.peer import credentials, unix_socket
from officegrid.core.errors import ForbiddenError, OfficeGridError, UnavailableError

MOST_ANSWER_BYTES = 1_000_000


class Connection:
    """A kept connection; connects when needed, and anew after a failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._left = b""

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The agent's answer, refusals included ({"ok": false, ...}).

        Raises UnavailableError (no agent, or it does not answer in time) and ForbiddenError.
        """
        deadline_s = time.monotonic() + timeout_s
        # A kept connection may be to an agent that was restarted since: then once more.
        for _ in range(2 if self._socket is not None else 1):
            try:
                return self._exchange(message, deadline_s)
            except _HungUpError:
                continue
            except OSError as error:
                self.close()
                raise _explained(self._path, error) from None
        raise _no_agent(self._path, "It hung up.")

    def close(self) -> None:
        """Hang up; the next request connects again."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._left = None, b""

    def _exchange(self, message: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        try:
            line = self._line(json.dumps(message).encode() + b"\n", deadline_s)
            answer = json.loads(line)
        except (ConnectionError, EOFError):
            fresh = self._socket is None
            self.close()
            if fresh:  # not even connected
                raise
            raise _HungUpError from None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.close()
            raise UnavailableError(
                f"What listens on {self._path} is no agent.", "Its answer makes no sense."
            )
        return answer

    def _line(self, request: bytes, deadline_s: float) -> bytes:
        if self._socket is None:
            self._socket = self._connected(deadline_s)
        self._socket.settimeout(_left_s(deadline_s))
        self._socket.sendall(request)
        received = bytearray(self._left)
        while b"\n" not in received:
            self._socket.settimeout(_left_s(deadline_s))
            data = self._socket.recv(65536)
            if not data or len(received) > MOST_ANSWER_BYTES:
                raise EOFError
            received += data
        line, _, self._left = bytes(received).partition(b"\n")
        return line

    def _connected(self, deadline_s: float) -> socket.socket:
        fresh = unix_socket()
        try:
            fresh.settimeout(_left_s(deadline_s))
            fresh.connect(str(self._path))
            self._trusted(fresh)
        except BaseException:
            fresh.close()
            raise
        return fresh

    def _trusted(self, fresh: socket.socket) -> None:
        if sys.platform == "win32":
            return
        uid, _ = credentials(fresh)
        if uid not in (0, os.geteuid(), self._path.parent.stat().st_uid):
            raise ForbiddenError(
                f"The program that listens on {self._path} is not the agent.",
                f"It runs as user {uid}, who does not own the folder.",
                "Tell your administrator.",
            )


class _HungUpError(Exception):
    """The connection broke before an answer came."""


def request(path: Path, message: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """Ask the agent that listens on `path` one thing; see `Connection.request`."""
    connection = Connection(path)
    try:
        return connection.request(message, timeout_s)
    finally:
        connection.close()


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no answer in time")
    return left_s


def _explained(path: Path, error: OSError) -> OfficeGridError:
    if isinstance(error, PermissionError):
        return ForbiddenError(
            f"You may not talk to the agent on {path}.",
            str(error),
            "Ask your administrator, or use the account that the agent runs as.",
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return _no_agent(path, "Nobody listens there.")
    if isinstance(error, TimeoutError):
        return UnavailableError(
            "The agent does not answer.", f"It listens on {path}, but is stuck.", "Restart it."
        )
    return _no_agent(path, str(error))


def _no_agent(path: Path, why: str) -> UnavailableError:
    return UnavailableError(
        "No agent answers on this PC.",
        f"{why} It would be on {path}.",
        "Start it: officegrid agent run; or look whether its service runs.",
    )
