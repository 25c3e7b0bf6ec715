"""The keeper of worker processes (job object, suspend, resume), on Windows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from officegrid.agent.drivers.process.keeper import Limits
from officegrid.agent.drivers.process.windows import WindowsKeeper

# Counts by the length of a file, with a child that does the same.
WORKER = """
import pathlib, subprocess, sys, time
me = pathlib.Path(sys.argv[1])
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[2]])
while True:
    with me.open("ab") as file:
        file.write(b".")
    time.sleep(0.02)
"""


class Worker:
    """A kept worker and what it counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "worker.py"
        self.script.write_text(WORKER, encoding="utf-8")
        self.keeper = WindowsKeeper("test", folder)

    def launch(self) -> None:
        command = [sys.executable, str(self.script), str(self.folder / "a"), str(self.folder / "b")]
        limits = Limits(memory_mb=512, cpus=1)
        self.keeper.launch(command, dict(os.environ), self.folder / "log.txt", limits)

    def counted(self) -> tuple[int, int]:
        return self._number("a"), self._number("b")

    def _number(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def moves_on(worker: Worker) -> bool:
    before = worker.counted()
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        now = worker.counted()
        if now[0] > before[0] and now[1] > before[1]:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.keeper.kill()


def test_the_whole_tree_is_kept_frozen_thawed_and_killed(worker: Worker) -> None:
    assert worker.keeper.members() == ()
    worker.launch()
    until(lambda: min(worker.counted()) > 3, "worker and child count")
    assert worker.keeper.root_lives()
    members = worker.keeper.members()
    assert len(members) >= 2
    assert os.getpid() not in members

    again = WindowsKeeper("test", worker.folder)  # as an agent that was started anew
    assert set(again.members()) == set(worker.keeper.members())
    again.freeze()
    assert again.is_frozen()
    stopped = worker.counted()
    deadline_s = time.monotonic() + 0.5
    while time.monotonic() < deadline_s:
        assert worker.counted() == stopped
        time.sleep(0.05)
    worker.keeper.thaw()
    assert moves_on(worker)
    assert not worker.keeper.is_frozen()

    worker.keeper.kill()
    assert worker.keeper.members() == ()
    assert not any(psutil.pid_exists(pid) for pid in members)


def test_a_frozen_worker_can_be_killed(worker: Worker) -> None:
    worker.launch()
    until(lambda: min(worker.counted()) > 0, "worker and child count")
    worker.keeper.freeze()
    worker.keeper.kill()
    assert worker.keeper.members() == ()
    assert not worker.keeper.root_lives()
