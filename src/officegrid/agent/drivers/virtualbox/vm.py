"""Our VM as VirtualBox sees it now: which one it is, its state, its processes, and waiting.

State is read by `showvminfo --machinereadable` only: it takes no lock on a stopped VM, while
`controlvm` and `guestproperty` would take an exclusive one and make a start fail.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.virtualbox import parse, processes
from officegrid.agent.drivers.virtualbox.locate import find_vboxmanage
from officegrid.agent.drivers.virtualbox.manage import (
    Manage,
    Reply,
    failure,
    ipc_id,
    registry_environment,
)
from officegrid.agent.drivers.virtualbox.options import Options
from officegrid.agent.drivers.virtualbox.record import (
    Machine,
    VmLock,
    load_machine,
    record_mark,
    store_machine,
)
from officegrid.agent.drivers.virtualbox.versions import Version, parse_version
from officegrid.agent.drivers.virtualbox.vmlog import VmLog, process_id, read_log
from officegrid.core.vm import DriverError, Trouble, VmState

OWNER_KEY = "OfficeGrid/owner"
RESTING = frozenset({VmState.ABSENT, VmState.OFF, VmState.SAVED})
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Sight:
    """What showvminfo said at one moment."""

    state: VmState
    word: str
    """VirtualBox's own; "" if there is no such VM."""
    info: dict[str, str]

    @property
    def log_folder(self) -> str | None:
        return self.info.get("LogFldr")

    @property
    def has_saved_state(self) -> bool:
        return self.word in parse.HAS_SAVED_STATE


class Vm:
    """See the module. Methods raise DriverError unless they say otherwise."""

    def __init__(self, settings: VmSettings, options: Options) -> None:
        self.settings = settings
        self.options = options
        self.folder = settings.folder
        self.machines = settings.folder / "machines"
        """Where the VM's own folder is made: disk, saved states, logs."""
        self.environment = registry_environment(settings.folder, options.registry)
        self.lock = VmLock(settings.folder)
        self.owner = ipc_id(settings.folder)
        self._recording = threading.RLock()
        self._record_mark = record_mark(settings.folder)
        self._machine: Machine | None = load_machine(settings.folder)
        self._version: tuple[tuple[str, int], Version] | None = None
        self._pids: tuple[int, ...] = ()
        self.priority_problem = ""

    # -- VBoxManage ---------------------------------------------------------------------------

    @property
    def manage(self) -> Manage:
        program = find_vboxmanage(self.options.vboxmanage or None)
        if program is None:
            raise DriverError(
                Trouble.MISSING,
                "VirtualBox is not installed on this machine.",
                f"VBoxManage was not found{_where(self.options.vboxmanage)}.",
                "Install VirtualBox 7.1 or 7.2 (without the Extension Pack).",
            )
        return Manage(program, self.environment)

    def change(self, what: str, *arguments: str) -> Reply:
        """A call that must succeed; `what` is the sentence if it does not."""
        reply = self.manage.call_patiently(*arguments, timeout_s=self.options.change_timeout_s)
        if not reply.ok:
            raise failure(what, reply)
        return reply

    def version(self) -> Version:
        manage = self.manage
        key = (str(manage.program), manage.program.stat().st_mtime_ns)
        if self._version is None or self._version[0] != key:
            reply = manage.call("--version", timeout_s=self.options.poll_timeout_s)
            version = parse_version(reply.stdout)
            if version is None:
                raise DriverError(
                    Trouble.MISSING,
                    "VBoxManage does not say which version it is.",
                    reply.words,
                    "Repair or reinstall VirtualBox.",
                )
            self._version = (key, version)
        return self._version[1]

    # -- which VM -----------------------------------------------------------------------------

    @property
    def machine(self) -> Machine | None:
        return self._machine

    @property
    def is_aside(self) -> bool:
        """Does it wait for the next import, absent for all else?"""
        return self._machine is not None and bool(self._machine.aside)

    def read_record(self) -> None:
        """What another driver object for this VM may have written since."""
        with self._recording:
            mark = record_mark(self.folder)
            if mark is not None and mark != self._record_mark:
                self._machine, self._record_mark = load_machine(self.folder), mark

    def remember(self, machine: Machine | None) -> None:
        with self._recording:
            store_machine(self.folder, machine)
            self._machine, self._record_mark = machine, record_mark(self.folder)

    def remember_also(self, **changed: str) -> None:
        """Fields of the record."""
        with self._recording:
            known = self._machine
            if known is not None and (fresh := replace(known, **changed)) != known:
                self.remember(fresh)

    @property
    def uuid(self) -> str:
        if self._machine is None:
            raise gone(self.settings.name)
        return self._machine.uuid

    @property
    def mark(self) -> str:
        """The extra data OWNER_KEY of our VM: which agent's it is, and which VM that agent made."""
        return f"{self.owner} {self.uuid}"

    def look(self) -> Sight:
        """The VM as it is, also one that is set aside; ABSENT if there is none of ours."""
        self.read_record()
        if self._machine is None:
            named = self.look_by_name()
            return named if self._machine is not None else Sight(VmState.ABSENT, "", named.info)
        return self.sight_of(self._machine.uuid)

    def look_by_name(self) -> Sight:
        """The VM of our name, whoever made it; taken for ours if it carries our mark or lies in
        our folder (its record was lost)."""
        sight = self.sight_of(self.settings.name)
        uuid = sight.info.get("UUID", "").lower()
        if uuid and self.is_ours(uuid, sight):
            self.remember(Machine(uuid, self.settings.name))
        return sight

    def sight_of(self, target: str) -> Sight:
        """Any VM, by UUID or name."""
        manage, timeout_s = self.manage, self.options.poll_timeout_s
        arguments = ("showvminfo", target, "--machinereadable")
        reply = manage.call(*arguments, timeout_s=timeout_s)
        if reply.code == parse.INVALID_OBJECT_STATE or reply.code == parse.ACCESS_DENIED:
            reply = manage.call_patiently(*arguments, timeout_s=timeout_s)
        if reply.code == parse.OBJECT_NOT_FOUND:
            return Sight(VmState.ABSENT, "", {})
        info = parse.machine_readable(reply.stdout)
        if info.get("name") == parse.INACCESSIBLE:
            return Sight(VmState.BROKEN, "inaccessible", info)
        word = info.get("VMState", "")
        if not word:
            raise failure("VirtualBox does not tell the state of the VM.", reply)
        return Sight(parse.vm_state(word), word, info)

    def is_ours(self, uuid: str, sight: Sight) -> bool:
        """Did this agent make it? A copy of our VM carries our mark, but the original's UUID in
        it. One without a UUID (of an earlier release, or of an import that was cut off before the
        mark) is ours where it lies in our folder."""
        reply = self.manage.call(
            "getextradata", uuid, OWNER_KEY, timeout_s=self.options.poll_timeout_s
        )
        owner, _, marked = (parse.extra_value(reply.stdout) or "").partition(" ")
        if marked and (marked != uuid or owner == self.owner):
            return marked == uuid
        settings_file = sight.info.get("CfgFile")
        return bool(settings_file) and (
            Path(str(settings_file)).resolve().is_relative_to(self.machines.resolve())
        )

    # -- processes ----------------------------------------------------------------------------

    def pids(self, sight: Sight | None = None, *, search: bool = False) -> tuple[int, ...]:
        """The VM's processes: those known, else the one its log names, else by a search."""
        if self._machine is None:
            return ()
        uuid = self._machine.uuid
        alive = tuple(pid for pid in self._pids if processes.is_vm_process(pid, uuid))
        if (alive != self._pids or not alive) and sight is not None:
            logged = process_id(read_log(sight.log_folder).head)
            if logged is not None and processes.is_vm_process(logged, uuid):
                search = search or logged not in alive
        if search:
            alive = processes.vm_processes(uuid)
        self._pids = alive
        return alive

    def kill(self) -> int:
        """End the VM's processes, each verified; how many were ended."""
        return processes.end_vm_processes(self.uuid, self.pids(search=True))

    def log(self, sight: Sight) -> VmLog:
        return read_log(sight.log_folder)

    # -- waiting and checking -----------------------------------------------------------------

    def wait(self, done: Callable[[Sight], bool], timeout_s: float) -> Sight:
        """Look until `done`, at most so long; the last sight, whether done or not."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            sight = self.look()
            if done(sight) or time.monotonic() >= deadline_s:
                return sight
            time.sleep(_POLL_S)

    def wait_for_process_end(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while self.pids(search=True):
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        return True

    def require_disk(self, purpose: str) -> None:
        """Raises DISK_FULL unless the guest's memory fits on the disk, with a margin."""
        wanted_mb = self.settings.memory_mb + self.options.disk_margin_mb
        free_mb = free_disk_mb(self.folder)
        if free_mb < wanted_mb:
            raise DriverError(
                Trouble.DISK_FULL,
                f"There is not enough disk space to {purpose} the VM.",
                f"{free_mb} MB are free at {self.folder}, {wanted_mb} MB are needed: the guest's "
                "memory, which a save writes there, and a margin.",
                "Free some space, or lower memory_mb in agent.toml.",
            )


def free_disk_mb(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free // (1024 * 1024)


def gone(name: str) -> DriverError:
    return DriverError(
        Trouble.GONE,
        f"There is no VM {name!r} of Office Grid in VirtualBox.",
        "It was not imported yet, or somebody deleted it.",
        "The agent imports it from the image.",
    )


def _where(chosen: str) -> str:
    return f" at {chosen}" if chosen else " in any of the usual places"
