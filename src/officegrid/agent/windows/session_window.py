"""A hidden window, through which Windows tells a session helper what happens in its session.

Lock, unlock, connect and disconnect come as WM_WTSSESSION_CHANGE, the end of the session as
WM_ENDSESSION, sleep as WM_POWERBROADCAST. The window is an ordinary one that is never shown:
message-only windows do not hear of the end of a session.
Source: Microsoft's pages on WTSRegisterSessionNotification and WM_WTSSESSION_CHANGE.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from ctypes import wintypes
from typing import Any

from officegrid.agent.windows import api
from officegrid.agent.windows.api import BOOL, DWORD, HANDLE, Function, Handle
from officegrid.agent.windows.translate import SessionChange

WM_DESTROY, WM_CLOSE, WM_QUERYENDSESSION, WM_ENDSESSION = 0x2, 0x10, 0x11, 0x16
WM_POWERBROADCAST, WM_WTSSESSION_CHANGE = 0x218, 0x2B1
_THIS_SESSION = 0
_PVOID = ctypes.c_void_p
_LRESULT = ctypes.c_ssize_t
_WPARAM, _LPARAM = ctypes.c_size_t, ctypes.c_ssize_t


class _WindowClass(ctypes.Structure):
    """WNDCLASSEXW."""

    _fields_ = (
        ("size", wintypes.UINT), ("style", wintypes.UINT), ("procedure", _PVOID),
        ("class_extra", ctypes.c_int), ("window_extra", ctypes.c_int), ("instance", HANDLE),
        ("icon", HANDLE), ("cursor", HANDLE), ("background", HANDLE),
        ("menu", wintypes.LPCWSTR), ("name", wintypes.LPCWSTR), ("small_icon", HANDLE),
    )  # fmt: skip


class _Message(ctypes.Structure):
    """MSG."""

    _fields_ = (
        ("window", HANDLE), ("message", wintypes.UINT), ("wparam", _WPARAM),
        ("lparam", _LPARAM), ("time", DWORD), ("x", wintypes.LONG), ("y", wintypes.LONG),
        ("private", DWORD),
    )  # fmt: skip


_module = Function("kernel32", "GetModuleHandleW", HANDLE, wintypes.LPCWSTR)
_register_class = Function(
    "user32", "RegisterClassExW", wintypes.ATOM, ctypes.POINTER(_WindowClass)
)
_unregister_class = Function("user32", "UnregisterClassW", BOOL, wintypes.LPCWSTR, HANDLE)
_create_window = Function(
    "user32", "CreateWindowExW", HANDLE, DWORD, wintypes.LPCWSTR, wintypes.LPCWSTR, DWORD,
    ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int, HANDLE, HANDLE, HANDLE, _PVOID,
)  # fmt: skip
_default = Function("user32", "DefWindowProcW", _LRESULT, HANDLE, wintypes.UINT, _WPARAM, _LPARAM)
_destroy = Function("user32", "DestroyWindow", BOOL, HANDLE)
_post = Function("user32", "PostMessageW", BOOL, HANDLE, wintypes.UINT, _WPARAM, _LPARAM)
_post_quit = Function("user32", "PostQuitMessage", None, ctypes.c_int)
_get_message = Function(
    "user32", "GetMessageW", ctypes.c_int, ctypes.POINTER(_Message), HANDLE, wintypes.UINT,
    wintypes.UINT,
)  # fmt: skip
_dispatch = Function("user32", "DispatchMessageW", _LRESULT, ctypes.POINTER(_Message))
_notify_me = Function("wtsapi32", "WTSRegisterSessionNotification", BOOL, HANDLE, DWORD)
_forget_me = Function("wtsapi32", "WTSUnRegisterSessionNotification", BOOL, HANDLE)
_mutex = Function("kernel32", "CreateMutexW", HANDLE, _PVOID, BOOL, wintypes.LPCWSTR)
_ERROR_ALREADY_EXISTS = 183


def claim_session(name: str = "OfficeGridSession") -> Handle | None:
    """The right to be this session's helper, until the handle is closed or the process ends.

    None: another process of this session has it. Raises OSError.
    """
    handle = Handle(_mutex.check(None, False, f"Local\\{name}"))
    if api.last_error() == _ERROR_ALREADY_EXISTS:
        handle.close()
        return None
    return handle


class SessionWindow:
    """Listens on a thread of its own until `close()`.

    `on_change` is called for every change of the session and for sleep (with None), `on_end` when
    the session ends; both on the window's thread, so they must be quick.
    """

    def __init__(
        self, on_change: Callable[[SessionChange | None], None], on_end: Callable[[], None]
    ) -> None:
        """Raises OSError when Windows makes no window."""
        self._on_change, self._on_end = on_change, on_end
        self._name = f"OfficeGridSession-{os.getpid()}-{id(self):x}"
        self._made = threading.Event()
        self._error: OSError | None = None
        self.handle = 0
        """The window, for those who send it messages."""
        self._thread = threading.Thread(target=self._live, name="session-window", daemon=True)
        self._thread.start()
        self._made.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Safe to call twice."""
        if self._thread.is_alive() and self.handle:
            _post(self.handle, WM_CLOSE, 0, 0)
        self._thread.join(timeout=5)

    def _live(self) -> None:
        """A window's messages come to the thread that made it."""
        instance = None
        try:
            kind = api.callback(_LRESULT, HANDLE, wintypes.UINT, _WPARAM, _LPARAM)
            procedure = kind(self._on_message)  # must live as long as the window
            instance = _module.check(None)
            self._make(procedure, instance)
        except OSError as error:
            self._error = error
            self._made.set()
            return
        # Without it we still see input and, by asking, the lock: slower, not blind.
        _notify_me(self.handle, _THIS_SESSION)
        self._made.set()
        message = _Message()
        while _get_message(ctypes.byref(message), None, 0, 0) > 0:
            _dispatch(ctypes.byref(message))
        self.handle = 0
        _unregister_class(self._name, instance)

    def _make(self, procedure: Any, instance: int) -> None:
        window_class = _WindowClass(
            size=ctypes.sizeof(_WindowClass), procedure=ctypes.cast(procedure, _PVOID),
            instance=instance, name=self._name,
        )  # fmt: skip
        _register_class.check(ctypes.byref(window_class))
        self.handle = _create_window.check(
            0, self._name, "Office Grid", 0, 0, 0, 0, 0, None, None, instance, None
        )

    def _on_message(self, window: int, message: int, wparam: int, lparam: int) -> int:
        if message == WM_WTSSESSION_CHANGE:
            with contextlib.suppress(ValueError):  # a change of a Windows to come
                self._on_change(SessionChange(wparam))
            return 0
        if message == WM_QUERYENDSESSION:
            return 1
        if message == WM_ENDSESSION:
            if wparam:
                self._on_end()
            return 0
        if message == WM_POWERBROADCAST:
            self._on_change(None)
            return 1
        if message == WM_CLOSE:
            _forget_me(window)
            _destroy(window)
            return 0
        if message == WM_DESTROY:
            _post_quit(0)
            return 0
        return int(_default(window, message, wparam, lparam))
