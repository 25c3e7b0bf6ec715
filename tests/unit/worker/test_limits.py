"""What a program's processes are, and how much memory they take, while they come and go."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from program_runs import wait_until

from officegrid.worker import limits
from officegrid.worker.limits import MemoryWatch, process_tree

LOOKS = 300
RESTLESS = """
import threading
blob = b"x" * 80_000_000
print("up", flush=True)
while True:
    threads = [threading.Thread(target=len, args=(blob,)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""


@contextlib.contextmanager
def running(source: str) -> Iterator[tuple[int, str]]:
    """A Python of its own: its pid, and the first line that it says."""
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_process_whose_threads_come_and_go_is_never_taken_for_gone() -> None:
    with running(RESTLESS) as (pid, _):
        for _ in range(LOOKS):
            assert [one.pid for one in process_tree(pid)] == [pid]


def test_its_memory_is_counted_at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCH_EVERY_S", 0.0)
    with running(RESTLESS) as (pid, _):
        small, large = MemoryWatch(pid, 40), MemoryWatch(pid, 4000)
        for _ in range(LOOKS):
            assert small.exceeded()
        assert not large.exceeded()


def test_a_child_that_goes_over_to_another_thread_is_not_overlooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that started it ends after the main thread was read, as having no child: the
    child is the main thread's from then on."""
    end, started = threading.Event(), threading.Event()
    children: list[subprocess.Popen[bytes]] = []
    threads: list[int] = []

    def start() -> None:
        children.append(subprocess.Popen(["sleep", "60"], process_group=0))
        threads.append(threading.get_native_id())
        started.set()
        end.wait(30)

    starter = threading.Thread(target=start)
    starter.start()
    assert started.wait(30)
    mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    assert str(children[0].pid) not in mine.read_text().split()
    read = Path.read_text

    def read_and_end(path: Path, *rest: str) -> str:
        text = read(path, *rest)
        if path == mine and not end.is_set():
            end.set()
            starter.join()
            gone = Path(f"/proc/{os.getpid()}/task/{threads[0]}")
            wait_until(lambda: not gone.exists(), "the thread has ended")
        return text

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", read_and_end)
            tree = process_tree(os.getpid())
        assert end.is_set()
        assert children[0].pid in [one.pid for one in tree]
    finally:
        end.set()
        starter.join()
        children[0].kill()
        children[0].wait()


def test_children_belong_to_the_tree_and_whoever_is_gone_has_none() -> None:
    with running(PARENT) as (pid, child):
        assert [one.pid for one in process_tree(pid)] == [pid, int(child)]
        assert MemoryWatch(pid, 1).exceeded()
    assert process_tree(pid) == []
    assert not MemoryWatch(pid, 1).exceeded()
