"""The agent's home on Windows: made closed in one call, and taken for ours only if it is.

A folder that is made first and closed afterwards is open for a moment, and whoever had it open
in that moment keeps the rights of then.
Source: Microsoft's pages on CreateDirectoryW, GetNamedSecurityInfoW and "Security Descriptor
String Format" (O: owner, D:P a list that inherits nothing; SY the system, BA administrators).
"""

from __future__ import annotations

import ctypes
import os
import stat
from ctypes import wintypes
from pathlib import Path

from officegrid.agent.windows import accounts, api
from officegrid.agent.windows.accounts import SecurityAttributes
from officegrid.agent.windows.api import BOOL, DWORD, Function
from officegrid.core.errors import ConflictError

CLOSED = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
OWNERS = frozenset({accounts.LOCAL_SYSTEM_SID, accounts.ADMINISTRATORS_SID})

_ALREADY_EXISTS = 183
_FILE_OBJECT, _OWNER = 1, 1
_PVOID = ctypes.c_void_p

_create = Function(
    "kernel32", "CreateDirectoryW", BOOL, wintypes.LPCWSTR, ctypes.POINTER(SecurityAttributes)
)
_security_info = Function(
    "advapi32", "GetNamedSecurityInfoW", DWORD, wintypes.LPCWSTR, ctypes.c_int, DWORD,
    ctypes.POINTER(_PVOID), _PVOID, _PVOID, _PVOID, ctypes.POINTER(_PVOID),
)  # fmt: skip


def make(path: Path) -> None:
    """Only the system and administrators may enter. Raises ConflictError when there is one of
    that name, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with accounts.security_attributes(CLOSED) as attributes:
        if _create(str(path), ctypes.byref(attributes)):
            return
        code = api.last_error()
    if code == _ALREADY_EXISTS:
        raise _foreign(path, "It was made just now, by somebody else.")
    raise api.failure("CreateDirectoryW", code)


def refuse_foreign(path: Path, *, ours: bool) -> None:
    """Nothing when there is none. `ours`: an installation says that it made this folder.

    Raises ConflictError, OSError.
    """
    try:
        about = os.lstat(path)
    except FileNotFoundError:
        return
    attributes = getattr(about, "st_file_attributes", 0)
    if attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT:
        raise _foreign(path, "It is a link to another place.")
    if not ours:
        raise _foreign(path, "No installation has made it; everybody may make folders there.")
    if (owner := owner_sid(path)) not in OWNERS | {accounts.own_sid()}:
        raise _foreign(path, f"It belongs to {owner}, not to the administrators.")


def owner_sid(path: Path) -> str:
    """The owner of a file or folder. Raises OSError."""
    owner, descriptor = _PVOID(), _PVOID()
    code = _security_info(
        str(path), _FILE_OBJECT, _OWNER, ctypes.byref(owner), None, None, None,
        ctypes.byref(descriptor),
    )  # fmt: skip
    if code:
        raise api.failure("GetNamedSecurityInfoW", code)
    try:
        return accounts.sid_text(owner.value)
    finally:
        api.local_free(descriptor)


def _foreign(path: Path, why: str) -> ConflictError:
    return ConflictError(
        f"{path} is there already, and the agent may not trust it.",
        f"{why} What lies in it could tell the service, which has all rights, what to do.",
        "Look what it is, delete it or move it away, then run this again.",
    )
