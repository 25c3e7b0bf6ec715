"""Linux control groups: freeze, cap and kill a set of processes, whatever they fork.

Version 2 (one tree) and version 1 (one tree per controller) are both in use, and both at once;
each ability is taken from where it can be had. Sources: Linux documentation,
admin-guide/cgroup-v2 and cgroup-v1/{freezer-subsystem,memory,cgroups}; systemd's
CGROUP_DELEGATION for where others may make groups.

A group is made beneath the agent's own one, or beside it if systemd has handed the parent to us
(`Delegate=yes` with `DelegateSubgroup=`): version 2 gives limits only to groups whose parent
has no processes of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from officegrid.agent.drivers.process.keeper import KeeperError, Limits, born

assert sys.platform != "win32"

PERIOD_US = 100_000
V1_CONTROLLERS = ("freezer", "memory", "cpu")


@dataclass(frozen=True, slots=True)
class Bases:
    """Where groups may be made; None or missing: nowhere."""

    unified: Path | None
    unified_controllers: frozenset[str]
    """Of version 2, those that a group of ours can have."""
    v1: dict[str, Path]

    def can(self, ability: str) -> bool:
        """Is "freezer", "memory" or "cpu" to be had? Version 2 freezes without a controller."""
        in_v2 = self.unified is not None
        if ability == "freezer":
            return in_v2 or "freezer" in self.v1
        return (in_v2 and ability in self.unified_controllers) or ability in self.v1


def find_bases(proc: Path = Path("/proc/self")) -> Bases:
    """Look where this process is and what it may write. Changes nothing, never raises."""
    try:
        mounts = _mounts((proc / "mountinfo").read_text())
        own = _own((proc / "cgroup").read_text())
    except (OSError, ValueError):
        return Bases(None, frozenset(), {})
    v1 = {}
    for controller in V1_CONTROLLERS:
        if controller in mounts and controller in own:
            base = mounts[controller] / own[controller].lstrip("/")
            if os.access(base, os.W_OK):
                v1[controller] = base
    unified, controllers = None, frozenset[str]()
    if "" in mounts and "" in own:
        unified, controllers = _unified_base(mounts[""], mounts[""] / own[""].lstrip("/"))
    return Bases(unified, controllers, v1)


def _mounts(mountinfo: str) -> dict[str, Path]:
    """Mount point by controller, "" for version 2. Source: proc(5), mountinfo."""
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        point = Path(before.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault("", point)
        elif kind == "cgroup":
            for option in options.split(","):
                found.setdefault(option, point)
    return found


def _own(cgroup: str) -> dict[str, str]:
    """Own group by controller. Source: cgroups(7), /proc/pid/cgroup."""
    found = {}
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _unified_base(mount: Path, own: Path) -> tuple[Path | None, frozenset[str]]:
    fallback: Path | None = None
    for base in (own, own.parent):
        if base != mount and mount not in base.parents:
            break
        if not os.access(base / "cgroup.procs", os.W_OK) or not os.access(base, os.W_OK):
            continue
        if base != own and not _is_delegated(base):
            continue
        controllers = _possible_controllers(base, is_top=base == mount)
        if {"memory", "cpu"} <= controllers:
            return base, controllers
        fallback = fallback or base
    return fallback, frozenset()


def _is_delegated(base: Path) -> bool:
    if not Path("/run/systemd/system").exists():
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError, AttributeError):
            if os.getxattr(base, name) == b"1":  # type: ignore[attr-defined,unused-ignore]
                return True
    return False


def _possible_controllers(base: Path, *, is_top: bool) -> frozenset[str]:
    try:
        enabled = set((base / "cgroup.subtree_control").read_text().split())
        offered = set((base / "cgroup.controllers").read_text().split())
        empty = is_top or not (base / "cgroup.procs").read_text().strip()
    except OSError:
        return frozenset()
    return frozenset(enabled | (offered if empty else set()))


class ControlGroup:
    """One worker's group. Nothing exists until `create`; a new object finds it again."""

    def __init__(self, name: str, bases: Bases) -> None:
        self.bases = bases
        self._v2 = bases.unified / name if bases.unified is not None else None
        self._v1 = {
            controller: base / name
            for controller, base in bases.v1.items()
            if not (controller == "freezer" and self._v2)
            and controller not in bases.unified_controllers
        }

    def create(self, limits: Limits) -> list[Path]:
        """Make it with its limits; returns the files that a process joins by writing "0"."""
        try:
            if self._v2 is not None:
                self._enable_controllers(self._v2.parent)
            for folder in self._folders():
                folder.mkdir(exist_ok=True)
            self._set_limits(limits)
            self.weigh(as_others=False)
        except OSError as error:
            raise KeeperError(f"The control group cannot be made: {error}") from error
        return [folder / "cgroup.procs" for folder in self._folders()]

    def members(self) -> tuple[int, ...]:
        """Live processes in it; () if it does not exist."""
        found: set[int] = set()
        for folder in self._folders():
            with suppress(OSError):
                found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
        return tuple(sorted(pid for pid in found if born(pid) is not None))

    def is_frozen(self) -> bool:
        try:
            if self._v2 is not None:
                return "frozen 1" in (self._v2 / "cgroup.events").read_text()
            return (self._v1["freezer"] / "freezer.state").read_text().strip() == "FROZEN"
        except (OSError, KeyError):
            return False

    def freeze(self, timeout_s: float) -> None:
        # Version 1 gives up silently when a process forks meanwhile: the word is written again.
        self._write_freezer("1", "FROZEN")
        if not _until(self.is_frozen, timeout_s, lambda: self._write_freezer("1", "FROZEN")):
            raise KeeperError("The kernel has not frozen the processes; one is busy in a driver.")

    def thaw(self, timeout_s: float) -> None:
        self._write_freezer("0", "THAWED")
        if not _until(lambda: not self.is_frozen(), timeout_s):
            raise KeeperError("The kernel has not thawed the processes.")

    def kill(self, timeout_s: float) -> None:
        """End every process in it, then remove the group."""
        if not self.members():
            return self.remove()
        if self._v2 is None or not _written(self._v2 / "cgroup.kill", "1"):
            # Frozen first, so that nothing forks away between being listed and being killed.
            with suppress(KeeperError):
                self.freeze(timeout_s / 2)
            for pid in self.members():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        # The dead of version 1 stay frozen until they are thawed.
        with suppress(KeeperError):
            self.thaw(timeout_s / 2)
        if not _until(lambda: not self.members(), timeout_s):
            raise KeeperError("Some processes do not die; one is busy in a driver.")
        return self.remove()

    def remove(self) -> None:
        """Remove the empty group; what cannot be removed now is used again by `create`."""

        def removed() -> bool:
            for folder in self._folders():
                with suppress(OSError):
                    folder.rmdir()
            return not any(folder.exists() for folder in self._folders())

        _until(removed, 1.0)

    def exists(self) -> bool:
        return any(folder.exists() for folder in self._folders())

    def _folders(self) -> list[Path]:
        return [folder for folder in (self._v2, *self._v1.values()) if folder is not None]

    def _enable_controllers(self, base: Path) -> None:
        for controller in self.bases.unified_controllers & {"memory", "cpu"}:
            (base / "cgroup.subtree_control").write_text(f"+{controller}")

    def _set_limits(self, limits: Limits) -> None:
        most, quota = limits.memory_mb << 20, max(1000, int(limits.cpus * PERIOD_US))
        if self._v2 is not None and "memory" in self.bases.unified_controllers:
            (self._v2 / "memory.max").write_text(str(most))
            _written(self._v2 / "memory.swap.max", "0")
        elif "memory" in self._v1:
            # The second file is there only where swap is accounted; it may not be below the first.
            _written(self._v1["memory"] / "memory.memsw.limit_in_bytes", "-1")
            (self._v1["memory"] / "memory.limit_in_bytes").write_text(str(most))
            _written(self._v1["memory"] / "memory.memsw.limit_in_bytes", str(most))
        if self._v2 is not None and "cpu" in self.bases.unified_controllers:
            (self._v2 / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        elif "cpu" in self._v1:
            (self._v1["cpu"] / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self._v1["cpu"] / "cpu.cfs_quota_us").write_text(str(quota))

    def weigh(self, *, as_others: bool) -> None:
        """CPU weight like that of an ordinary program's group, or the least there is."""
        if self._v2 is not None and "cpu" in self.bases.unified_controllers:
            _written(self._v2 / "cpu.weight", "100" if as_others else "1")
        elif "cpu" in self._v1:
            _written(self._v1["cpu"] / "cpu.shares", "1024" if as_others else "2")

    def _write_freezer(self, v2: str, v1: str) -> None:
        try:
            if self._v2 is not None:
                (self._v2 / "cgroup.freeze").write_text(v2)
            elif "freezer" in self._v1:
                (self._v1["freezer"] / "freezer.state").write_text(v1)
        except OSError as error:
            raise KeeperError(f"The control group cannot be frozen or thawed: {error}") from error


def _written(file: Path, text: str) -> bool:
    """Write what older kernels lack; False: it is not there, or refuses."""
    try:
        file.write_text(text)
    except OSError:
        return False
    return True


def _until(
    condition: Callable[[], bool], within_s: float, again: Callable[[], None] = lambda: None
) -> bool:
    deadline = time.monotonic() + within_s
    delay_s = 0.0005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.02)
        again()
    return True
