"""The QEMU driver keeps the promises of all drivers, with real QEMU processes."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.agent.drivers.qemu import make
from officegrid.agent.drivers.qemu.files import Files
from officegrid.testing.driver_conformance import DriverConformance, DriverHarness
from officegrid.testing.driver_harness import wait_until
from parts import need
from vm.ticker import last_tick, make_image

QEMU = "qemu-system-x86_64"


class QemuHarness(DriverHarness):
    """A ticking guest of 64 MB, and beside it things that are none of the driver's business."""

    some_progress = 4

    def __init__(self, tmp_path: Path) -> None:
        self.place = tmp_path
        self.folder = tmp_path / "vm"
        self.folder.mkdir(mode=0o700)
        self.files = Files(self.folder)
        self.image = make_image(tmp_path / "image.qcow2")
        self._taken = False
        self._foreign = self._make_foreign_things()

    def make(self, *, image: Path | None = None) -> Driver:
        return make(
            VmSettings(
                "GridMachine", self.folder, image or self.image, memory_mb=64, cpus=1,
                options={"accelerator": "tcg", "code_cache_mb": 32},
            )
        )  # fmt: skip

    def progress(self) -> int:
        return last_tick(self.files.console)

    def kill_vm(self) -> None:
        process = psutil.Process(int(self.files.pid.read_text()))
        process.kill()
        # Its parent reaps it: the driver, when it looks. Until then it is a zombie.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            pass

    def _make_foreign_things(self) -> subprocess.Popen[bytes]:
        """Another VM, in another folder, and a file in ours that we did not make."""
        other = self.place / "other"
        other.mkdir()
        (self.folder / "notes.txt").write_text("kept by the admin\n")
        started = subprocess.Popen(
            [QEMU, "-name", "GridMachine", "-M", "q35", "-accel", "tcg,tb-size=32", "-m", "32",
             "-nodefaults", "-display", "none", "-S", "-pidfile", str(other / "qemu.pid"),
             "-chardev", f"file,id=console,path={other}/console.log"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for name in ("qemu.pid", "console.log"):
            wait_until((other / name).exists, 20, "the other VM is up")
        return started

    def foreign_things(self) -> object:
        ours: set[str] = set()
        if not self._taken:
            ours = {path.name for path in (*self.files.everything(), self.files.learnt)}
        kept = {
            str(path): path.read_bytes()
            for path in sorted(self.place.rglob("*"))
            if path.is_file() and not (path.parent == self.folder and path.name in ours)
            and path.name != "qemu.pid"
        }  # fmt: skip
        return kept, self._foreign.poll()

    def corrupt_saved_state(self) -> None:
        """One bit, in the middle, with nothing else to betray it."""
        with self.files.memory.open("r+b") as file:
            file.seek(self.files.memory.stat().st_size // 2)
            old = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([old ^ 1]))

    def delete_by_hand(self) -> None:
        for path in self.files.everything():
            path.unlink(missing_ok=True)

    def take_name(self) -> None:
        """The folder holds a VM of another name."""
        theirs = VmSettings("Accounting", self.folder, self.image, memory_mb=64, cpus=1)
        make(theirs).import_image()
        self._taken = True

    def leftovers(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if path.name != "notes.txt"]

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The check before a save finds less than the guest's memory; test_qemu_driver fills a
        real disk during a save."""
        with pytest.MonkeyPatch.context() as patch:
            usage = type("Usage", (), {"free": 10 * 2**20})
            patch.setattr("officegrid.agent.drivers.qemu.driver.shutil.disk_usage", lambda _: usage)
            yield

    def close(self) -> None:
        self._foreign.kill()
        self._foreign.wait()
        self.make().delete()


class TestQemu(DriverConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[DriverHarness]:
        need(QEMU, "qemu-img")
        made = QemuHarness(tmp_path)
        yield made
        made.close()
