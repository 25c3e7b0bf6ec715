"""The X11 sensor on a real X server, driven by xdotool."""

from __future__ import annotations

import ctypes.util
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from desktops import XServer, wait_until, x_server
from officegrid.agent.sensors import xwire
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.x11 import RETRY_S, X11Desktop
from officegrid.agent.sensors.xwire import display_number, find_cookie
from parts import without


@pytest.fixture(scope="module")
def x() -> Iterator[XServer]:
    with x_server() as server:
        yield server


@pytest.fixture
def desktop(x: XServer) -> Iterator[X11Desktop]:
    sensor = X11Desktop(x.display)
    yield sensor
    sensor.close()


def test_idle_time_rises_and_drops_on_keys_and_on_the_pointer(
    x: XServer, desktop: X11Desktop
) -> None:
    for action in (["key", "a"], ["mousemove_relative", "1", "1"]):
        wait_until(lambda: desktop.idle_s() > 0.5)
        before_s = desktop.idle_s()
        x.do(*action)
        assert desktop.idle_s() < before_s


IDLE_MS = """
import ctypes
class Info(ctypes.Structure):
    _fields_ = [("window", ctypes.c_ulong), ("state", ctypes.c_int), ("kind", ctypes.c_int),
                ("till_or_since", ctypes.c_ulong), ("idle", ctypes.c_ulong),
                ("event_mask", ctypes.c_ulong)]
x, saver = ctypes.CDLL("libX11.so.6"), ctypes.CDLL("libXss.so.1")
x.XOpenDisplay.restype = ctypes.c_void_p
x.XDefaultRootWindow.restype = ctypes.c_ulong
d, info = ctypes.c_void_p(x.XOpenDisplay(None)), Info()
assert saver.XScreenSaverQueryInfo(
    d, ctypes.c_ulong(x.XDefaultRootWindow(d)), ctypes.byref(info))
print(info.idle)
"""


def test_idle_time_agrees_with_the_library_of_the_x_project(
    x: XServer, desktop: X11Desktop
) -> None:
    if ctypes.util.find_library("Xss") is None:
        without("libXss is not installed")
    env = {**os.environ, "DISPLAY": x.display}
    before_s = desktop.idle_s()
    asked = subprocess.run(
        [sys.executable, "-c", IDLE_MS], env=env, capture_output=True, text=True, check=True
    )
    assert before_s <= int(asked.stdout) / 1000 <= desktop.idle_s()


WINDOW = """
import ctypes, sys, time
x = ctypes.CDLL("libX11.so.6")
x.XOpenDisplay.restype = ctypes.c_void_p
for f in (x.XInternAtom, x.XCreateSimpleWindow, x.XDefaultRootWindow):
    f.restype = ctypes.c_ulong
d = ctypes.c_void_p(x.XOpenDisplay(None))
root = ctypes.c_ulong(x.XDefaultRootWindow(d))
atom = lambda name: ctypes.c_ulong(x.XInternAtom(d, name.encode(), 0))
def put(window, name, kind, *values):
    data = (ctypes.c_ulong * len(values))(*values)
    x.XChangeProperty(d, window, atom(name), atom(kind), 32, 0, data, len(values))
width, height = int(sys.argv[1]), int(sys.argv[2])
w = ctypes.c_ulong(x.XCreateSimpleWindow(d, root, 0, 0, width, height, 0, 0, 0))
x.XMapWindow(d, w)
x.XSync(d, 0)
if "manager" in sys.argv:
    put(root, "_NET_SUPPORTING_WM_CHECK", "WINDOW", w.value)
    put(root, "_NET_ACTIVE_WINDOW", "WINDOW", w.value)
time.sleep(0.2)
x.XSetInputFocus(d, w, 1, ctypes.c_ulong(0))
x.XSync(d, 0)
print("shown", flush=True)
for line in sys.stdin:
    states = [atom(name).value for name in line.split()]
    put(w, "_NET_WM_STATE", "ATOM", *states)
    x.XSync(d, 0)
    print("set", flush=True)
"""


def _window(x: XServer, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WINDOW, *arguments],
        env={**os.environ, "DISPLAY": x.display},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "shown\n"
    return process


def test_a_full_screen_window_by_the_hints_of_a_window_manager() -> None:
    with x_server() as x, _window(x, "100", "100", "manager") as window:
        desktop = X11Desktop(x.display)
        assert window.stdin is not None
        assert window.stdout is not None
        assert desktop.presenting() is False
        for states, expected in (
            ("_NET_WM_STATE_MODAL _NET_WM_STATE_FULLSCREEN", True),
            ("_NET_WM_STATE_MAXIMIZED_VERT", False),
        ):
            window.stdin.write(states + "\n")
            window.stdin.flush()
            assert window.stdout.readline() == "set\n"
            assert desktop.presenting() is expected
        desktop.close()
        window.stdin.close()


@pytest.mark.parametrize(("size", "expected"), [(("640", "480"), True), (("300", "480"), False)])
def test_without_a_window_manager_what_covers_the_screen_is_full_screen(
    x: XServer, desktop: X11Desktop, size: tuple[str, str], expected: bool
) -> None:
    assert desktop.presenting() is False
    with _window(x, *size) as window:
        assert desktop.presenting() is expected
        assert window.stdin is not None
        window.stdin.close()
    wait_until(lambda: desktop.presenting() is False)


def test_a_dying_server_is_an_error_and_a_new_one_is_found_again() -> None:
    now_s = 1000.0
    with x_server() as first:
        display = first.display
        desktop = X11Desktop(display, clock=lambda: now_s)
        assert desktop.idle_s() >= 0
        first.kill()
        with pytest.raises(SensorError, match="gone"):
            desktop.idle_s()
        with pytest.raises(SensorError, match="gone"):  # not asked again so soon
            desktop.idle_s()
        now_s += RETRY_S
        with pytest.raises(SensorError, match="no X server answers"):
            desktop.idle_s()
    again = subprocess.Popen(
        ["Xvfb", display, "-nolisten", "tcp", "-noreset"], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: Path(f"/tmp/.X11-unix/X{display[1:]}").exists())
        deadline_s = now_s + 100 * RETRY_S
        idle_s = None
        while idle_s is None:
            now_s += RETRY_S
            assert now_s < deadline_s
            try:
                idle_s = desktop.idle_s()
            except SensorError:
                wait_until(lambda: again.poll() is None)
                threading.Event().wait(0.05)
        assert idle_s >= 0
        desktop.close()
    finally:
        again.kill()
        again.wait()
        for left in (f"/tmp/.X11-unix/X{display[1:]}", f"/tmp/.X{display[1:]}-lock"):
            Path(left).unlink(missing_ok=True)


def test_a_server_that_wants_a_cookie_gets_the_right_one(tmp_path: Path) -> None:
    cookie = bytes(range(16))
    name = b"MIT-MAGIC-COOKIE-1"

    def entry(family: int, address: bytes, number: bytes, data: bytes) -> bytes:
        parts = b"".join(struct.pack(">H", len(p)) + p for p in (address, number, name, data))
        return struct.pack(">H", family) + parts

    host = socket.gethostname().encode()
    authority = tmp_path / "authority"
    authority.write_bytes(entry(256, host, b"", cookie))
    with x_server("-auth", str(authority)) as x:
        refused = X11Desktop(x.display, tmp_path / "none")
        with pytest.raises(SensorError, match="refuses"):
            refused.idle_s()
        number = x.display[1:].encode()
        wrong, right = tmp_path / "wrong", tmp_path / "right"
        wrong.write_bytes(entry(256, host, number, bytes(16)))
        with pytest.raises(SensorError, match="refuses"):
            X11Desktop(x.display, wrong).idle_s()
        right.write_bytes(
            entry(0, b"\x0a\0\0\1", number, bytes(16)) + entry(256, host, number, cookie)
        )
        desktop = X11Desktop(x.display, right)
        assert desktop.idle_s() >= 0
        desktop.close()
    assert find_cookie(right.read_bytes()[:-20], int(number), host) == b""


@pytest.mark.parametrize("answers", [False, True])
def test_a_hanging_or_babbling_server_costs_a_second_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(xwire, "SOCKETS", tmp_path)
    monkeypatch.setattr(xwire, "ANSWER_S", 0.3)
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / "X0"))
        hung.listen()
        if answers:

            def babble() -> None:
                connection, _ = hung.accept()
                with connection:
                    connection.sendall(os.urandom(70000))
                    connection.recv(10)

            threading.Thread(target=babble, daemon=True).start()
        with pytest.raises(SensorError):
            X11Desktop(":0").idle_s()


@pytest.mark.parametrize("display", ["host:0", "localhost:10.0", "", "/tmp/x", ":", ":abc", "-1"])
def test_displays_of_other_machines_are_not_believed(display: str) -> None:
    with pytest.raises(SensorError, match="not a display of this PC"):
        display_number(display)


def test_display_numbers() -> None:
    assert [display_number(text) for text in (":0", ":12.3", "unix:7")] == [0, 12, 7]
