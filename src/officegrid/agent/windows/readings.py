"""What Windows says about sessions and power, asked now. Calls only; `translate` explains them.

The input tick belongs to the session of the calling process: a service, in session 0, never sees
it move. So the helper in each session reads its own, and the service only lists the sessions.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import wintypes
from dataclasses import dataclass

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.windows import translate
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Function
from officegrid.core.desk import Session

SM_REMOTESESSION = 0x1000
CURRENT_SESSION = 0xFFFFFFFF
NO_SESSION = 0xFFFFFFFF
WTS_USER_NAME = 5
WTS_SESSION_INFO_EX = 25


class _LastInput(ctypes.Structure):
    """LASTINPUTINFO."""

    _fields_ = (("size", wintypes.UINT), ("tick", DWORD))


class _Power(ctypes.Structure):
    """SYSTEM_POWER_STATUS."""

    _fields_ = (
        ("ac_line", ctypes.c_ubyte), ("battery", ctypes.c_ubyte), ("percent", ctypes.c_ubyte),
        ("flags", ctypes.c_ubyte), ("left_s", DWORD), ("full_s", DWORD),
    )  # fmt: skip


class _SessionEntry(ctypes.Structure):
    """WTS_SESSION_INFOW."""

    _fields_ = (("session", DWORD), ("station", wintypes.LPWSTR), ("state", ctypes.c_int))


_POINTER = ctypes.POINTER
_last_input = Function("user32", "GetLastInputInfo", BOOL, _POINTER(_LastInput))
_tick_now = Function("kernel32", "GetTickCount", DWORD)
_metric = Function("user32", "GetSystemMetrics", ctypes.c_int, ctypes.c_int)
_power = Function("kernel32", "GetSystemPowerStatus", BOOL, _POINTER(_Power))
_notification_state = Function(
    "shell32", "SHQueryUserNotificationState", ctypes.c_long, _POINTER(ctypes.c_int)
)
_process_session = Function("kernel32", "ProcessIdToSessionId", BOOL, DWORD, _POINTER(DWORD))
_process_id = Function("kernel32", "GetCurrentProcessId", DWORD)
_query = Function(
    "wtsapi32", "WTSQuerySessionInformationW", BOOL,
    HANDLE, DWORD, ctypes.c_int, _POINTER(ctypes.c_void_p), _POINTER(DWORD),
)  # fmt: skip
_free = Function("wtsapi32", "WTSFreeMemory", None, ctypes.c_void_p)
_enumerate = Function(
    "wtsapi32", "WTSEnumerateSessionsW", BOOL,
    HANDLE, DWORD, DWORD, _POINTER(_POINTER(_SessionEntry)), _POINTER(DWORD),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session as the system lists it."""

    session: int
    state: int
    """A `translate.SessionState`."""
    user: str


@functools.cache
def windows_version() -> tuple[int, int]:
    """(6, 1) is Windows 7 and Server 2008 R2; (10, 0) is Windows 10, 11 and their servers."""
    if sys.platform != "win32":
        return (0, 0)
    version = sys.getwindowsversion()
    return (version.major, version.minor)


def idle_s() -> float:
    """Since the last input in this process's session. Raises OSError."""
    info = _LastInput(size=ctypes.sizeof(_LastInput))
    _last_input.check(ctypes.byref(info))
    return translate.idle_s(info.tick, _tick_now())


def is_remote() -> bool:
    """Is this process's session shown on another computer (Remote Desktop)?"""
    return bool(_metric(SM_REMOTESESSION))


def is_presenting() -> bool | None:
    state = ctypes.c_int(0)
    if _notification_state(ctypes.byref(state)) != 0:  # an HRESULT: 0 is good
        return None
    return translate.presenting(state.value)


def is_locked(session: int = CURRENT_SESSION) -> bool | None:
    """None where the system does not tell (Wine; Windows sometimes just after logon)."""
    raw = _session_fact(session, WTS_SESSION_INFO_EX)
    info = translate.session_info(raw, windows_version()) if raw else None
    return info.locked if info else None


def is_on_battery() -> bool | None:
    power = _Power()
    return translate.on_battery(power.ac_line) if _power(ctypes.byref(power)) else None


def own_session_id() -> int:
    session = DWORD(0)
    _process_session.check(_process_id(), ctypes.byref(session))
    return int(session.value)


def read_own_session() -> Session:
    """Everything about the session of this process. Raises SensorError when it has no input."""
    try:
        idle = idle_s()
        return Session(
            id=str(own_session_id()), age_s=0.0, idle_s=idle, locked=is_locked(),
            remote=is_remote(), presenting=is_presenting(),
        )  # fmt: skip
    except OSError as error:
        raise SensorError(f"Windows does not tell when the last input was: {error}") from None


def list_sessions() -> list[ListedSession]:
    """All sessions of this computer but session 0, where the services live.

    Raises SensorError when the system does not list them; a list without even session 0 is such
    an answer (Wine gives it), not an empty computer.
    """
    entries = _POINTER(_SessionEntry)()
    count = DWORD(0)
    try:
        _enumerate.check(None, 0, 1, ctypes.byref(entries), ctypes.byref(count))
    except OSError as error:
        raise SensorError(f"Windows does not list its sessions: {error}") from None
    if not entries or count.value == 0:
        raise SensorError("Windows does not list its sessions: the list is empty")
    try:
        found = [(entries[i].session, entries[i].state) for i in range(count.value)]
    finally:
        _free(entries)
    return [
        ListedSession(session=session, state=state, user=_user(session))
        for session, state in found if session != 0
    ]  # fmt: skip


def _user(session: int) -> str:
    raw = _session_fact(session, WTS_USER_NAME) or b""
    return raw.decode("utf-16-le", errors="replace").partition("\0")[0]


def _session_fact(session: int, kind: int) -> bytes | None:
    """One WTS_INFO_CLASS value as bytes; None when the system has none."""
    buffer, size = ctypes.c_void_p(), DWORD(0)
    try:
        if not _query(None, session, kind, ctypes.byref(buffer), ctypes.byref(size)):
            return None
    except OSError:
        return None
    if not buffer.value:
        return None
    try:
        return ctypes.string_at(buffer.value, size.value)
    finally:
        _free(buffer)
