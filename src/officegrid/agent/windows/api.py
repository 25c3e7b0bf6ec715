"""The one door to Windows: system calls as typed functions, bound when they are first called.

Every module of this folder imports on any system; a call fails with OSError where there is no
Windows. Handles are 64-bit values: a function without its argument types would cut them to 32.

    get_tick = Function("kernel32", "GetTickCount", DWORD)
    create = Function("kernel32", "CreateEventW", HANDLE, c_void_p, BOOL, BOOL, LPCWSTR)
    event = create.check(None, True, False, None)       # raises OSError when the result is 0
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from ctypes import wintypes
from typing import Any

DWORD = wintypes.DWORD
BOOL = wintypes.BOOL
HANDLE = wintypes.HANDLE
INVALID_HANDLE = ctypes.c_void_p(-1).value

SYSTEM32_ONLY = 0x800  # LOAD_LIBRARY_SEARCH_SYSTEM32: nobody can plant a DLL of that name

ERROR_FILE_NOT_FOUND = 2
ERROR_ACCESS_DENIED = 5
ERROR_BROKEN_PIPE = 109
ERROR_NO_TOKEN = 1008
ERROR_PRIVILEGE_NOT_HELD = 1314


class Function:
    """A function of a system DLL; calling it keeps the thread's error code for `failure`."""

    def __init__(self, dll: str, name: str, result: Any, *arguments: Any) -> None:
        self.dll, self.name = dll, name
        self._result, self._arguments = result, arguments
        self._bound: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        bound = self._bound
        if bound is None:
            bound = self._bound = _bind(self.dll, self.name, self._result, self._arguments)
        return bound(*arguments)

    def check(self, *arguments: Any) -> Any:
        """The result; raises OSError with the system's code and text when it is 0 or None."""
        result = self(*arguments)
        if not result or result == INVALID_HANDLE:
            raise failure(self.name)
        return result


def _bind(dll: str, name: str, result: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    if sys.platform != "win32":
        raise OSError(f"{name} of {dll} exists on Windows only")
    library = ctypes.WinDLL(dll, use_last_error=True, winmode=SYSTEM32_ONLY)
    prototype = ctypes.WINFUNCTYPE(result, *arguments, use_last_error=True)
    try:
        return prototype((name, library))
    except AttributeError:
        raise OSError(f"this Windows has no {name} in {dll}") from None


def callback(result: Any, *arguments: Any) -> Any:
    """The type of a function that Windows calls; keep the made object alive while it may."""
    if sys.platform != "win32":
        raise OSError("Windows calls back on Windows only")
    return ctypes.WINFUNCTYPE(result, *arguments)


def last_error() -> int:
    """The error code of this thread's last `Function` call; 0 elsewhere than on Windows."""
    if sys.platform != "win32":
        return 0
    return ctypes.get_last_error()


def failure(call: str, code: int | None = None) -> OSError:
    """What went wrong in `call`, as the OSError that Python itself would have raised."""
    code = last_error() if code is None else code
    if sys.platform != "win32":
        return OSError(f"{call} failed with code {code}")
    text = ctypes.FormatError(code).strip()
    return OSError(None, f"{call}: {text}", None, code)


def error_code(error: OSError) -> int:
    """The Windows error code in an OSError, 0 when it holds none."""
    return int(getattr(error, "winerror", None) or 0)


close_handle = Function("kernel32", "CloseHandle", BOOL, HANDLE)
local_free = Function("kernel32", "LocalFree", ctypes.c_void_p, ctypes.c_void_p)
_create_event = Function(
    "kernel32", "CreateEventW", HANDLE, ctypes.c_void_p, BOOL, BOOL, wintypes.LPCWSTR
)
_set_event = Function("kernel32", "SetEvent", BOOL, HANDLE)


class Handle:
    """Owns one kernel handle; closes it once."""

    def __init__(self, value: int) -> None:
        self.value: int | None = value

    def close(self) -> None:
        value, self.value = self.value, None
        if value:
            close_handle(value)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Event(Handle):
    """A manual-reset event that waits can include."""

    def __init__(self) -> None:
        super().__init__(_create_event.check(None, True, False, None))

    def set(self) -> None:
        if self.value:
            _set_event(self.value)
