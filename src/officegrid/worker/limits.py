"""Limits on the processes of a user's program: memory, core dumps, and their worker's death.

Two limits guard memory. `RLIMIT_DATA` makes an allocation fail inside one process, at once. The
`MemoryWatch` looks at the whole process tree once a second and catches what the first cannot see:
many processes that are each small, and shared mappings.

psutil is loaded when a program has processes of its own, or has to be killed: the common case, a
single process, is read from /proc (proc(5): `children`, `statm`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MEGABYTE = 1_000_000  # as job files and their documentation count
WATCH_EVERY_S = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def limit_process(pid: int, memory_mb: int) -> None:
    """Limit a process that has just been started; one that has already ended is left alone."""
    limit = memory_mb * MEGABYTE
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


class MemoryWatch:
    """Watches the memory of a process and all its descendants."""

    def __init__(self, pid: int, memory_mb: int) -> None:
        self._pid = pid
        self._limit_bytes = memory_mb * MEGABYTE
        self._next_look = 0.0

    def exceeded(self) -> bool:
        """Is the tree over its limit? Looks at most once a second, and is False in between."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + WATCH_EVERY_S
        if 0 <= _bytes_if_alone(self._pid) <= self._limit_bytes:
            return False
        tree = process_tree(self._pid)
        if sum(_resident_bytes(process) for process in tree) <= self._limit_bytes:
            return False
        # Pages shared after a fork were counted once per process: count them once in all.
        return sum(_proportional_bytes(process) for process in tree) > self._limit_bytes


def _bytes_if_alone(pid: int) -> int:
    """Resident memory of a process that has no children; -1 if it has, or if it is gone."""
    try:
        if not _is_childless(pid):
            return -1
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return -1


def _is_childless(pid: int) -> bool:
    """For certain, by the kernel's own list, which spares a walk over all processes of the machine.

    False also where that list cannot be had, and when a thread ended before its part was read: its
    children are then another thread's, maybe of one that had none a moment ago.
    """
    folder = Path(f"/proc/{pid}/task")
    try:
        tasks = os.listdir(folder)
        has_some = any((folder / task / "children").read_text().strip() for task in tasks)
    except OSError:
        return False
    return bool(tasks) and not has_some


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and its living descendants; empty if it is gone."""
    import psutil

    try:
        root = psutil.Process(pid)
        if _is_childless(pid):
            return [root]
        return [root, *root.children(recursive=True)]
    except (psutil.Error, OSError):
        return []


def _resident_bytes(process: psutil.Process) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _proportional_bytes(process: psutil.Process) -> int:
    import psutil

    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return _resident_bytes(process)
    except (psutil.Error, AttributeError):
        return 0


class Warden:
    """The side process that kills guarded process groups when this process dies.

    It is started with the first group and lives in a process group of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def start(self) -> None:
        """Have the side process ready before a program starts: unguarded time is then shortest."""
        with self._lock:
            self._running()

    def guard(self, group: int) -> None:
        """Kill this process group when this process dies."""
        with self._lock:
            self._groups.add(group)
            if self._running():
                self._tell(f"+{group}\n")

    def _running(self) -> bool:
        """True if it runs already; else it is started, and told all groups."""
        if self._process is not None and self._process.poll() is None:
            return True
        script = Path(__file__).with_name("warden.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        atexit.register(self._end, self._process)
        self._tell("".join(f"+{known}\n" for known in self._groups))
        return False

    def release(self, group: int) -> None:
        with self._lock:
            self._groups.discard(group)
            self._tell(f"-{group}\n")

    def stop(self) -> None:
        """Before this process becomes another program: nobody else would wait for its warden."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        """At the end of this process: the warden kills what is still guarded, and exits."""
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)

    def _tell(self, text: str) -> None:
        # A warden that was killed is replaced at the next `guard`, which names all groups again.
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()


warden = Warden()
