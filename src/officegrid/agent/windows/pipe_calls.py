"""Named pipes: the Windows calls behind `agent.channel.pipe`, each with a time limit.

Every read, write and connect is overlapped, so that one wait covers its end, the deadline and the
stop of the server; a wait that gives up takes the call back before its memory goes away.
Source: Microsoft's pages on CreateNamedPipeW, ConnectNamedPipe and ImpersonateNamedPipeClient.
"""

from __future__ import annotations

import ctypes
import time
from ctypes import wintypes

from officegrid.agent.windows import accounts, api
from officegrid.agent.windows.accounts import SecurityAttributes, TokenFacts
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Event, Function, Handle

PREFIX = "\\\\.\\pipe\\"

_DUPLEX, _OVERLAPPED, _FIRST_INSTANCE = 0x3, 0x4000_0000, 0x8_0000
_BYTES, _REJECT_REMOTE_CLIENTS, _ANY_NUMBER = 0x0, 0x8, 255
_BUFFER_BYTES = 65536

CLIENT_ACCESS = 0x12019B
"""FILE_GENERIC_READ, FILE_WRITE_DATA, FILE_WRITE_ATTRIBUTES, FILE_WRITE_EA. Not GENERIC_WRITE: that
holds FILE_CREATE_PIPE_INSTANCE, the right to be a server of this name."""
_OPEN_EXISTING, _IDENTIFY_ME_ONLY = 3, 0x0011_0000  # SECURITY_SQOS_PRESENT | IDENTIFICATION

_WAIT_FOREVER, _WAIT_TIMEOUT, _WAIT_FAILED = 0xFFFF_FFFF, 0x102, 0xFFFF_FFFF
ERROR_NO_DATA, ERROR_PIPE_NOT_CONNECTED, ERROR_PIPE_BUSY = 232, 233, 231
_ERROR_IO_PENDING, _ERROR_PIPE_CONNECTED, _ERROR_SEM_TIMEOUT = 997, 535, 121
HUNG_UP = frozenset({api.ERROR_BROKEN_PIPE, ERROR_NO_DATA, ERROR_PIPE_NOT_CONNECTED})

_POINTER = ctypes.POINTER
_PVOID = ctypes.c_void_p


class _Overlapped(ctypes.Structure):
    _fields_ = (("internal", _PVOID), ("high", _PVOID), ("offset", _PVOID), ("event", HANDLE))


_create = Function(
    "kernel32", "CreateNamedPipeW", HANDLE, wintypes.LPCWSTR, DWORD, DWORD, DWORD, DWORD, DWORD,
    DWORD, _POINTER(SecurityAttributes),
)  # fmt: skip
_connect = Function("kernel32", "ConnectNamedPipe", BOOL, HANDLE, _POINTER(_Overlapped))
_disconnect = Function("kernel32", "DisconnectNamedPipe", BOOL, HANDLE)
_open = Function(
    "kernel32", "CreateFileW", HANDLE, wintypes.LPCWSTR, DWORD, DWORD, _PVOID, DWORD, DWORD, HANDLE
)
_read = Function("kernel32", "ReadFile", BOOL, HANDLE, _PVOID, DWORD, _PVOID, _POINTER(_Overlapped))
_write = Function(
    "kernel32", "WriteFile", BOOL, HANDLE, _PVOID, DWORD, _PVOID, _POINTER(_Overlapped)
)
_wait = Function("kernel32", "WaitForMultipleObjects", DWORD, DWORD, _POINTER(HANDLE), BOOL, DWORD)
_outcome = Function(
    "kernel32", "GetOverlappedResult", BOOL, HANDLE, _POINTER(_Overlapped), _POINTER(DWORD), BOOL
)
_cancel = Function("kernel32", "CancelIoEx", BOOL, HANDLE, _POINTER(_Overlapped))
_wait_pipe = Function("kernel32", "WaitNamedPipeW", BOOL, wintypes.LPCWSTR, DWORD)
_client_pid = Function("kernel32", "GetNamedPipeClientProcessId", BOOL, HANDLE, _POINTER(DWORD))
_impersonate = Function("advapi32", "ImpersonateNamedPipeClient", BOOL, HANDLE)
_revert = Function("advapi32", "RevertToSelf", BOOL)
_this_thread = Function("kernel32", "GetCurrentThread", HANDLE)
_thread_token = Function("advapi32", "OpenThreadToken", BOOL, HANDLE, DWORD, BOOL, _POINTER(HANDLE))


class StoppedError(Exception):
    """The server stops: the call was taken back."""


class PipeEnd(Handle):
    """One end of a connection. `stop`, when given, ends every wait."""

    def __init__(self, value: int, stop: Event | None = None) -> None:
        super().__init__(value)
        self._stop = stop
        self._done = Event()

    def close(self) -> None:
        super().close()
        self._done.close()

    def accept(self) -> None:
        """Wait for a client, without limit. Raises StoppedError, OSError."""
        overlapped = _Overlapped(event=self._done.value)
        if _connect(self.value, ctypes.byref(overlapped)):
            return
        code = api.last_error()
        if code == _ERROR_IO_PENDING:
            self._finish("ConnectNamedPipe", overlapped, None)
        elif code == ERROR_NO_DATA:  # came and went
            _disconnect(self.value)
            raise api.failure("ConnectNamedPipe", code)
        elif code != _ERROR_PIPE_CONNECTED:
            raise api.failure("ConnectNamedPipe", code)

    def read(self, deadline_s: float) -> bytes:
        """What has arrived, b"" when the other end hung up.

        `deadline_s` is of time.monotonic(). Raises TimeoutError, StoppedError, OSError.
        """
        buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        overlapped = _Overlapped(event=self._done.value)
        started = _read(self.value, buffer, len(buffer), None, ctypes.byref(overlapped))
        try:
            count = self._started("ReadFile", started, overlapped, deadline_s)
        except OSError as error:
            if api.error_code(error) in HUNG_UP:
                return b""
            raise
        return buffer.raw[:count]

    def write(self, data: bytes, deadline_s: float) -> None:
        """Raises TimeoutError, StoppedError, OSError (a code in HUNG_UP: nobody reads)."""
        while data:
            overlapped = _Overlapped(event=self._done.value)
            started = _write(self.value, data, len(data), None, ctypes.byref(overlapped))
            data = data[self._started("WriteFile", started, overlapped, deadline_s) :]

    def client(self) -> tuple[TokenFacts, bool, int]:
        """The other end of an accepted connection: its token's facts, whether that is an
        administrator's, its process id (0: not known).

        Works only after something was read from it. Raises OSError.
        """
        token, pid = HANDLE(), DWORD(0)
        _impersonate.check(self.value)
        try:
            _thread_token.check(_this_thread(), accounts.TOKEN_QUERY, True, ctypes.byref(token))
        finally:
            _revert.check()  # a thread that could not must not go on: its caller ends it
        with Handle(token.value or 0) as held:
            facts, admin = accounts.token_facts(held), accounts.is_administrator(held)
        _client_pid(self.value, ctypes.byref(pid))
        return facts, admin, int(pid.value)

    def _started(
        self, call: str, done: int, overlapped: _Overlapped, deadline_s: float | None
    ) -> int:
        if not done and api.last_error() != _ERROR_IO_PENDING:
            raise api.failure(call)
        return self._finish(call, overlapped, deadline_s)

    def _finish(self, call: str, overlapped: _Overlapped, deadline_s: float | None) -> int:
        events = [self._done.value, self._stop.value if self._stop else self._done.value]
        count = 2 if self._stop else 1
        waited = _wait(count, (HANDLE * 2)(*events), False, _milliseconds(deadline_s))
        if waited != 0:
            _cancel(self.value, ctypes.byref(overlapped))
        moved = DWORD(0)
        # Waits for the cancelled call too: until then Windows may write into our buffer.
        if _outcome(self.value, ctypes.byref(overlapped), ctypes.byref(moved), True):
            return int(moved.value)
        if waited == _WAIT_TIMEOUT:
            raise TimeoutError(f"{call}: the other end is too slow")
        if waited == 1:
            raise StoppedError
        raise api.failure(call)


def full_name(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name


def create_instance(name: str, sddl: str, *, first: bool, stop: Event) -> PipeEnd:
    """One server end, local clients only. `first` fails where the name is in use already
    (ERROR_ACCESS_DENIED): nobody can have set up a trap under it. Raises OSError."""
    mode = _DUPLEX | _OVERLAPPED | (_FIRST_INSTANCE if first else 0)
    with accounts.security_attributes(sddl) as security:
        handle = _create.check(
            full_name(name), mode, _BYTES | _REJECT_REMOTE_CLIENTS, _ANY_NUMBER, _BUFFER_BYTES,
            _BUFFER_BYTES, 0, ctypes.byref(security),
        )  # fmt: skip
    return PipeEnd(handle, stop)


def open_client(name: str, deadline_s: float) -> PipeEnd:
    """Connect; the server may learn who we are but not act in our name.

    Raises TimeoutError (all ends busy), OSError (api.ERROR_FILE_NOT_FOUND: no server).
    """
    path = full_name(name)
    while True:
        handle = _open(
            path, CLIENT_ACCESS, 0, None, _OPEN_EXISTING, _OVERLAPPED | _IDENTIFY_ME_ONLY, None
        )
        if handle and handle != api.INVALID_HANDLE:
            return PipeEnd(handle)
        code = api.last_error()
        if code != ERROR_PIPE_BUSY:
            raise api.failure("CreateFileW", code)
        left_ms = _milliseconds(deadline_s)
        if left_ms == 0:
            raise TimeoutError("every end of the pipe is busy")
        _wait_pipe(path, left_ms)  # woken does not mean served: another may be faster


def exists(name: str) -> bool:
    """Does anybody serve a pipe of this name?"""
    return bool(_wait_pipe(full_name(name), 1)) or api.last_error() == _ERROR_SEM_TIMEOUT


def _milliseconds(deadline_s: float | None) -> int:
    if deadline_s is None:
        return _WAIT_FOREVER
    return max(0, min(int((deadline_s - time.monotonic()) * 1000), 0x7FFF_FFFF))
