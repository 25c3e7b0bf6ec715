"""The VM behind the driver: which one it is, what Hyper-V says of it, and what is remembered.

`machine.json` in the driver's folder holds the VM's id, so that it is found whatever its name has
become. Without it a VM counts as ours if its notes carry our mark with the VM's own id: a copy
(Import-VM -Copy -GenerateNewId, or an export) keeps the notes, and so the id of the original. One
without an id there, of an earlier release or of an import that was cut off, must lie in our folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import psutil

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv import scripts
from officegrid.agent.drivers.hyperv.options import Options
from officegrid.agent.drivers.hyperv.powershell import (
    PowerShell,
    ScriptError,
    ShellProblem,
    find_powershell,
    items,
)
from officegrid.agent.drivers.hyperv.states import name_of, sentence_of, state_of
from officegrid.agent.drivers.hyperv.troubles import GROUP_FIX, failure, gone
from officegrid.agent.log import get_logger
from officegrid.core.vm import DriverError, Trouble, VmState

log = get_logger("hyperv")

RECORD = "machine.json"
LOOK = "Hyper-V did not say how the VM is."
_GUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


@dataclass(frozen=True, slots=True)
class Machine:
    """What is remembered of our VM."""

    id: str
    name: str
    fitted: str = ""
    """The settings that it was last brought to."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What Hyper-V says of our VM at one moment."""

    state: VmState
    word: str = ""
    """Hyper-V's name of the state."""
    pids: tuple[int, ...] = ()
    config: str = ""
    """The VM's configuration file."""
    foreign: bool = False
    """ABSENT, and somebody else's VM has our name."""

    @property
    def sentence(self) -> str:
        if self.foreign:
            return "A VM of this name exists, but it is not ours."
        return sentence_of(self.word) if self.word else ""


class Vm:
    """See the module. Methods raise DriverError unless they say otherwise."""

    def __init__(self, settings: VmSettings, options: Options) -> None:
        self.settings = settings
        self.options = options
        self.place = settings.folder.absolute() / "hyperv"
        """Where the VM's files are made: its disk, its configuration, its saved state."""
        self.disk = self.place / "disk.vhdx"
        self.mark = (
            f"Office Grid worker VM; do not change this note. [{settings.folder.absolute()}]"
        )
        self._machine = _load(settings.folder)
        self._shells: dict[bool, PowerShell] = {}
        self._making = threading.Lock()
        self._warming = threading.Event()

    # -- PowerShell ---------------------------------------------------------------------------

    def shell(self, *, for_looking: bool) -> PowerShell:
        """Two of them, because a look must neither wait for a long save nor hold up a pause."""
        program = find_powershell(self.options.powershell)
        if program is None:
            where = f" at {self.options.powershell}" if self.options.powershell else ""
            raise DriverError(
                Trouble.MISSING,
                "Hyper-V cannot be used on this machine.",
                f"PowerShell was not found{where}; Hyper-V is a part of Windows.",
                "On other systems use QEMU, libvirt or VirtualBox.",
            )
        with self._making:
            known = self._shells.get(for_looking)
            if known is None or known.program != program:
                known = PowerShell(program, keep=self.options.keep_session)
                self._shells[for_looking] = known
            return known

    def run(
        self, what: str, body: str, timeout_s: float, cancel: threading.Event | None = None
    ) -> list[Any]:
        """Run a script that must succeed; `what` is the sentence if it does not."""
        try:
            return self.try_to(body, timeout_s, cancel)
        except (ScriptError, ShellProblem) as error:
            raise failure(what, error) from None

    def try_to(
        self, body: str, timeout_s: float, cancel: threading.Event | None = None
    ) -> list[Any]:
        """Like `run`, but raises ScriptError and ShellProblem as they come."""
        return self.shell(for_looking=False).run(body, timeout_s=timeout_s, cancel=cancel)

    def keep_warm(self) -> None:
        """Have PowerShell open for the next pause; returns at once."""
        shell, known = self.shell(for_looking=False), self._machine
        if known is None or shell.warm or self._warming.is_set():
            return
        self._warming.set()

        def open_it() -> None:
            try:
                shell.run(scripts.warm(known.id), timeout_s=self.options.poll_timeout_s)
            except (ScriptError, ShellProblem) as error:
                log.info("powershell_not_ahead", why=error)
            finally:
                self._warming.clear()

        threading.Thread(target=open_it, name="powershell-warm", daemon=True).start()

    def rest(self, after_s: float) -> None:
        """Let go of processes of PowerShell that have not been used for so long."""
        for shell in list(self._shells.values()):
            shell.rest(after_s)

    def close(self) -> None:
        for shell in list(self._shells.values()):
            shell.close()

    # -- looking ------------------------------------------------------------------------------

    def look(self, *, pids: bool = True, urgent: bool = False) -> Sight:
        """Ask Hyper-V. `urgent`: through the process that changes things, which is warm then."""
        known = self._machine
        body = scripts.look(known.id if known else "", self.settings.name, pids=pids)
        try:
            outputs = self.shell(for_looking=not urgent).run(
                body, timeout_s=self.options.poll_timeout_s
            )
        except (ScriptError, ShellProblem) as error:
            raise failure(LOOK, error) from None
        return self._sight(outputs)

    def _sight(self, outputs: list[Any]) -> Sight:
        if len(outputs) != 1 or not isinstance(outputs[0], dict):
            raise DriverError(Trouble.FAILED, LOOK, f"Its answer cannot be read: {outputs!r:.200}")
        answer = outputs[0]
        found = [one for one in items(answer.get("vms")) if isinstance(one, dict)]
        if not found and not answer.get("may"):
            raise DriverError(
                Trouble.PERMISSION, LOOK, "The agent's account may not manage Hyper-V's VMs.",
                GROUP_FIX,
            )  # fmt: skip
        ours = self._ours(found)
        if ours is None:
            return Sight(VmState.ABSENT, foreign=bool(found))
        vm_id = str(ours["id"])
        if self._machine is None or self._machine.id != vm_id:
            self.remember(Machine(vm_id, self.settings.name))
        word = name_of(ours.get("state") or ours.get("number"))
        pids = tuple(sorted(int(pid) for pid in items(answer.get("pids"))))
        config = (
            Path(str(ours.get("config") or self.place))
            / "Virtual Machines"
            / f"{vm_id.upper()}.vmcx"
        )
        return Sight(state_of(word), word, pids, str(config))

    def _ours(self, found: list[dict[str, Any]]) -> dict[str, Any] | None:
        for one in found:
            if self._machine is not None and one.get("id") == self._machine.id:
                return one
        for one in found:
            if one.get("name") == self.settings.name and self.is_ours(one):
                return one
        return None

    def is_ours(self, one: dict[str, Any]) -> bool:
        """Did this agent make it? `one`: id, notes and path as Hyper-V tells them."""
        _, mark, rest = str(one.get("notes") or "").partition(self.mark)
        marked = _GUID.match(rest.lstrip()) if mark else None
        if marked is not None:
            return marked[0].lower() == str(one.get("id", "")).lower()
        return _inside(str(one.get("path") or ""), self.place)

    # -- what is remembered -------------------------------------------------------------------

    @property
    def machine(self) -> Machine | None:
        return self._machine

    def remember(self, machine: Machine | None) -> None:
        if machine != self._machine:
            _store(self.settings.folder, machine)
            self._machine = machine

    @property
    def id(self) -> str:
        """Raises GONE if there never was one."""
        if self._machine is None:
            raise gone(self.settings.name)
        return self._machine.id

    # -- waiting ------------------------------------------------------------------------------

    def wait_for_process_end(self, pids: tuple[int, ...], timeout_s: float) -> bool:
        """Hyper-V says "saved" or "off" a moment before the worker process is gone."""
        deadline_s = time.monotonic() + timeout_s
        while any(_exists(pid) for pid in pids):
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(0.02)
        return True

    def require_disk(self, what: str) -> None:
        """Room for the guest's memory, or DISK_FULL: a start without it cannot be saved."""
        folder = self.place if self.place.exists() else self.settings.folder
        try:
            free_mb = shutil.disk_usage(folder).free // (1024 * 1024)
        except OSError:
            return  # the next step fails with a better reason
        wanted_mb = self.settings.memory_mb + self.options.disk_margin_mb
        if free_mb < wanted_mb:
            raise DriverError(
                Trouble.DISK_FULL,
                f"There is not enough disk space to {what} the VM.",
                f"{free_mb} MB are free at {folder}; {wanted_mb} MB are needed.",
                "Free some space, or lower memory_mb in agent.toml.",
            )


def _exists(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return psutil.pid_exists(pid)


def worker_pids() -> frozenset[int]:
    """All worker processes of Hyper-V that can be seen, by name: cheap enough for a poll."""
    found = set()
    for process in psutil.process_iter(["name"]):
        if str(process.info.get("name") or "").lower() == "vmwp.exe":
            found.add(process.pid)
    return frozenset(found)


def _inside(path: str, folder: Path) -> bool:
    """Windows' rules on Windows: no difference between cases, and two kinds of slash."""
    if os.name == "nt":
        return PureWindowsPath(path).is_relative_to(PureWindowsPath(folder))
    return Path(path).is_relative_to(folder)


def _load(folder: Path) -> Machine | None:
    """None if there is none, or if the file is damaged: then the VM is looked for by name."""
    try:
        fields = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        vm_id = str(fields["id"])
        if _GUID.fullmatch(vm_id) is None:
            return None
        return Machine(vm_id, str(fields["name"]), str(fields.get("fitted", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(folder: Path, machine: Machine | None) -> None:
    path = folder / RECORD
    with contextlib.suppress(FileNotFoundError):
        if machine is None:
            path.unlink()
    if machine is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(machine), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
