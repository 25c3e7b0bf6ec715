"""Setting the stand-in up in a folder, and doing to its VMs what happens in offices.

standin = StandIn(tmp_path / "vbox", version="7.1.8r168469")
driver = make(VmSettings(…, options={"vboxmanage": str(standin.program)}))
…
standin.close()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from officegrid.testing.vboxmanage.modes import Modes
from officegrid.testing.vboxmanage.session import order, wait_done
from officegrid.testing.vboxmanage.store import Home, alive, read_json, write_json

_HERE = Path(__file__).resolve().parent
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


class StandIn:
    """A VBoxManage of its own with all it needs below `folder`."""

    def __init__(self, folder: Path, **modes: Any) -> None:
        self.folder = folder.absolute()
        self.modes_file = self.folder / "modes.json"
        programs = self.folder / "programs"
        programs.mkdir(parents=True, exist_ok=True)
        shutil.copy(_HERE / "vbox_headless.py", programs / "VBoxHeadless")
        shutil.copy(_HERE / "vbox_svc.py", programs / "VBoxSVC")
        self.program = _write_program(self.folder, self.modes_file)
        self.modes = Modes(root=str(self.folder))
        self.set(**modes)

    def set(self, **modes: Any) -> None:
        """Change modes; faults count the calls of a verb from here on."""
        for name, value in modes.items():
            if not hasattr(self.modes, name):
                raise AttributeError(name)
            setattr(self.modes, name, value)
        if "faults" in modes:
            (self.folder / "calls.json").unlink(missing_ok=True)
        write_json(self.modes_file, vars(self.modes))

    def calls(self, verb: str) -> int:
        """How often it was called since the faults were set."""
        return int(read_json(self.folder / "calls.json").get(verb, 0))

    def run(
        self, *words: str, home: Path | None = None, ipc: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Call it as a person would, by default with the account's own registry."""
        environment = {**os.environ, "LC_ALL": "C"}
        environment.pop("VBOX_USER_HOME", None)
        environment.pop("VBOX_IPC_SOCKETID", None)
        if home is not None:
            environment["VBOX_USER_HOME"] = str(home)
        if ipc:
            environment["VBOX_IPC_SOCKETID"] = ipc
        return subprocess.run(
            [str(self.program), *words],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    # -- looking ------------------------------------------------------------------------------

    def homes(self) -> list[Home]:
        found = [read_json(path).get("home") for path in (self.folder / "ipc").glob("*.json")]
        return [Home(Path(home)) for home in found if home]

    def session(self, home: Path, uuid: str) -> dict[str, Any]:
        return Home(home).session(uuid)

    def vm_pid(self, home: Path, uuid: str) -> int:
        return int(Home(home).session(uuid).get("pid", 0))

    def service_pid(self, ipc: str = "account") -> int:
        return int(read_json(self.folder / "ipc" / f"{ipc}.json").get("pid", 0))

    def progress(self, home: Path, uuid: str) -> int:
        """The guest's counter; 0 before its first boot."""
        try:
            return int((Home(home).vm_folder(uuid) / "counter").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    # -- what happens to VMs ------------------------------------------------------------------

    def kill_vm(self, home: Path, uuid: str) -> None:
        """Power cut: kill -9 of the VM's process."""
        self._kill(self.vm_pid(home, uuid), _KILL)

    def terminate_vm(self, home: Path, uuid: str) -> None:
        """SIGTERM to the VM's process, and wait until it has acted on it."""
        self._kill(self.vm_pid(home, uuid), signal.SIGTERM)

    def kill_service(self, ipc: str = "account") -> None:
        """kill -9 of VBoxSVC; its VMs go with it."""
        self._kill(self.service_pid(ipc), _KILL)

    def fill_disk_under(self, home: Path, uuid: str) -> None:
        """The guest writes and the disk is full: VirtualBox pauses the VM."""
        with Home(home).locked():
            number = order(Home(home), uuid, "disk_full")
        wait_done(Home(home), uuid, number, self.modes.is_old)

    def state_file(self, home: Path, uuid: str) -> Path:
        return Path(Home(home).settings(uuid)["state_file"])

    def settings_file(self, home: Path, uuid: str) -> Path:
        return Path(Home(home).machines()[uuid])

    def _kill(self, pid: int, number: int) -> None:
        if pid <= 0:
            raise ValueError("there is no such process")
        os.kill(pid, number)
        deadline_s = time.monotonic() + 10
        while alive(pid):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"process {pid} does not end")
            time.sleep(0.01)

    def close(self) -> None:
        """End every process that it has started."""
        pids = [int(read_json(path).get("pid", 0)) for path in (self.folder / "ipc").glob("*.json")]
        for home in self.homes():
            pids += [int(one.get("pid", 0)) for one in read_json(home.session_file).values()]
        for pid in pids:
            if alive(pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, _KILL)


def _write_program(folder: Path, modes_file: Path) -> Path:
    main = _HERE / "__main__.py"
    if sys.platform == "win32":
        program = folder / "VBoxManage.cmd"
        line = f'@"{sys.executable}" -S "{main}" --modes "{modes_file}" -- %*\n'
        program.write_text(line, encoding="utf-8")
    else:
        program = folder / "VBoxManage"
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -S "{main}" --modes "{modes_file}" -- "$@"\n',
            encoding="utf-8",
        )
        program.chmod(0o755)
    return program
