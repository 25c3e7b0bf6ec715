"""The session helper from input to hub: real X server, real process, real socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from desktops import wait_until, x_server
from officegrid.agent import session_helper
from officegrid.agent.channel.hub import Hub
from officegrid.agent.channel.unix import serve, socket_path
from officegrid.agent.sensors import helper
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.desktop import DesktopReading
from officegrid.agent.sensors.helper import OwnReading, run_helper

HELPER = [sys.executable, "-m", "officegrid", "agent", "session", "--at"]


class Agent:
    """A hub that notes when each report came."""

    def __init__(self) -> None:
        self.fast = False
        self.hub = Hub(
            clock=time.monotonic, status=dict, pause=lambda *_: None, unpause=lambda *_: None,
            fast=lambda: self.fast,
        )  # fmt: skip

    @property
    def idle_s(self) -> float | None:
        sessions = self.hub.sessions()
        return sessions[0].idle_s if sessions else None


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="og-help-") as name:
        yield Path(name)


def test_input_reaches_the_agent_soon(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    agent = Agent()
    agent.fast = True
    server = serve(agent.hub, socket_path(folder))
    with x_server() as x:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "officegrid",
                "agent",
                "session",
                "--at",
                str(socket_path(folder)),
            ],
            env={**os.environ, "DISPLAY": x.display},
        )
        try:
            delays_s = []
            for _ in range(3):
                wait_until(lambda: (agent.idle_s or 0) > 1.2, 30)
                began_s = time.monotonic()
                x.do("key", "a")
                wait_until(lambda: (agent.idle_s if agent.idle_s is not None else 9) < 1)
                (session,) = agent.hub.sessions()
                heard_s = time.monotonic() - session.age_s
                delays_s.append(heard_s - began_s)
            record_property("delays_s", delays_s)
            # It looks ten times a second; the rest is room for a busy machine.
            assert 0 < sorted(delays_s)[1] < 1.0
            (session,) = agent.hub.sessions()
            assert session.user == str(os.geteuid())
            assert session.presenting is False
            assert session.locked is None
        finally:
            process.kill()
            process.wait()
            server.close()


def test_a_killed_helper_grows_old_and_is_not_forgotten(folder: Path) -> None:
    agent = Agent()
    server = serve(agent.hub, socket_path(folder))
    with x_server() as x:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "officegrid",
                "agent",
                "session",
                "--at",
                str(socket_path(folder)),
            ],
            env={**os.environ, "DISPLAY": x.display},
        )
        try:
            wait_until(lambda: agent.idle_s is not None, 30)
        finally:
            process.kill()
            process.wait()
        wait_until(lambda: agent.hub.sessions()[0].age_s > 1.2)
    server.close()


class Scripted:
    """A desktop that says what the test wants."""

    def __init__(self) -> None:
        self.reading = DesktopReading(100.0, False)
        self.closed = False

    def read(self) -> DesktopReading:
        return self.reading

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_helper, "LOOK_S", 0.02)
    monkeypatch.setattr(session_helper, "REPORT_EVERY_S", 0.06)
    monkeypatch.setattr(helper, "DESKTOP_GONE_S", 0.3)


def _start(path: Path, desktop: Scripted) -> tuple[threading.Thread, threading.Event]:
    stop, own = threading.Event(), OwnReading(desktop, env={"XRDP_SESSION": "1"})
    thread = threading.Thread(target=lambda: run_helper(path, stop, own=own), daemon=True)
    thread.start()
    return thread, stop


def test_it_waits_for_an_agent_and_outlives_its_restart(folder: Path, quick: None) -> None:
    desktop = Scripted()
    thread, stop = _start(socket_path(folder), desktop)
    for idle_s in (100.0, 200.0):
        desktop.reading = DesktopReading(idle_s, None, "cannot see presentations")
        agent = Agent()
        server = serve(agent.hub, socket_path(folder))
        wait_until(lambda agent=agent, idle_s=idle_s: agent.idle_s == idle_s)
        wait_until(lambda agent=agent: agent.hub.remarks())
        assert agent.hub.sessions()[0].presenting is None
        assert agent.hub.sessions()[0].remote is True
        assert list(agent.hub.remarks().values()) == ["cannot see presentations"]
        server.close()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert desktop.closed


def test_a_desktop_that_is_gone_ends_the_helper_after_a_while(folder: Path, quick: None) -> None:
    agent = Agent()
    server = serve(agent.hub, socket_path(folder))
    desktop = Scripted()
    desktop.reading = DesktopReading(None, None, "never seen")
    thread, _ = _start(socket_path(folder), desktop)
    wait_until(lambda: agent.hub.remarks())
    thread.join(0.6)
    assert thread.is_alive()  # not seen yet is not gone
    desktop.reading = DesktopReading(5.0, False)
    wait_until(lambda: agent.idle_s == 5.0)
    desktop.reading = DesktopReading(None, None, "gone")
    wait_until(lambda: agent.hub.remarks())
    assert agent.idle_s is None
    thread.join(10)
    assert not thread.is_alive()
    server.close()


def test_it_must_run_inside_a_desktop() -> None:
    with pytest.raises(SensorError, match="not in a desktop"):
        OwnReading(env={})
