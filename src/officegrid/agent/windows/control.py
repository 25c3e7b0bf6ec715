"""The service manager: register, change, start, stop, look at and remove the agent's service.

Source: Microsoft's pages on CreateServiceW, ChangeServiceConfig2W and QueryServiceStatusEx.
Every function raises OfficeGridError: ForbiddenError (needs an administrator), NotFoundError (no
such service), ConflictError, UnavailableError.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from ctypes import wintypes
from dataclasses import dataclass

from officegrid.agent.windows import api
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Function
from officegrid.agent.windows.service_plan import ServicePlan
from officegrid.core.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    OfficeGridError,
    UnavailableError,
)

_CONNECT, _CREATE = 0x1, 0x2
_QUERY_CONFIG, _QUERY_STATUS, _START, _STOP, _DELETE = 0x1, 0x4, 0x10, 0x20, 0x10000
_ALL = 0xF01FF
_OWN_PROCESS, _AUTO_START, _ERROR_NORMAL, _NO_CHANGE = 0x10, 2, 1, 0xFFFF_FFFF
_DESCRIPTION, _FAILURE_ACTIONS, _DELAYED, _FAILURE_FLAG, _PRESHUTDOWN = 1, 2, 3, 4, 7
_RESTART = 1
_STOP_CONTROL = 1

NO_SUCH_SERVICE, EXISTS, MARKED_FOR_DELETE, SAME_DISPLAY_NAME = 1060, 1073, 1072, 1078
_ALREADY_RUNNING, _NOT_ACTIVE, _LOGON_FAILED, _NO_ANSWER = 1056, 1062, 1069, 1053
_CALL_NOT_IMPLEMENTED, _INVALID_LEVEL = 120, 124

STOPPED, START_PENDING, STOP_PENDING, RUNNING = 1, 2, 3, 4
STATES = {
    1: "stopped", 2: "starting", 3: "stopping", 4: "running", 5: "continuing", 6: "pausing",
    7: "paused",
}  # fmt: skip

_POINTER = ctypes.POINTER
_PVOID = ctypes.c_void_p
_TEXT = wintypes.LPCWSTR


class _Status(ctypes.Structure):
    """SERVICE_STATUS_PROCESS."""

    _fields_ = (
        ("kind", DWORD), ("state", DWORD), ("accepted", DWORD), ("exit_code", DWORD),
        ("own_exit_code", DWORD), ("checkpoint", DWORD), ("wait_hint_ms", DWORD),
        ("pid", DWORD), ("flags", DWORD),
    )  # fmt: skip


class _Config(ctypes.Structure):
    """QUERY_SERVICE_CONFIGW."""

    _fields_ = (
        ("kind", DWORD), ("start", DWORD), ("error", DWORD), ("path", wintypes.LPWSTR),
        ("group", wintypes.LPWSTR), ("tag", DWORD), ("needs", wintypes.LPWSTR),
        ("account", wintypes.LPWSTR), ("display_name", wintypes.LPWSTR),
    )  # fmt: skip


class _Action(ctypes.Structure):
    """SC_ACTION."""

    _fields_ = (("kind", ctypes.c_int), ("delay_ms", DWORD))


class _FailureActions(ctypes.Structure):
    """SERVICE_FAILURE_ACTIONSW."""

    _fields_ = (
        ("reset_s", DWORD), ("reboot_text", wintypes.LPWSTR), ("command", wintypes.LPWSTR),
        ("count", DWORD), ("actions", _POINTER(_Action)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """A registered service."""

    state: str
    """One of STATES' words, or "state N"."""
    pid: int
    exit_code: int
    image_path: str
    account: str
    automatic: bool


_manager = Function("advapi32", "OpenSCManagerW", HANDLE, _TEXT, _TEXT, DWORD)
_open = Function("advapi32", "OpenServiceW", HANDLE, HANDLE, _TEXT, DWORD)
_close = Function("advapi32", "CloseServiceHandle", BOOL, HANDLE)
_create = Function(
    "advapi32", "CreateServiceW", HANDLE, HANDLE, _TEXT, _TEXT, DWORD, DWORD, DWORD, DWORD, _TEXT,
    _TEXT, _PVOID, _TEXT, _TEXT, _TEXT,
)  # fmt: skip
_change = Function(
    "advapi32", "ChangeServiceConfigW", BOOL, HANDLE, DWORD, DWORD, DWORD, _TEXT, _TEXT, _PVOID,
    _TEXT, _TEXT, _TEXT, _TEXT,
)  # fmt: skip
_change_more = Function("advapi32", "ChangeServiceConfig2W", BOOL, HANDLE, DWORD, _PVOID)
_delete = Function("advapi32", "DeleteService", BOOL, HANDLE)
_start = Function("advapi32", "StartServiceW", BOOL, HANDLE, DWORD, _PVOID)
_control = Function("advapi32", "ControlService", BOOL, HANDLE, DWORD, _PVOID)
_status = Function(
    "advapi32", "QueryServiceStatusEx", BOOL, HANDLE, ctypes.c_int, _PVOID, DWORD, _POINTER(DWORD)
)
_config = Function("advapi32", "QueryServiceConfigW", BOOL, HANDLE, _PVOID, DWORD, _POINTER(DWORD))


def install(plan: ServicePlan, password: str | None = None) -> list[str]:
    """Register the service, or bring a registered one in line with the plan.

    Returns what this Windows could not store, in words; all else is stored.
    """
    with _explained(plan.name), _opened_manager(_CONNECT | _CREATE) as manager:
        handle = _create(
            manager, plan.name, plan.display_name, _ALL, _OWN_PROCESS, _AUTO_START, _ERROR_NORMAL,
            plan.image_path, None, None, None, plan.account, password,
        )  # fmt: skip
        if not handle:
            if api.last_error() != EXISTS:
                raise api.failure("CreateServiceW")
            handle = _open.check(manager, plan.name, _ALL)
        try:
            _change.check(
                handle, _OWN_PROCESS, _AUTO_START, _ERROR_NORMAL, plan.image_path, None, None, None,
                plan.account, password, plan.display_name,
            )  # fmt: skip
            return _store_more(handle, plan)
        finally:
            _close(handle)


def _store_more(handle: int, plan: ServicePlan) -> list[str]:
    """What ChangeServiceConfig2 holds. The restarts and the delay are worth going on without."""
    actions = (_Action * len(plan.restart_delays_s))(
        *(_Action(_RESTART, delay_s * 1000) for delay_s in plan.restart_delays_s)
    )
    failures = _FailureActions(plan.failures_forgotten_s, None, None, len(actions), actions)
    facts: list[tuple[int, str, ctypes._Pointer[wintypes.LPWSTR] | ctypes.Structure | DWORD]] = [
        (_DESCRIPTION, "its description", ctypes.pointer(wintypes.LPWSTR(plan.description))),
        (_FAILURE_ACTIONS, "to restart it after a failure", failures),
        (_FAILURE_FLAG, "to count an exit with an error as a failure", DWORD(1)),
        (_DELAYED, "its delayed start", DWORD(1)),
        (_PRESHUTDOWN, "its time at shutdown", DWORD(plan.preshutdown_s * 1000)),
    ]
    missing = []
    for level, what, value in facts:
        held = value if isinstance(value, ctypes._Pointer) else ctypes.byref(value)
        if _change_more(handle, level, held):
            continue
        if api.last_error() not in (_CALL_NOT_IMPLEMENTED, _INVALID_LEVEL):
            raise api.failure("ChangeServiceConfig2W")
        missing.append(what)
    return missing


def uninstall(name: str) -> None:
    """Remove a stopped service."""
    with _opened(name, _DELETE) as handle:
        _delete.check(handle)


def look(name: str) -> ServiceFacts | None:
    """What the service manager knows about a service; None: not registered."""
    try:
        with _opened(name, _QUERY_CONFIG | _QUERY_STATUS) as handle:
            status, size = _read_status(handle), DWORD(0)
            _config(handle, None, 0, ctypes.byref(size))
            buffer = ctypes.create_string_buffer(max(size.value, ctypes.sizeof(_Config)))
            _config.check(handle, buffer, len(buffer), ctypes.byref(size))
            config = _Config.from_buffer(buffer)
            return ServiceFacts(
                state=STATES.get(status.state, f"state {status.state}"), pid=status.pid,
                exit_code=status.own_exit_code or status.exit_code, image_path=config.path or "",
                account=config.account or "", automatic=config.start == _AUTO_START,
            )  # fmt: skip
    except NotFoundError:
        return None


def service_account(name: str) -> str:
    """The account that a registered service runs as. Raises OSError when there is none."""
    try:
        facts = look(name)
    except OfficeGridError as error:
        raise OSError(str(error)) from None
    if facts is None:
        raise OSError(f"there is no service {name}")
    return facts.account


def start(name: str, timeout_s: float = 30.0) -> None:
    """Start it and wait until it runs. UnavailableError: it does not."""
    with _opened(name, _START | _QUERY_STATUS) as handle:
        if not _start(handle, 0, None) and api.last_error() != _ALREADY_RUNNING:
            raise api.failure("StartServiceW")
        _await(handle, name, RUNNING, timeout_s)


def stop(name: str, timeout_s: float = 60.0) -> None:
    """Ask it to stop and wait until it has. UnavailableError: it does not."""
    with _opened(name, _STOP | _QUERY_STATUS) as handle:
        status = _Status()  # larger than the SERVICE_STATUS that is written there
        if not _control(handle, _STOP_CONTROL, ctypes.byref(status)):
            if api.last_error() == _NOT_ACTIVE:
                return
            raise api.failure("ControlService")
        _await(handle, name, STOPPED, timeout_s)


def _await(handle: int, name: str, wanted: int, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while (status := _read_status(handle)).state != wanted:
        ended = status.state == STOPPED
        if ended or time.monotonic() > deadline_s:
            word = STATES.get(status.state, str(status.state))
            code = status.own_exit_code or status.exit_code
            raise UnavailableError(
                f"The service {name} is {word}, not {STATES[wanted]}.",
                f"Its exit code is {code}." if ended else f"{timeout_s:.0f} s have passed.",
                "Look into the agent's log and the Windows event log (System).",
            )
        time.sleep(0.05)


def _read_status(handle: int) -> _Status:
    status, size = _Status(), DWORD(0)
    _status.check(
        handle, 0, ctypes.byref(status), ctypes.sizeof(status), ctypes.byref(size)
    )  # fmt: skip
    return status


@contextlib.contextmanager
def _opened_manager(access: int) -> Iterator[int]:
    manager = _manager.check(None, None, access)
    try:
        yield manager
    finally:
        _close(manager)


@contextlib.contextmanager
def _opened(name: str, access: int) -> Iterator[int]:
    with _explained(name), _opened_manager(_CONNECT) as manager:
        handle = _open.check(manager, name, access)
        try:
            yield handle
        finally:
            _close(handle)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _sentence(name, error) from None


def _sentence(name: str, error: OSError) -> OfficeGridError:
    text = str(error)
    match api.error_code(error):
        case api.ERROR_ACCESS_DENIED:
            return ForbiddenError(
                f"Windows does not let you change the service {name}.", text,
                "Run this in a terminal that was opened with 'Run as administrator'.",
            )  # fmt: skip
        case code if code == NO_SUCH_SERVICE:
            return NotFoundError(
                f"There is no service {name} on this PC.", "", "officegrid agent install"
            )
        case code if code == MARKED_FOR_DELETE:
            return ConflictError(
                f"The service {name} is being removed.", text,
                "Close the Services console and Task Manager, which keep it, and try again.",
            )  # fmt: skip
        case code if code == SAME_DISPLAY_NAME:
            return ConflictError(
                f"The service {name} cannot be made: another one is shown by the same name.", text,
                "Look for it in the Services console; remove it if it is an old installation.",
            )  # fmt: skip
        case code if code == _LOGON_FAILED:
            return UnavailableError(
                f"Windows cannot log the account of the service {name} on.", text,
                "Check its password, and its right to log on as a service.",
            )  # fmt: skip
        case code if code == _NO_ANSWER:
            return UnavailableError(
                f"The service {name} was started, but did not say that it runs.", text,
                "Start its command in a terminal as its account, and see what it says.",
            )  # fmt: skip
    return UnavailableError(f"The service manager failed with the service {name}.", text)
