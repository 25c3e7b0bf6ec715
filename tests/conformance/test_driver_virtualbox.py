"""The driver contract over VirtualBox 7.1, on the stand-in; 6.1 is in the file next door."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.agent.drivers.virtualbox import make, vm
from officegrid.agent.drivers.virtualbox.manage import ipc_id
from officegrid.agent.drivers.virtualbox.record import load_machine
from officegrid.testing.driver_conformance import DriverConformance, DriverHarness
from officegrid.testing.vboxmanage.appliance import write_ova
from officegrid.testing.vboxmanage.install import StandIn

NAME = "Grid Machine"


class VirtualBoxHarness(DriverHarness):
    """One registry of the agent's own, beside one of the account that is not ours."""

    boot_s = restore_s = settle_s = 15.0
    some_progress = 25

    def __init__(self, folder: Path, **modes: Any) -> None:
        self.folder = folder
        self.agent = folder / "agent"
        self.home = self.agent / "vbox"
        self.standin = StandIn(folder / "standin", **modes)
        self.image = folder / "grid.ova"
        write_ova(self.image, "golden")
        seed = folder / "seed.iso"
        seed.write_bytes(b"CIDATA")
        self.seed = seed
        self.theirs = folder / "theirs"
        self._by_person("createvm", "--name", "Theirs", "--register")
        self._by_person("startvm", "Theirs", "--type", "headless")

    def _by_person(self, *words: str, home: Path | None = None, ipc: str = "") -> str:
        if words[0] == "createvm":
            words = (*words, "--basefolder", str(self.theirs))
        done = self.standin.run(*words, home=home, ipc=ipc)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make(self, *, image: Path | None = None) -> Driver:
        options = {
            "vboxmanage": str(self.standin.program), "stuck_after_s": 2.0, "disk_margin_mb": 1,
            "stop_timeout_s": 5.0,
        }  # fmt: skip
        return make(
            VmSettings(
                name=NAME,
                folder=self.agent,
                image=image or self.image,
                memory_mb=64,
                seed_iso=self.seed,
                options=options,
            )
        )

    @property
    def uuid(self) -> str:
        machine = load_machine(self.agent)
        assert machine is not None
        return machine.uuid

    def progress(self) -> int:
        return self.standin.progress(self.home, self.uuid)

    def kill_vm(self) -> None:
        self.standin.kill_vm(self.home, self.uuid)

    def corrupt_saved_state(self) -> None:
        path = self.standin.state_file(self.home, self.uuid)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def delete_by_hand(self) -> None:
        ipc = ipc_id(self.agent)
        self._by_person("unregistervm", self.uuid, "--delete", home=self.home, ipc=ipc)

    def take_name(self) -> None:
        ipc = ipc_id(self.agent)
        self._by_person("createvm", "--name", NAME, "--register", home=self.home, ipc=ipc)
        self._by_person("startvm", NAME, "--type", "headless", home=self.home, ipc=ipc)

    def leftovers(self) -> list[str]:
        found = [str(path) for path in (self.agent / "machines").rglob("*")]
        return found + [str(path) for path in (self.home / "vms").glob("*/counter")]

    def foreign_things(self) -> object:
        files = {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.theirs.rglob("*")
            if path.is_file()
        }
        pids = [self.standin.service_pid()]
        for home in self.standin.homes():
            for uuid, session in _sessions(home).items():
                if str(home.machines().get(uuid, "")).startswith(str(self.theirs)):
                    pids.append(session["pid"])
        return files, {pid: psutil.Process(pid).create_time() for pid in pids if pid}

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vm, "free_disk_mb", lambda folder: 10)
            yield

    def close(self) -> None:
        self.standin.close()


def _sessions(home: Any) -> dict[str, Any]:
    return {uuid: home.session(uuid) for uuid in home.machines() if home.session(uuid)}


class OnStandIn(DriverConformance):
    modes: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[DriverHarness]:
        harness = VirtualBoxHarness(tmp_path, **self.modes)
        try:
            yield harness
        finally:
            harness.close()


class TestVirtualBox71(OnStandIn):
    """In German, and with the line ends of Windows."""

    modes: ClassVar = {
        "version": "7.1.8r168469",
        "crlf": True,
        "language": "de",
        "unlock_delay_s": 0.05,
    }
