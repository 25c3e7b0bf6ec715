"""Who is at the other end of a local socket, as the kernel says: user, process, logon session.

A session id names a row in the hub, so a user must not be able to choose it. It is taken from
places that only root can write: the control group of the process (systemd puts each logon into
`/user.slice/user-UID.slice/session-ID.scope`) or its audit session (`/proc/PID/sessionid`, which
logind uses as session id), and only where they belong to the caller's own user id. A process
outside of every session scope, such as what systemd's user manager starts for a desktop, has no
session of its own: its id is "", and the hub files it under its user.

Sources of foreign formats: proc(5), cgroups(7), sd-login(3), unix(7) for SO_PEERCRED, and xucred
in the macOS header sys/ucred.h.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
from pathlib import Path

from officegrid.agent.channel.hub import Peer

_NO_AUDIT_SESSION = 0xFFFFFFFF
_SCOPE = re.compile(r"/user-(\d+)\.slice/session-([A-Za-z0-9]+)\.scope(?:/|$)")
_MAC_LEVEL, _MAC_PEERCRED, _MAC_PEERPID = 0, 0x001, 0x002


def unix_socket() -> socket.socket:
    """A new stream socket of the local kind. Raises OSError where there are none."""
    if sys.platform == "win32":
        raise OSError("Windows has named pipes instead of unix sockets")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def credentials(connection: socket.socket) -> tuple[int, int]:
    """(user id, process id) of the process that connected; process 0: not known.
    Raises OSError when the system cannot tell."""
    if sys.platform == "darwin":
        xucred = connection.getsockopt(_MAC_LEVEL, _MAC_PEERCRED, 76)
        uid = int(struct.unpack_from("=II", xucred)[1])
        pid = int(struct.unpack("=i", connection.getsockopt(_MAC_LEVEL, _MAC_PEERPID, 4))[0])
        return uid, pid
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("=iII", raw)
        return int(uid), int(pid)
    raise OSError("this system does not say who is at the other end of a socket")


def peer_of(connection: socket.socket) -> Peer:
    """The caller. Raises OSError when the system cannot tell."""
    uid, pid = credentials(connection)
    admin = sys.platform != "win32" and uid in (0, os.geteuid())
    return Peer(user=str(uid), session=logon_session(pid, uid), admin=admin, pid=pid)


def logon_session(
    pid: int,
    uid: int,
    *,
    proc: Path = Path("/proc"),
    sessions: Path = Path("/run/systemd/sessions"),
) -> str:
    """Logind's session id of a process of user `uid`, "" where it has none of its own."""
    if pid <= 0:
        return ""
    folder = proc / str(pid)
    return _scope_session(_text(folder / "cgroup"), uid) or _audit_session(folder, uid, sessions)


def _scope_session(cgroups: str, uid: int) -> str:
    for line in cgroups.splitlines():
        found = _SCOPE.search(line)
        # `su` keeps the session of who called it: that one is not this user's to speak for.
        if found and int(found[1]) == uid:
            return found[2]
    return ""


def _audit_session(folder: Path, uid: int, sessions: Path) -> str:
    number, login = _text(folder / "sessionid").strip(), _text(folder / "loginuid").strip()
    if not number.isdecimal() or int(number) == _NO_AUDIT_SESSION or login != str(uid):
        return ""
    kept = dict(
        line.partition("=")[::2] for line in _text(sessions / number).splitlines() if "=" in line
    )
    # The user manager has an audit session too; only logons at which a person sits count.
    person = kept.get("CLASS", "").startswith("user")
    return number if kept.get("UID") == str(uid) and person else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
