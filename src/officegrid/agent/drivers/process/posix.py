"""Keeps a worker's processes on Linux and macOS: control groups where they can be had, else
signals to the whole process tree.

With signals, SIGSTOP goes to every process of the tree again and again until a look at it finds
no new ones and all stopped: a process may fork while its neighbour is being stopped. What a
program has detached on purpose (its own session, its parent gone) is found by the mark in its
environment when the worker is killed.

To stop, and to die, a process must get the CPU for a moment; at the lowest priority beside busy
programs it waits for that. So before either its priority is made an ordinary one, where the agent
may do that (root), and low again before it goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from officegrid.agent.drivers.command import CommandProblem, run
from officegrid.agent.drivers.process import cgroups, launch
from officegrid.agent.drivers.process.keeper import (
    KeeperError,
    Limits,
    Root,
    born,
    drop_note,
    lives,
    load_note,
)

assert sys.platform != "win32"

MARK = "OFFICEGRID_NATIVE_WORKER"
LAUNCH_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 5.0


def open_groups(name: str, folder: Path) -> cgroups.ControlGroup | None:
    """The group of this worker, if this machine can at least freeze one; the folder's hash keeps
    two agents apart."""
    if sys.platform != "linux":
        return None
    bases = cgroups.find_bases()
    return cgroups.ControlGroup(group_name(name, folder), bases) if bases.can("freezer") else None


def group_name(name: str, folder: Path) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return f"officegrid-{plain}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


class PosixKeeper:
    """See `keeper.Keeper`."""

    def __init__(self, name: str, folder: Path, groups: cgroups.ControlGroup | None) -> None:
        self._folder = folder
        self._mark = group_name(name, folder)
        self._groups = groups
        self._looked_for_orphans_of: Root | None = None
        self._orphans: tuple[int, ...] = ()

    def weaknesses(self) -> list[str]:
        def can(ability: str) -> bool:
            return self._groups is not None and self._groups.bases.can(ability)

        found = []
        if not can("freezer"):
            found.append("Its processes are stopped one by one, not frozen as a whole.")
        if not can("memory"):
            found.append("Its memory is capped for each process, not as a whole.")
        if not can("cpu"):
            found.append("Its CPU share is not capped; it only has the lowest priority.")
        return found

    def caps_cpu(self) -> bool:
        return self._groups is not None and self._groups.bases.can("cpu")

    def launch(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, limits: Limits
    ) -> None:
        joins = self._groups.create(limits) if self._groups is not None else []
        capped = self._groups is not None and self._groups.bases.can("memory")
        order = {
            "argv": list(argv),
            "env": {**env, MARK: self._mark},
            "folder": str(self._folder),
            "log": str(log),
            "groups": [str(path) for path in joins],
            "subreaper": self._groups is None,
            "data_bytes": None if capped else limits.memory_mb << 20,
        }
        try:
            finished = run(
                [sys.executable, "-m", launch.__name__],
                timeout_s=LAUNCH_TIMEOUT_S, input=json.dumps(order),
            )  # fmt: skip
        except CommandProblem as error:
            self.kill()
            raise KeeperError(str(error)) from error
        if finished.exit_code:
            self.kill()
            raise KeeperError(finished.stderr.strip() or "The worker could not be started.")

    def root_lives(self) -> bool:
        return lives(load_note(self._folder))

    def members(self) -> tuple[int, ...]:
        found = set(self._tree())
        if self._groups is not None:
            found |= set(self._groups.members())
        elif not found:
            found |= set(self._find_orphans())
        return tuple(sorted(found))

    def _find_orphans(self) -> tuple[int, ...]:
        """What an ended worker has left. Looked for through all processes, which costs: once for
        each worker, and again only while there are some."""
        root = load_note(self._folder)
        if root is None:
            return ()
        if root != self._looked_for_orphans_of or self._orphans:
            self._orphans = tuple(self._family())
            self._looked_for_orphans_of = root
        return self._orphans

    def is_frozen(self) -> bool:
        if self._groups is not None:
            return self._groups.is_frozen()
        return all(_stopped(pid) for pid in self._tree())

    def freeze(self) -> None:
        self._set_priority(lowest=False)
        try:
            if self._groups is not None:
                self._groups.freeze(SETTLE_TIMEOUT_S)
            elif not self._stop_all():
                raise KeeperError("Not all processes have stopped; one is busy in a driver.")
        except KeeperError:
            self._set_priority(lowest=True)
            raise

    def thaw(self) -> None:
        self._set_priority(lowest=True)
        if self._groups is not None:
            self._groups.thaw(SETTLE_TIMEOUT_S)
            return
        # The first process last: it may look after the others as soon as it runs.
        for pid in reversed(self._tree()):
            _signal(pid, signal.SIGCONT)

    def kill(self) -> None:
        self._set_priority(lowest=False)
        if self._groups is not None:
            self._groups.kill(SETTLE_TIMEOUT_S)
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while left := self._family():
            # Stopped first, so that nothing forks away between being listed and being killed.
            for sent in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    _signal(pid, sent)
            if time.monotonic() > deadline:
                raise KeeperError("Some processes do not die; one is busy in a driver.")
            time.sleep(0.005)
        drop_note(self._folder)

    def _set_priority(self, *, lowest: bool) -> None:
        """Of every thread; what may not be changed stays as it is."""
        if self._groups is not None:
            self._groups.weigh(as_others=not lowest)
        if sys.platform != "linux":
            return
        policy, nice = (os.SCHED_IDLE, 19) if lowest else (os.SCHED_OTHER, 0)
        for pid in self.members():
            for thread in _threads(pid):
                with suppress(OSError):
                    os.sched_setscheduler(thread, policy, os.sched_param(0))
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, thread, nice)

    def _tree(self) -> list[int]:
        """The first process and its descendants, parents before children; [] once it is gone."""
        root = load_note(self._folder)
        if root is None or not lives(root):
            return []
        try:
            children = psutil.Process(root.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        pids = [root.pid, *(child.pid for child in children)]
        return [pid for pid in pids if born(pid) is not None]

    def _family(self) -> list[int]:
        """The tree, and whoever carries our mark: those that have left it."""
        found = self._tree()
        if self._groups is None:
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    marked = process.environ().get(MARK) == self._mark
                    if marked and process.pid not in found and born(process.pid) is not None:
                        found.append(process.pid)
        return found

    def _stop_all(self) -> bool:
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        told: set[int] = set()
        while time.monotonic() < deadline:
            tree = self.members()
            for pid in tree:
                if pid not in told:
                    _signal(pid, signal.SIGSTOP)
                    told.add(pid)
            # Looked at again after all are stopped: a child born before its parent stopped shows.
            if all(_stopped(pid) for pid in tree) and set(self.members()) <= told:
                return True
            time.sleep(0.001)
        return False


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
