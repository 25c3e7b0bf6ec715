"""The agent's local door on Linux and macOS: a unix socket, one JSON object per line.

The kernel says who calls (see `peer`); the hub decides what they may. One thread serves all
callers and never blocks on one of them: a caller that sends half a request, reads no answer or
opens too many connections loses its connection, nobody else's. A connection may carry many
requests, one after the other, so that a session helper need not connect every second.

The folder of the socket must be writable by the agent's account alone: who can write there can
put a socket of their own in its place.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import stat
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from officegrid.agent.channel.hub import MOST_REQUEST_BYTES, Hub, Peer
from officegrid.agent.channel.lines import answer_line
from officegrid.agent.channel.peer import peer_of, unix_socket
from officegrid.agent.channel.unix_client import request
from officegrid.core.errors import ConflictError, ForbiddenError, UsageError

__all__ = ["SERVICE_SOCKET", "Server", "request", "serve", "socket_path"]

SOCKET_NAME = "agent.sock"
SERVICE_SOCKET = (
    Path("/var/run/officegrid" if sys.platform == "darwin" else "/run/officegrid") / SOCKET_NAME
)
"""Where the agent listens when it runs as a system service."""

REQUEST_TIMEOUT_S = 5.0
"""From the first byte of a request to its last, and for taking the answer."""
QUIET_TIMEOUT_S = 60.0
"""A connection without any request for this long is closed; helpers connect again."""
MOST_CONNECTIONS = 128
MOST_CONNECTIONS_PER_USER = 16
MOST_PATH_BYTES = 103  # macOS; Linux takes 107


def socket_path(folder: Path) -> Path:
    """The agent's socket in its own folder."""
    return folder / SOCKET_NAME


@dataclass(slots=True)
class _Caller:
    connection: socket.socket
    peer: Peer
    deadline_s: float
    received: bytearray = field(default_factory=bytearray)
    unsent: bytearray = field(default_factory=bytearray)


class Server:
    """A listening door; `close()` ends its thread and takes the socket away."""

    def __init__(self, hub: Hub, path: Path, listener: socket.socket, request_s: float) -> None:
        self._hub, self._path, self._listener = hub, path, listener
        self._request_s = request_s
        self._inode = path.lstat().st_ino
        self._callers: dict[int, _Caller] = {}
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="agent-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody; safe to call twice."""
        if self._stop:
            return
        self._stop = True
        with contextlib.suppress(OSError):  # the thread may have noticed already, and closed it
            self._wake.send(b"x")
        self._thread.join(timeout=10)
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:  # else another agent's by now
                self._path.unlink()

    def _run(self) -> None:
        try:
            while not self._stop:
                for key, events in self._selector.select(self._wait_s()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fd in self._callers:
                        self._serve(self._callers[key.fd], events)
                now = time.monotonic()
                for caller in [c for c in self._callers.values() if c.deadline_s <= now]:
                    self._drop(caller)
        finally:
            for caller in list(self._callers.values()):
                self._drop(caller)
            self._selector.close()
            for own in (self._listener, self._wake, self._woken):
                own.close()

    def _wait_s(self) -> float | None:
        if not self._callers:
            return None
        nearest = min(caller.deadline_s for caller in self._callers.values())
        return max(0.0, nearest - time.monotonic())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            # Out of descriptors, or the caller is gone. The listener stays readable in the first
            # case: give others a moment to close theirs instead of spinning.
            time.sleep(0.05)
            return
        try:
            peer = peer_of(connection)
        except OSError:
            connection.close()
            return
        own = sum(1 for caller in self._callers.values() if caller.peer.user == peer.user)
        full = len(self._callers) >= MOST_CONNECTIONS and not peer.admin
        if own >= MOST_CONNECTIONS_PER_USER or full:
            connection.close()
            return
        connection.setblocking(False)
        caller = _Caller(connection, peer, time.monotonic() + self._request_s)
        self._callers[connection.fileno()] = caller
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, caller: _Caller, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(caller)
            if events & selectors.EVENT_READ:
                self._receive(caller)
        except BlockingIOError:
            return
        except OSError:
            self._drop(caller)

    def _receive(self, caller: _Caller) -> None:
        data = caller.connection.recv(MOST_REQUEST_BYTES)
        if not data:
            self._drop(caller)
            return
        if not caller.received:
            caller.deadline_s = time.monotonic() + self._request_s
        caller.received += data
        while not caller.unsent and b"\n" in caller.received:
            line, _, rest = bytes(caller.received).partition(b"\n")
            caller.received = bytearray(rest)
            self._answer(caller, line)
        if len(caller.received) > MOST_REQUEST_BYTES:
            self._answer(caller, bytes(caller.received))
            self._drop(caller)

    def _answer(self, caller: _Caller, line: bytes) -> None:
        caller.unsent += answer_line(self._hub, caller.peer, line)
        caller.deadline_s = time.monotonic() + self._request_s
        with contextlib.suppress(BlockingIOError):
            self._send(caller)

    def _send(self, caller: _Caller) -> None:
        try:
            while caller.unsent:
                del caller.unsent[: caller.connection.send(caller.unsent)]
        except BlockingIOError:
            # Reads nothing more from a caller that does not take its answers.
            self._selector.modify(caller.connection, selectors.EVENT_WRITE)
            return
        self._selector.modify(caller.connection, selectors.EVENT_READ)
        if not caller.received:
            caller.deadline_s = time.monotonic() + QUIET_TIMEOUT_S

    def _drop(self, caller: _Caller) -> None:
        if self._callers.pop(caller.connection.fileno(), None) is not None:
            self._selector.unregister(caller.connection)
            caller.connection.close()


def serve(
    hub: Hub,
    path: Path,
    *,
    group: int | None = None,
    mode: int = 0o666,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> Server:
    """Listen on `path` until the returned server is closed.

    `mode` 0o666 lets every local user in: each may report their own session, look, and ask for a
    pause; the hub judges by who they are. `group` (a group id) with mode 0o660 narrows that.

    Raises UsageError (path too long), ForbiddenError (others can write to the folder),
    ConflictError (another agent answers there).
    """
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise UsageError(
            f"The agent cannot listen on {path}.",
            f"A socket's path has at most {MOST_PATH_BYTES} bytes.",
            "Choose a folder with a shorter path.",
        )
    _own_folder(path.parent)
    if _somebody_answers(path):
        raise ConflictError(
            f"Another agent listens on {path}.",
            "Only one agent may run on a PC.",
            "Stop the other one, or look at it: officegrid agent status.",
        )
    listener = unix_socket()
    # Bound under a name of our own, then moved over what a killed agent left: at no moment is
    # there a socket with the wrong rights, and no time at which the path leads nowhere.
    fresh = path.with_name(f".{os.getpid() % 100_000}")
    try:
        fresh.unlink(missing_ok=True)
        listener.bind(str(fresh))
        if group is not None and sys.platform != "win32":
            os.chown(fresh, -1, group)
        fresh.chmod(mode)
        listener.listen(64)
        listener.setblocking(False)
        fresh.replace(path)
        return Server(hub, path, listener, request_timeout_s)
    except OSError as error:
        listener.close()
        fresh.unlink(missing_ok=True)
        raise ForbiddenError(
            f"The agent cannot listen on {path}.", str(error), "Check the rights of the folder."
        ) from None


def _own_folder(folder: Path) -> None:
    if sys.platform == "win32":
        raise UsageError("The agent uses a named pipe on Windows, not a socket.")
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError as error:
        raise ForbiddenError(
            f"The agent cannot use the folder {folder}.", str(error), "Check its rights."
        ) from None
    strangers = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if strangers or about.st_uid not in (0, os.geteuid()):
        raise ForbiddenError(
            f"The agent will not listen in {folder}.",
            "Others can write to this folder, so they could put their own socket there.",
            f"chown it to the agent's account, and: chmod go-w {folder}",
        )


def _somebody_answers(path: Path) -> bool:
    with unix_socket() as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True
        except OSError:
            return False
    return True
