"""How much of the PC QEMU may take: the least while it works, enough when it must get out.

Before QEMU runs its first instruction: `nice -n 19`, the idle I/O class (ionice(1)) and the
scheduling class SCHED_IDLE (chrt(1)), each where the system has it. So every thread QEMU ever
makes is born with it.

The same modesty would be wrong for giving the PC back: a thread in SCHED_IDLE waits for seconds
beside a busy program, and with it the order to stop. So before pausing and saving the threads
are lifted to the ordinary class, where the agent may do that (root), and lowered before resuming.

CPU cap: a control group with a quota. Source: Linux, cgroup v1 `cpu.cfs_quota_us`
(scheduler/sched-bwc.rst) and cgroup v2 `cpu.max` (admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

import psutil

from officegrid.agent.drivers.base import VmSettings

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
NICE_LEAST = 19
_GROUP_PREFIX = "officegrid-"
_REMOVE_TRIES = 50
_REMOVE_PAUSE_S = 0.01


def modest(command: list[str]) -> list[str]:
    """The command, started by programs that lower their own priority and then become it."""
    words: list[str] = []
    if shutil.which("nice"):
        # Added to the agent's own, which may be raised; the kernel cuts at the lowest.
        words += ["nice", "-n", str(NICE_LEAST + 20)]
    if sys.platform.startswith("linux"):
        words += ["ionice", "-c", "3"] if shutil.which("ionice") else []
        words += ["chrt", "-i", "0"] if shutil.which("chrt") else []
    elif sys.platform == "darwin" and shutil.which("taskpolicy"):
        words += ["taskpolicy", "-b"]
    return words + command


def lift(pid: int) -> bool:
    """All threads to ordinary priority, of CPU and disk. False where that is not allowed.

    The disk's anybody may raise: in the idle class a save beside a busy disk would never end."""
    if not sys.platform.startswith("linux"):
        return False
    lifted = True
    for thread in _threads(pid):
        _set_io_class(thread, psutil.IOPRIO_CLASS_BE, 4)
        try:
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, thread, 0)
        except ProcessLookupError:
            continue
        except OSError:
            lifted = False
    return lifted


def lower(pid: int) -> None:
    """The opposite of `lift`; always allowed."""
    if not sys.platform.startswith("linux"):
        return
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, NICE_LEAST)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        _set_io_class(thread, psutil.IOPRIO_CLASS_IDLE)


def _set_io_class(thread: int, io_class: int, level: int | None = None) -> None:
    with contextlib.suppress(psutil.Error, OSError):
        psutil.Process(thread).ionice(io_class, level)


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


class CpuCap:
    """The control group of one VM; all of it does nothing when no cap is wanted."""

    def __init__(self, settings: VmSettings, root: Path = CGROUPS) -> None:
        self.wanted = settings.cpu_cap_percent < 100
        self._quota_us = settings.cpu_cap_percent * settings.cpus * PERIOD_US // 100
        mark = hashlib.sha256(str(settings.folder).encode()).hexdigest()[:12]
        self._root = root
        self._v1 = (root / "cpu" / "cpu.cfs_quota_us").exists()
        self._group = (root / "cpu" if self._v1 else root) / f"{_GROUP_PREFIX}{mark}"

    def obstacle(self) -> str:
        """Why CPU time cannot be capped here; empty when it can."""
        if not sys.platform.startswith("linux"):
            return "CPU time cannot be capped on this system."
        if not self._v1 and not (self._root / "cgroup.controllers").exists():
            return f"There are no CPU control groups below {self._root}."
        if not os.access(self._group.parent, os.W_OK):
            return f"The agent may not make control groups in {self._group.parent}."
        return ""

    def apply(self, pid: int) -> str:
        """Put QEMU under its quota; returns why not, empty when done."""
        if not self.wanted:
            return ""
        if reason := self.obstacle():
            return reason
        try:
            if not self._v1:
                (self._root / "cgroup.subtree_control").write_text("+cpu")
            self._group.mkdir(exist_ok=True)
            self._write(self._quota_us)
            (self._group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            return f"CPU time cannot be capped: {error.strerror or error}."
        return ""

    def suspend(self) -> None:
        """No quota while QEMU saves: it must be gone soon."""
        if self.wanted and self._group.exists():
            with contextlib.suppress(OSError):
                self._write(-1)

    def restore(self) -> None:
        if self.wanted and self._group.exists():
            with contextlib.suppress(OSError):
                self._write(self._quota_us)

    def remove(self) -> None:
        """After the process is gone; the kernel takes a moment to notice that, too."""
        for _ in range(_REMOVE_TRIES):
            try:
                self._group.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(_REMOVE_PAUSE_S)

    def _write(self, quota_us: int) -> None:
        if self._v1:
            (self._group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self._group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            share = "max" if quota_us < 0 else str(quota_us)
            (self._group / "cpu.max").write_text(f"{share} {PERIOD_US}")
