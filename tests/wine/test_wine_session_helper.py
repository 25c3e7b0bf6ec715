"""`officegrid agent session` on Windows: real key presses at a real window reach the agent."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parts import need
from wine.conftest import Rig, windows_path

INSIDE = Path(__file__).parent / "inside"
PIPE = "officegrid-test-helper"
WM_ENDSESSION, WM_WTSSESSION_CHANGE, LOCK, UNLOCK = 0x16, 0x2B1, 7, 8


class Desk:
    """The agent's end, in a process of its own, and what it tells."""

    def __init__(self, rig: Rig) -> None:
        self.process = rig.start("-u", windows_path(INSIDE / "desk_server.py"), PIPE)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 20) -> float:
        """Until it tells something `wanted`; returns how long that took."""
        began_s = time.monotonic()
        last = "nothing"
        while (left_s := began_s + timeout_s - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left_s)
            except queue.Empty:
                break
            assert line is not None, f"the agent's side ended: {last}"
            last = line
            if line.startswith("{") and wanted(json.loads(line)):
                return time.monotonic() - began_s
        raise AssertionError(f"not within {timeout_s} s; the last was {last}")

    def catch_up(self) -> None:
        """Forget what was told so far."""
        while not self._lines.empty():
            self._lines.get()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def helper(rig: Rig) -> Iterator[subprocess.Popen[str]]:
    process = rig.start("-m", "officegrid", "agent", "session", "--at", PIPE)
    yield process
    process.kill()
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


def xdo(rig: Rig, *command: str) -> str:
    done = subprocess.run(
        ["xdotool", *command], env=rig.environment(), capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()


@pytest.fixture
def window(rig: Rig) -> Iterator[str]:
    """The X window of a Windows program."""
    need("xdotool")
    program = rig.program("notepad")
    try:
        found = xdo(rig, "search", "--sync", "--onlyvisible", "--name", "Notepad").split()
        assert found
        yield found[0]
    finally:
        program.kill()
        program.wait(10)


def test_input_reaches_the_agent(rig: Rig, window: str, helper: subprocess.Popen[str]) -> None:
    desk = Desk(rig)
    try:
        xdo(rig, "mousemove", "--window", window, "50", "50", "click", "1")
        desk.wait(lambda told: told["idle_s"] is not None and told["id"] != "0")
        desk.wait(lambda told: told["idle_s"] + told["age_s"] > 3)

        desk.catch_up()
        xdo(rig, "key", "--window", window, "a")
        xdo(rig, "mousemove", "--window", window, "80", "80")
        took_s = desk.wait(lambda told: told["idle_s"] + told["age_s"] < 1, timeout_s=10)
        assert took_s < 2  # it looks every 0.25 s while a VM runs; the rest is this machine

        to_helper = windows_path(INSIDE / "to_helper.py")
        assert rig.run(to_helper, WM_WTSSESSION_CHANGE, LOCK)[0] == 0
        desk.wait(lambda told: told["locked"] is True, timeout_s=5)
        assert rig.run(to_helper, WM_WTSSESSION_CHANGE, UNLOCK)[0] == 0
        desk.wait(lambda told: told["locked"] is False, timeout_s=5)
    finally:
        desk.kill()


def test_the_helper_waits_for_an_agent_that_restarts_and_ends_with_its_session(
    rig: Rig, helper: subprocess.Popen[str]
) -> None:
    first = Desk(rig)
    try:
        first.wait(lambda told: told["age_s"] < 2)
    finally:
        first.kill()
    second = Desk(rig)
    try:
        second.wait(lambda told: told["age_s"] < 2)
        twin = rig.run("-m", "officegrid", "agent", "session", "--at", PIPE)
        assert twin[0] == 0
        assert "has its helper already" in twin[1]
        assert helper.poll() is None
        assert rig.run(windows_path(INSIDE / "to_helper.py"), WM_ENDSESSION, 1)[0] == 0
        assert helper.wait(10) == 0
    finally:
        second.kill()
