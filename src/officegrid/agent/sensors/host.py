"""How busy this PC is with other people's work, whether it runs on battery, what memory is left.

Foreign CPU is the busy share of all cores over the last seconds, less what our own process trees
used in that time. A process counts with the children it has already waited for, so that the sum
over a tree stays right when short-lived children come and go. Waiting for the disk counts as
idle, and so does what a hypervisor below us took away. Low priority is no excuse: only our own
processes are subtracted, another's `nice` job is a use of this PC.

Reading costs microseconds: what is dear is looked up at most once a second, process trees every
five, the power supply every two.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from officegrid.agent.sensors.base import HostReading

Value = TypeVar("Value")

SAMPLE_EVERY_S = 1.0
FIRST_SPAN_S = 0.5
SPAN_S = 3.0
TREE_EVERY_S = 5.0
POWER_EVERY_S = 2.0
MEBIBYTE = 1024 * 1024
POWER_SUPPLIES = Path("/sys/class/power_supply")


@dataclass(frozen=True, slots=True)
class Used:
    """One of our processes: seconds of CPU so far, waited-for children included."""

    cpu_s: float
    parent: int
    created_s: float
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class CpuSample:
    """The counters at one moment; seconds summed over all cores."""

    at_s: float
    wall_s: float
    total_s: float
    busy_s: float
    own: dict[int, Used]


def foreign_share(before: CpuSample, after: CpuSample) -> float | None:
    """Share of all cores (0 to 1) that others used between two samples; None: no time passed."""
    total_s = after.total_s - before.total_s
    if total_s <= 0:
        return None
    busy_s = max(0.0, after.busy_s - before.busy_s)
    return min(1.0, max(0.0, busy_s - own_cpu_s(before, after)) / total_s)


def own_cpu_s(before: CpuSample, after: CpuSample) -> float:
    """Seconds of CPU that our processes used between two samples."""
    used_s = 0.0
    for pid, now in after.own.items():
        then = before.own.get(pid)
        if then is not None and then.created_s == now.created_s:
            used_s += now.cpu_s - then.cpu_s
        elif now.created_s >= before.wall_s:
            used_s += now.cpu_s
    for pid, then in before.own.items():
        # Waited for: its whole life was added to its parent's children, the part before too.
        if pid not in after.own and then.parent in after.own:
            used_s -= then.cpu_s
    return max(0.0, used_s)


class HostSensor:
    """Reads with psutil; the sensor of every operating system."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[CpuSample] = deque()
        self._roots: frozenset[int] = frozenset()
        self._tree: list[psutil.Process] = []
        self._tree_at_s = float("-inf")
        self._on_battery: bool | None = None
        self._power_at_s = float("-inf")
        self._last = HostReading(foreign_cpu=None, on_battery=None, memory_free_mb=None)

    def read(self, own_pids: Iterable[int]) -> HostReading:
        """Never raises; see `sensors.base.HostSensor`. `foreign_cpu` is None until two samples
        half a second apart are there."""
        now_s = self._clock()
        roots = frozenset(own_pids)
        if self._samples:
            since_s = now_s - self._samples[-1].at_s
            wait_s = SAMPLE_EVERY_S if len(self._samples) > 1 else FIRST_SPAN_S
            if roots == self._roots and 0 <= since_s < wait_s:
                return self._last
        self._follow(roots, now_s)
        sample = self._sample(now_s)
        self._last = HostReading(
            foreign_cpu=self._share(sample),
            on_battery=self._battery(now_s),
            memory_free_mb=_memory_free_mb(sample, except_pid=os.getpid()),
        )
        return self._last

    def _share(self, sample: CpuSample | None) -> float | None:
        if sample is None:
            self._samples.clear()
            return None
        samples = self._samples
        if samples and sample.at_s - samples[-1].at_s < FIRST_SPAN_S:
            # Only our processes changed: ten milliseconds' ticks say nothing about so short a time.
            return self._last.foreign_cpu
        while len(samples) > 1 and sample.at_s - samples[1].at_s >= SPAN_S:
            samples.popleft()
        share = foreign_share(samples[0], sample) if samples else None
        samples.append(sample)
        return share

    def _follow(self, roots: frozenset[int], now_s: float) -> None:
        """Look up the process trees of ours, at most every few seconds."""
        if roots == self._roots and now_s - self._tree_at_s < TREE_EVERY_S:
            return
        self._roots, self._tree_at_s = roots, now_s
        found: dict[int, psutil.Process] = {}
        for pid in roots:
            root = _or_none(lambda pid=pid: psutil.Process(pid))  # type: ignore[misc]
            if root is not None:
                children = _or_none(lambda root=root: root.children(recursive=True)) or []  # type: ignore[misc]
                found.update({process.pid: process for process in (root, *children)})
        # The agent's own commands are ours; they end soon, and then count as its children.
        own = _or_none(psutil.Process)
        if own is not None:
            found.setdefault(own.pid, own)
        self._tree = list(found.values())

    def _sample(self, now_s: float) -> CpuSample | None:
        own = {process.pid: used for process in self._tree if (used := _used(process))}
        times = _or_none(psutil.cpu_times)
        if times is None:
            return None
        # Guest time is part of `user` already, and Windows' interrupts of `system`.
        twice = ("guest", "guest_nice", "interrupt", "dpc")
        counted = {name: s for name, s in times._asdict().items() if name not in twice}
        total_s = sum(counted.values())
        idle_s = sum(counted.get(name, 0.0) for name in ("idle", "iowait", "steal"))
        return CpuSample(now_s, time.time(), total_s, total_s - idle_s, own)

    def _battery(self, now_s: float) -> bool | None:
        if now_s - self._power_at_s >= POWER_EVERY_S:
            self._power_at_s = now_s
            if sys.platform == "linux":
                self._on_battery = linux_on_battery(POWER_SUPPLIES)
            else:
                self._on_battery = _psutil_on_battery()
        return self._on_battery


def open_host_sensor() -> HostSensor:
    """The sensor of this PC."""
    return HostSensor()


def linux_on_battery(supplies: Path) -> bool | None:
    """Does this PC live on its battery? None: cannot tell.

    Reads `type`, `scope`, `online`, `present` and `status` below /sys/class/power_supply (Linux,
    Documentation/ABI/testing/sysfs-class-power). The battery of a mouse or a headset
    (scope "Device") is not this PC's.
    """
    try:
        folders = sorted(supplies.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return None
    mains: list[str] = []
    batteries: list[str] = []
    for folder in folders:
        kind = _word(folder / "type")
        if _word(folder / "scope") == "device":
            continue
        if kind == "battery" and _word(folder / "present") != "0":
            batteries.append(_word(folder / "status"))
        elif kind in ("mains", "usb"):
            mains.append(_word(folder / "online"))
    if not batteries or "1" in mains:
        return False
    if "discharging" in batteries or "0" in mains:
        return True
    return False if set(batteries) <= {"charging", "full", "not charging"} else None


def _psutil_on_battery() -> bool | None:
    try:
        battery = psutil.sensors_battery()
    except Exception:  # what a platform raises here is not documented
        return None
    if battery is None:
        return False
    return None if battery.power_plugged is None else not battery.power_plugged


def _used(process: psutil.Process) -> Used | None:
    """None: it is gone."""
    try:
        with process.oneshot():
            times = process.cpu_times()
            cpu_s = times.user + times.system
            cpu_s += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            return Used(
                cpu_s=cpu_s, parent=process.ppid(), created_s=process.create_time(),
                rss_bytes=process.memory_info().rss,
            )  # fmt: skip
    except (psutil.Error, OSError):
        return None


def _memory_free_mb(sample: CpuSample | None, *, except_pid: int) -> int | None:
    memory = _or_none(psutil.virtual_memory)
    if memory is None:
        return None
    own = sample.own if sample is not None else {}
    ours = sum(used.rss_bytes for pid, used in own.items() if pid != except_pid)
    return int(memory.available + ours) // MEBIBYTE


def _or_none(look: Callable[[], Value]) -> Value | None:
    try:
        return look()
    except (psutil.Error, OSError, RuntimeError):
        return None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().lower()
    except OSError:
        return ""
