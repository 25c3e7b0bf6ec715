"""The VirtualBox driver on Windows: found through the registry, over a stand-in VBoxManage.exe."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import winreg
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pip
import pytest

from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.agent.drivers.virtualbox import make
from officegrid.agent.drivers.virtualbox.record import load_machine
from officegrid.core.vm import HealthLevel, VmState
from officegrid.testing import vboxmanage
from officegrid.testing.vboxmanage.appliance import write_ova
from officegrid.testing.vboxmanage.install import StandIn

KEY = r"SOFTWARE\Oracle\VirtualBox"
MAIN = """
import runpy, sys
sys.argv[1:1] = ["--modes", {modes!r}, "--"]
sys.path.insert(0, {source!r})
runpy.run_path({main!r}, run_name="__main__")
"""


def write_exe(standin: StandIn, folder: Path) -> Path:
    """A program of Windows: pip's launcher of console scripts, told what to run by a zip file."""
    main = Path(vboxmanage.__file__).with_name("__main__.py")
    source = main.parents[3]
    code = MAIN.format(modes=str(standin.modes_file), source=str(source), main=str(main))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", code)
    launcher = Path(pip.__file__).parent / "_vendor" / "distlib" / "t64.exe"
    folder.mkdir()
    program = folder / "VBoxManage.exe"
    shebang = f'#!"{sys.executable}" -S\r\n'.encode()
    program.write_bytes(launcher.read_bytes() + shebang + archive.getvalue())
    return program


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path / "standin", crlf=True)
    program = write_exe(made, tmp_path / "Oracle VirtualBox")
    with winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, KEY) as key:
        winreg.SetValueEx(key, "InstallDir", 0, winreg.REG_SZ, str(program.parent) + "\\")
    yield made
    winreg.DeleteKey(winreg.HKEY_LOCAL_MACHINE, KEY)
    made.close()


def driver(folder: Path) -> Driver:
    image, seed = folder / "grid.ova", folder / "seed.iso"
    if not image.exists():
        write_ova(image, "golden")
        seed.write_bytes(b"CIDATA")
    # A call of the stand-in takes a second or more here, and several when the machine is busy.
    patience = ("stuck_after_s", "poll_timeout_s", "pause_timeout_s", "stop_timeout_s")
    options = {"disk_margin_mb": 1, **dict.fromkeys(patience, 50.0)}
    return make(
        VmSettings(name="Grid Machine", folder=folder / "agent", image=image, memory_mb=64,
                   seed_iso=seed, options=options)
    )  # fmt: skip


@pytest.mark.timeout(150)
def test_a_vm_lives_through_start_pause_save_and_restore(standin: StandIn, tmp_path: Path) -> None:
    # In the agent's registry: on Windows the first VBoxSVC of an account answers all its callers.
    home = {**os.environ, "VBOX_USER_HOME": str(tmp_path / "agent" / "vbox")}
    program = tmp_path / "Oracle VirtualBox" / "VBoxManage.exe"
    printed = subprocess.run(
        [program, "list", "hostinfo"], capture_output=True, timeout=30, check=True, env=home
    )
    assert printed.stdout.startswith(b"Host Information:\r\n")
    vm = driver(tmp_path)
    health = vm.detect()
    assert (health.level, health.version) == (HealthLevel.GOOD, "7.1.8")
    assert vm.state().state is VmState.ABSENT
    vm.import_image()
    assert vm.state().state is VmState.OFF
    machine = load_machine(tmp_path / "agent")
    assert machine is not None

    vm.start(threading.Event())
    running = vm.state()
    assert running.state is VmState.RUNNING
    assert running.pids
    at_pause = paused_after_progress(vm, standin, machine.uuid, tmp_path, more_than=0)
    vm = driver(tmp_path)  # as an agent that was started anew
    assert vm.state().state is VmState.PAUSED
    vm.save()
    saved = vm.state()
    assert (saved.state, saved.pids) == (VmState.SAVED, ())
    vm.start(threading.Event())
    paused_after_progress(vm, standin, machine.uuid, tmp_path, more_than=at_pause)
    vm.stop()
    assert vm.state().state is VmState.OFF
    vm.delete()
    assert vm.state().state is VmState.ABSENT


def paused_after_progress(
    vm: Driver, standin: StandIn, uuid: str, folder: Path, *, more_than: int
) -> int:
    """Let the guest count on and pause it; returns its counter. Read in pauses only: on Windows
    a file that is being read cannot be replaced."""
    deadline_s = time.monotonic() + 30
    while True:
        vm.pause()
        assert vm.state().state is VmState.PAUSED
        counted = standin.progress(folder / "agent" / "vbox", uuid)
        if counted > more_than:
            return counted
        assert time.monotonic() < deadline_s
        vm.resume()
