"""Setting the stand-in up in a folder, and doing to its VMs what happens in offices.

standin = StandIn(tmp_path / "hyperv")
driver = make(VmSettings(…, options={"powershell": str(standin.program)}))
…
standin.close()
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from officegrid.testing.hyperv.cmdlets import VHDX
from officegrid.testing.hyperv.modes import Modes
from officegrid.testing.hyperv.store import Store, alive, read_json, write_json

_HERE = Path(__file__).resolve().parent
_KILL = int(getattr(signal, "SIGKILL", signal.SIGTERM))


class StandIn:
    """A powershell.exe with a Hyper-V of its own below `folder`."""

    def __init__(self, folder: Path, **modes: Any) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.modes_file = self.folder / "modes.json"
        self.store = Store(self.folder)
        self.program = _write_program(self.folder, self.modes_file)
        self.modes = Modes(root=str(self.folder))
        self.set(**modes)

    def set(self, **modes: Any) -> None:
        """Change modes; faults count the calls of a cmdlet from here on."""
        for name, value in modes.items():
            if not hasattr(self.modes, name):
                raise AttributeError(name)
            setattr(self.modes, name, value)
        if "faults" in modes:
            (self.folder / "calls.json").unlink(missing_ok=True)
        write_json(self.modes_file, asdict(self.modes))

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a person would, at a prompt of its own."""
        return subprocess.run(
            [str(self.program), "-NoProfile", "-Command", script],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    # -- looking ------------------------------------------------------------------------------

    def calls(self, cmdlet: str) -> int:
        """How often it was called since the faults were set."""
        return int(read_json(self.folder / "calls.json").get(cmdlet, 0))

    def named(self, name: str) -> dict[str, Any]:
        """The VM of this name as Hyper-V keeps it; {} if there is none."""
        with self.store.locked():
            self.store.reconcile()
            found = [vm for vm in self.store.vms().values() if vm["name"] == name]
        return found[0] if found else {}

    def progress(self, vm_id: str) -> int:
        """The guest's counter; 0 before its first boot."""
        try:
            path = self.store.worker(vm_id) / "counter"
            return int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    # -- what happens to VMs ------------------------------------------------------------------

    def make_vm(self, name: str, folder: Path, *, running: bool = False) -> str:
        """A VM of somebody else's. Returns its id."""
        folder.mkdir(parents=True, exist_ok=True)
        disk = folder / f"{name}.vhdx"
        disk.write_bytes(VHDX)
        made = self.run(
            f"$vm = New-VM -Name '{name}' -Generation 1 -VHDPath '{disk}' -Path '{folder}'; "
            + ("Start-VM -VM $vm" if running else "")
        )
        if made.returncode:
            raise RuntimeError(made.stderr)
        return str(self.named(name)["id"])

    def kill_vm(self, vm_id: str) -> None:
        """Power cut: kill -9 of the worker process."""
        pid = int(self.store.get(vm_id)["pid"])
        if pid <= 0:
            raise ValueError("there is no such process")
        os.kill(pid, _KILL)
        deadline_s = time.monotonic() + 10
        while alive(pid):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"process {pid} does not end")
            time.sleep(0.01)

    def set_state(self, vm_id: str, state: str, *, stuck: bool = False) -> None:
        """Have Hyper-V say this from now on; `stuck`: even when the process has ended."""
        with self.store.locked():
            self.store.change(vm_id, state=state, stuck=stuck)
            self.store.touch(self.store.get(vm_id))

    def fill_disk_under(self, vm_id: str) -> None:
        """The guest writes and the disk is full: Hyper-V pauses the VM."""
        with self.store.locked():
            self.store.order(vm_id, "critical")
        self.store.wait_while(vm_id, "Running")

    def saved_state(self, vm_id: str) -> Path:
        return self.store.saved(self.store.get(vm_id))

    def close(self) -> None:
        """End every process that it has started."""
        for vm in self.store.vms().values():
            if alive(int(vm.get("pid", 0))):
                with contextlib.suppress(OSError):
                    os.kill(int(vm["pid"]), _KILL)


def _write_program(folder: Path, modes_file: Path) -> Path:
    """powershell.exe, and vmwp.exe: the interpreter under the name by which a worker is known."""
    main = _HERE / "__main__.py"
    interpreter = os.path.realpath(sys.executable)
    if sys.platform == "win32":
        program = folder / "powershell.cmd"
        line = f'@"{sys.executable}" -S -E "{main}" --modes "{modes_file}" -- %*\n'
        program.write_text(line, encoding="utf-8")
        return program
    worker = folder / "vmwp.exe"
    if not worker.is_symlink():
        worker.symlink_to(interpreter)
    program = folder / "powershell.exe"
    program.write_text(
        f'#!/bin/sh\nexec "{interpreter}" -S -E "{main}" --modes "{modes_file}" -- "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program
