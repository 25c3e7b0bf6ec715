"""The agent's local door: a unix socket, or on Windows a named pipe; and how to knock on it.

A service manager says where (systemd's RuntimeDirectory, in RUNTIME_DIRECTORY); otherwise the
socket lies in the agent's own folder. Who knocks tries OFFICEGRID_AGENT_SOCKET, then the agent of
their own home, then the one of the system.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Protocol

from officegrid.agent.channel.hub import Hub
from officegrid.core.errors import OfficeGridError

SOCKET_VARIABLE = "OFFICEGRID_AGENT_SOCKET"


class Closable(Protocol):
    def close(self) -> None: ...


def open_door(hub: Hub, folder: Path) -> Closable:
    """Let local programs in. Raises OfficeGridError."""
    if sys.platform == "win32":
        from officegrid.agent.channel import pipe

        return pipe.serve(hub, os.environ.get(SOCKET_VARIABLE, pipe.PIPE_NAME))
    from officegrid.agent.channel import unix

    return unix.serve(hub, served_path(folder))


def ask(folder: Path, message: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """One request to the agent. A refusal is raised as the error it carries; without an agent
    raises UnavailableError."""
    answer = _request(folder, message, timeout_s)
    if answer.get("ok") is True:
        return answer
    told = answer.get("error")
    error = told if isinstance(told, dict) else {}
    raise OfficeGridError(
        str(error.get("what", "The agent refused.")),
        str(error.get("why", "")),
        str(error.get("fix", "")),
    )


def served_path(folder: Path) -> Path:
    """Where the agent listens. Unix only."""
    from officegrid.agent.channel.unix import SOCKET_NAME, socket_path

    if chosen := os.environ.get(SOCKET_VARIABLE):
        return Path(chosen)
    if runtime := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(runtime.partition(":")[0]) / SOCKET_NAME
    return socket_path(folder)


def _request(folder: Path, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    if sys.platform == "win32":
        from officegrid.agent.channel import pipe

        name = os.environ.get(SOCKET_VARIABLE, pipe.PIPE_NAME)
        return pipe.request(message, timeout_s, name=name)
    from officegrid.agent.channel import unix, unix_client

    path = served_path(folder)
    if SOCKET_VARIABLE not in os.environ and not _is_there(path):
        path = unix.SERVICE_SOCKET if _is_there(unix.SERVICE_SOCKET) else path
    return unix_client.request(path, message, timeout_s)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False
