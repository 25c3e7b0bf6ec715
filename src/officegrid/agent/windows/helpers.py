"""Session helpers started by the service itself, for a service that runs as LocalSystem.

Only LocalSystem may take the token of the person logged on (WTSQueryUserToken) and start a
program in their session. Under any other account the first try says so, and the registry's Run
key (`runkey`), which the installation writes, has to start the helpers.
Source: Microsoft's pages on WTSQueryUserToken, CreateEnvironmentBlock and CreateProcessAsUserW.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Sequence
from ctypes import wintypes

from officegrid.agent.log import get_logger
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.windows import api, readings
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Function, Handle
from officegrid.agent.windows.readings import ListedSession
from officegrid.agent.windows.service_plan import command_line
from officegrid.agent.windows.translate import SessionState

ATTEND_EVERY_S = 30.0
SOMEBODY_IS_LOGGED_ON = frozenset({SessionState.ACTIVE, SessionState.DISCONNECTED})

_NO_WINDOW, _UNICODE_ENVIRONMENT = 0x0800_0000, 0x400
_WAIT_TIMEOUT = 0x102
_PVOID = ctypes.c_void_p

log = get_logger("helpers")


class _Startup(ctypes.Structure):
    """STARTUPINFOW."""

    _fields_ = (
        ("size", DWORD), ("reserved", wintypes.LPWSTR), ("desktop", wintypes.LPWSTR),
        ("title", wintypes.LPWSTR), ("numbers", DWORD * 8), ("show", wintypes.WORD),
        ("reserved_bytes", wintypes.WORD), ("reserved2", _PVOID), ("streams", HANDLE * 3),
    )  # fmt: skip


class _Started(ctypes.Structure):
    """PROCESS_INFORMATION."""

    _fields_ = (("process", HANDLE), ("thread", HANDLE), ("pid", DWORD), ("thread_id", DWORD))


_user_token = Function("wtsapi32", "WTSQueryUserToken", BOOL, DWORD, ctypes.POINTER(HANDLE))
_environment = Function(
    "userenv", "CreateEnvironmentBlock", BOOL, ctypes.POINTER(_PVOID), HANDLE, BOOL
)
_drop_environment = Function("userenv", "DestroyEnvironmentBlock", BOOL, _PVOID)
_start = Function(
    "advapi32", "CreateProcessAsUserW", BOOL, HANDLE, wintypes.LPCWSTR, wintypes.LPWSTR, _PVOID,
    _PVOID, BOOL, DWORD, _PVOID, wintypes.LPCWSTR, ctypes.POINTER(_Startup),
    ctypes.POINTER(_Started),
)  # fmt: skip
_wait = Function("kernel32", "WaitForSingleObject", DWORD, HANDLE, DWORD)


class SessionHelpers:
    """Keeps one helper alive in each session; call `attend` now and then, from one thread."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._running: dict[int, Handle] = {}
        self.possible = True
        """False: this account may not; the Run key must do it."""

    def attend(self, sessions: Iterable[int]) -> None:
        """Start what is missing in these sessions (those with a person logged on)."""
        wanted = set(sessions)
        for session, process in list(self._running.items()):
            if session not in wanted or not is_running(process):
                process.close()
                del self._running[session]
        for session in sorted(wanted - set(self._running)):
            if not self.possible:
                return
            try:
                self._running[session] = start_in_session(session, self._command)
            except OSError as error:
                self._failed(session, error)

    def close(self) -> None:
        """Let go of them: they live on, and find the next agent."""
        for process in self._running.values():
            process.close()
        self._running.clear()

    def _failed(self, session: int, error: OSError) -> None:
        code = api.error_code(error)
        if code == api.ERROR_PRIVILEGE_NOT_HELD:
            self.possible = False
            log.info("left_to_run_key", why="only LocalSystem may start programs for others")
        elif code != api.ERROR_NO_TOKEN:  # nobody is logged on there (any more)
            log.warning("not_started", session=session, why=str(error))


class HelperKeeper:
    """Attends all sessions of this PC on a thread of its own, until `close()`.

    Hand `listen` to `service.host`: a logon gets its helper at once, and a helper that ended gets
    a successor within half a minute.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        listed: Callable[[], list[ListedSession]] = readings.list_sessions,
    ) -> None:
        self._helpers, self._listed = SessionHelpers(command), listed
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="session-helpers", daemon=True)
        self._thread.start()

    def listen(self, _event: object) -> None:
        """Something happened to a session: look at once."""
        self._wake.set()

    def close(self) -> None:
        """The helpers live on."""
        self._end.set()
        self._wake.set()
        self._thread.join(timeout=5)

    def _keep(self) -> None:
        while not self._end.is_set() and self._helpers.possible:
            self._wake.clear()
            try:
                self._helpers.attend(
                    entry.session for entry in self._listed()
                    if entry.user and entry.state in SOMEBODY_IS_LOGGED_ON
                )  # fmt: skip
            except SensorError as error:
                log.info("no_session_list", why=str(error))
            self._wake.wait(ATTEND_EVERY_S)
        self._helpers.close()


def start_in_session(session: int, command: Sequence[str]) -> Handle:
    """Start a program on the desktop of a session, as the person logged on there.

    Returns the process. Raises OSError: api.ERROR_PRIVILEGE_NOT_HELD (we are not LocalSystem),
    api.ERROR_NO_TOKEN (nobody is logged on).
    """
    token, environment, started = HANDLE(), _PVOID(), _Started()
    _user_token.check(session, ctypes.byref(token))
    with Handle(token.value or 0) as held:
        _environment.check(ctypes.byref(environment), held.value, False)
        try:
            startup = _Startup(size=ctypes.sizeof(_Startup), desktop="winsta0\\default")
            line = ctypes.create_unicode_buffer(command_line(command))  # Windows writes into it
            _start.check(
                held.value, command[0], line, None, None, False,
                _NO_WINDOW | _UNICODE_ENVIRONMENT, environment, None, ctypes.byref(startup),
                ctypes.byref(started),
            )  # fmt: skip
        finally:
            _drop_environment(environment)
    api.close_handle(started.thread)
    return Handle(started.process)


def is_running(process: Handle) -> bool:
    return bool(_wait(process.value, 0) == _WAIT_TIMEOUT)
