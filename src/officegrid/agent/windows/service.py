"""Being a Windows service: the handshake with the service manager around the agent's own run.

`host` is called by the process that the service manager started. It runs `run(stop,
shutting_down)` and translates what the manager says: STOP sets `stop`; PRESHUTDOWN sets both, so
that the agent does not write gigabytes to disk while Windows waits; session changes and sleep
reach `listen` on a thread of their own, as the manager wants its answer at once.

Source: Microsoft's pages on StartServiceCtrlDispatcherW, HandlerEx and SERVICE_STATUS.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable
from ctypes import wintypes
from dataclasses import dataclass
from typing import Any, Protocol

from officegrid.agent.windows import api
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Function
from officegrid.agent.windows.service_plan import SERVICE_NAME
from officegrid.agent.windows.translate import SessionChange
from officegrid.core.errors import UsageError

CONTROL_STOP, CONTROL_INTERROGATE, CONTROL_SHUTDOWN = 1, 4, 5
CONTROL_POWEREVENT, CONTROL_SESSIONCHANGE, CONTROL_PRESHUTDOWN = 13, 14, 15
ACCEPT_STOP, ACCEPT_POWEREVENT, ACCEPT_SESSIONCHANGE, ACCEPT_PRESHUTDOWN = 1, 0x40, 0x80, 0x100
ACCEPTED = ACCEPT_STOP | ACCEPT_POWEREVENT | ACCEPT_SESSIONCHANGE | ACCEPT_PRESHUTDOWN
STATE_STOPPED, STATE_START_PENDING, STATE_STOP_PENDING, STATE_RUNNING = 1, 2, 3, 4
POWER_SUSPEND, POWER_RESUME_AUTOMATIC = 4, 18

NO_ERROR, NOT_IMPLEMENTED = 0, 120
SERVICE_SPECIFIC_ERROR = 1066
NOT_STARTED_AS_SERVICE = 1063
WAIT_HINT_MS = 10_000
CHECKPOINT_EVERY_S = 2.0

_OWN_PROCESS = 0x10
_PVOID = ctypes.c_void_p


class Run(Protocol):
    """The agent itself: ends soon after `stop` is set; returns its exit code."""

    def __call__(self, stop: threading.Event, shutting_down: threading.Event) -> int: ...


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Somebody logged on, off, locked, connected…"""

    change: SessionChange
    session: str


@dataclass(frozen=True, slots=True)
class PowerEvent:
    """The PC goes to sleep (`suspend`), or is back."""

    suspend: bool


class ServiceStatus(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = (
        ("kind", DWORD), ("state", DWORD), ("accepted", DWORD), ("exit_code", DWORD),
        ("own_exit_code", DWORD), ("checkpoint", DWORD), ("wait_hint_ms", DWORD),
    )  # fmt: skip


class _TableEntry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW."""

    _fields_ = (("name", wintypes.LPWSTR), ("main", _PVOID))


_dispatch = Function("advapi32", "StartServiceCtrlDispatcherW", BOOL, ctypes.POINTER(_TableEntry))
_register = Function(
    "advapi32", "RegisterServiceCtrlHandlerExW", HANDLE, wintypes.LPCWSTR, _PVOID, _PVOID
)
_set_status = Function("advapi32", "SetServiceStatus", BOOL, HANDLE, ctypes.POINTER(ServiceStatus))


class ServiceLife:
    """One life of the service, apart from the system calls: states told, controls answered."""

    def __init__(
        self,
        tell: Callable[[ServiceStatus], None],
        listen: Callable[[SessionEvent | PowerEvent], None] | None = None,
    ) -> None:
        """`tell` passes a status to the service manager."""
        self._tell, self._listen = tell, listen
        self._lock = threading.Lock()
        self._state, self._checkpoint = STATE_START_PENDING, 0
        self._events: queue.SimpleQueue[SessionEvent | PowerEvent | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.shutting_down = threading.Event()

    def live(self, run: Run) -> int:
        """Run to the end; the manager hears of every step. Returns the exit code."""
        self.state(STATE_START_PENDING)
        ended = threading.Event()
        threads = [
            threading.Thread(target=self._pass_on, name="service-events", daemon=True),
            threading.Thread(target=self._reassure, args=(ended,), name="service-stop"),
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        self.state(STATE_RUNNING)
        code = 1
        try:
            code = run(self.stop, self.shutting_down)
        finally:
            ended.set()
            self.stop.set()
            self._events.put(None)
            threads[1].join(timeout=5)
            self.state(STATE_STOPPED, code)
        return code

    def control(self, code: int, event_type: int, session: int) -> int:
        """Answer one control of the manager, at once."""
        if code in (CONTROL_STOP, CONTROL_PRESHUTDOWN, CONTROL_SHUTDOWN):
            if code != CONTROL_STOP:
                self.shutting_down.set()
            self.state(STATE_STOP_PENDING)
            self.stop.set()
        elif code == CONTROL_SESSIONCHANGE:
            with contextlib.suppress(ValueError):  # a change that we do not know
                self._events.put(SessionEvent(SessionChange(event_type), str(session)))
        elif code == CONTROL_POWEREVENT:
            if event_type in (POWER_SUSPEND, POWER_RESUME_AUTOMATIC):
                self._events.put(PowerEvent(suspend=event_type == POWER_SUSPEND))
        elif code == CONTROL_INTERROGATE:
            self.state(self._state)
        else:
            return NOT_IMPLEMENTED
        return NO_ERROR

    def state(self, state: int, code: int = 0) -> None:
        """Tell the manager; a service that stops never goes back to running."""
        with self._lock:
            if self._state == STATE_STOPPED:
                return
            if self._state == STATE_STOP_PENDING and state not in (self._state, STATE_STOPPED):
                return
            pending = state in (STATE_START_PENDING, STATE_STOP_PENDING)
            self._checkpoint = self._checkpoint + 1 if pending else 0
            self._state = state
            self._tell(
                ServiceStatus(
                    kind=_OWN_PROCESS, state=state,
                    accepted=ACCEPTED if state == STATE_RUNNING else 0,
                    exit_code=SERVICE_SPECIFIC_ERROR if code else NO_ERROR, own_exit_code=code,
                    checkpoint=self._checkpoint, wait_hint_ms=WAIT_HINT_MS if pending else 0,
                )
            )  # fmt: skip

    def _reassure(self, ended: threading.Event) -> None:
        """While the agent ends, show that it goes on: a silent service is taken for hung."""
        self.stop.wait()
        while not ended.wait(CHECKPOINT_EVERY_S):
            self.state(STATE_STOP_PENDING)

    def _pass_on(self) -> None:
        while (event := self._events.get()) is not None:
            if self._listen is not None:
                self._listen(event)


def host(
    run: Run,
    *,
    name: str = SERVICE_NAME,
    listen: Callable[[SessionEvent | PowerEvent], None] | None = None,
) -> int:
    """Be the service `name` until it ends; returns the exit code of `run`.

    Raises UsageError when the service manager did not start this process, OSError.
    """
    outcome: list[int] = []
    failed: list[BaseException] = []
    finished = threading.Event()
    handle = 0

    def tell(status: ServiceStatus) -> None:
        _set_status.check(handle, ctypes.byref(status))

    life = ServiceLife(tell, listen)

    def on_control(code: int, event_type: int, data: int | None, _context: object) -> int:
        # WTSSESSION_NOTIFICATION: DWORD size, DWORD session id.
        with_session = code == CONTROL_SESSIONCHANGE and data
        session = ctypes.c_uint32.from_address(data + 4).value if with_session and data else 0
        return life.control(code, event_type, session)

    def main(_count: int, _arguments: object) -> None:
        nonlocal handle
        try:
            handle = _register.check(name, ctypes.cast(handler, _PVOID), None)
            outcome.append(life.live(run))
        except BaseException as error:  # the caller of `host` is told, on its own thread
            failed.append(error)
        finally:
            finished.set()

    handler = api.callback(DWORD, DWORD, DWORD, _PVOID, _PVOID)(on_control)
    service_main = api.callback(None, DWORD, _PVOID)(main)
    table: Any = (_TableEntry * 2)()
    table[0] = _TableEntry(name, ctypes.cast(service_main, _PVOID))
    if not _dispatch(table):
        if api.last_error() == NOT_STARTED_AS_SERVICE:
            raise UsageError(
                "The service manager did not start this process.",
                "This form of the command is for the service only.",
                "In a terminal, use: officegrid agent run",
            )
        raise api.failure("StartServiceCtrlDispatcherW")
    finished.wait(timeout=10)  # the manager may let us go before the other thread is done
    if failed:
        raise failed[0]
    return outcome[0] if outcome else 1
