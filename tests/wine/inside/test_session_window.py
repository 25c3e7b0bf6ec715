"""The hidden window of the session helper, on Windows, with the messages that Windows sends."""

from __future__ import annotations

import ctypes
import queue
import subprocess
import sys
import threading

from officegrid.agent.windows.session_window import (
    WM_ENDSESSION,
    WM_POWERBROADCAST,
    WM_QUERYENDSESSION,
    WM_WTSSESSION_CHANGE,
    SessionWindow,
    claim_session,
)
from officegrid.agent.windows.translate import SessionChange


def send(window: SessionWindow, message: int, wparam: int) -> int:
    """As the system does: the answer is awaited."""
    user32 = ctypes.WinDLL("user32")
    user32.SendMessageW.restype = ctypes.c_ssize_t
    user32.SendMessageW.argtypes = [
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t, ctypes.c_ssize_t
    ]  # fmt: skip
    return int(user32.SendMessageW(window.handle, message, wparam, 0))


def test_changes_of_the_session_are_passed_on() -> None:
    heard: queue.SimpleQueue[SessionChange | None] = queue.SimpleQueue()
    ended = threading.Event()
    window = SessionWindow(heard.put, ended.set)
    for change in (SessionChange.LOCK, SessionChange.UNLOCK, SessionChange.REMOTE_CONNECT):
        send(window, WM_WTSSESSION_CHANGE, change)
        assert heard.get(timeout=5) is change
    send(window, WM_WTSSESSION_CHANGE, 99)  # one that does not exist yet
    send(window, WM_POWERBROADCAST, 18)
    assert heard.get(timeout=5) is None
    assert send(window, WM_QUERYENDSESSION, 0) == 1  # never holds a logoff up
    send(window, WM_ENDSESSION, 0)  # somebody else did: the session goes on
    assert not ended.is_set()
    send(window, WM_ENDSESSION, 1)
    assert ended.wait(5)
    window.close()
    window.close()
    assert not [t for t in threading.enumerate() if t.name == "session-window"]


def test_two_windows_in_a_row_do_not_meet() -> None:
    for _ in range(2):
        SessionWindow(lambda change: None, lambda: None).close()


def test_one_helper_per_session() -> None:
    name = "OfficeGridTestClaim"
    code = (
        "import sys; from officegrid.agent.windows.session_window import claim_session; "
        "print(claim_session(sys.argv[1]) is not None)"
    )

    def child_gets_it() -> bool:
        child = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, timeout=30
        )
        return child.stdout.strip() == "True"

    claim = claim_session(name)
    assert claim is not None
    assert claim_session(name) is None
    assert not child_gets_it()
    claim.close()
    assert child_gets_it()
