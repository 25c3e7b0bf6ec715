"""The driver contract on the Hyper-V driver, over the stand-in for PowerShell and Hyper-V."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv.driver import HyperVDriver
from officegrid.testing.driver_conformance import DriverConformance
from officegrid.testing.driver_harness import DriverHarness
from officegrid.testing.hyperv.cmdlets import VHDX
from officegrid.testing.hyperv.install import StandIn

NAME = "GridMachine"


class HyperVHarness(DriverHarness):
    still_s = 0.1

    def __init__(self, folder: Path) -> None:
        self.standin = StandIn(folder / "hyperv")
        self.ours = folder / "our's"  # a quote in a path: the scripts must stand it
        self.ours.mkdir()
        self.image = folder / "grid.vhdx"
        self.image.write_bytes(VHDX + b" the image")
        self.seed = folder / "seed.iso"
        self.seed.write_bytes(b"CD001")
        self.theirs = folder / "theirs"
        self.standin.make_vm("TheirVm", self.theirs, running=True)
        self.drivers: list[HyperVDriver] = []
        self._was_ours = ""

    def make(self, *, image: Path | None = None) -> HyperVDriver:
        settings = VmSettings(
            NAME,
            self.ours,
            image or self.image,
            memory_mb=64,
            seed_iso=self.seed,
            options={"powershell": str(self.standin.program), "disk_margin_mb": 16},
        )
        self.drivers.append(HyperVDriver(settings))
        return self.drivers[-1]

    def our_id(self) -> str:
        found = [
            vm["id"]
            for vm in self.standin.store.vms().values()
            if Path(vm["path"]).is_relative_to(self.ours)
        ]
        self._was_ours = found[0] if found else self._was_ours
        return self._was_ours

    def progress(self) -> int:
        return self.standin.progress(self.our_id())

    def kill_vm(self) -> None:
        self.standin.kill_vm(self.our_id())

    def foreign_things(self) -> object:
        vms = [
            vm
            for vm in self.standin.store.vms().values()
            if not Path(vm["path"]).is_relative_to(self.ours)
        ]
        running = self.standin.named("TheirVm").get("state")
        files = [*self.theirs.rglob("*"), self.image, self.seed]
        contents = {str(path): path.read_bytes() for path in files if path.is_file()}
        return vms, running, contents

    def corrupt_saved_state(self) -> None:
        path = self.standin.saved_state(self.our_id())
        path.write_bytes(path.read_bytes()[:-100])

    def delete_by_hand(self) -> None:
        done = self.standin.run(f"Remove-VM -VM (Get-VM -Id '{self.our_id()}') -Force")
        assert done.returncode == 0, done.stderr

    def take_name(self) -> None:
        self.standin.make_vm(NAME, self.theirs)

    def leftovers(self) -> list[str]:
        files = [str(path) for path in (self.ours / "hyperv").rglob("*")]
        return files + [
            vm["name"]
            for vm in self.standin.store.vms().values()
            if Path(vm["path"]).is_relative_to(self.ours)
        ]

    def full_disk(self) -> AbstractContextManager[None]:
        @contextmanager
        def full() -> Iterator[None]:
            fault = {"cmdlet": "Save-VM", "kind": "fail_inside", "status": 0x80070070}
            self.standin.set(faults=[fault])
            try:
                yield
            finally:
                self.standin.set(faults=[])

        return full()

    def close(self) -> None:
        for driver in self.drivers:
            with contextlib.suppress(OSError):
                driver.close()
        self.standin.close()


class TestHyperV(DriverConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[HyperVHarness]:
        harness = HyperVHarness(tmp_path)
        yield harness
        harness.close()
