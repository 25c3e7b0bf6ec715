"""Who answers a call: the VBoxSVC of an IPC id, started on demand; and starting VM processes.

Recorded on Linux: a VBoxSVC that runs already answers with its own registry, whatever
VBOX_USER_HOME a later client sets; only another VBOX_IPC_SOCKETID gets another VBoxSVC.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from officegrid.testing.vboxmanage.modes import Modes
from officegrid.testing.vboxmanage.store import RESTING, Home, alive, read_json, write_json

SOURCE = str(Path(__file__).resolve().parents[3])


def spawn(arguments: list[str], environment: dict[str, str]) -> int:
    """Start a process that outlives us and keeps none of our pipes. Returns its pid."""
    import subprocess  # only calls that start something pay for it

    flags = 0
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment, "VBOX_STANDIN_SOURCE": SOURCE},
        start_new_session=os.name == "posix",
        creationflags=flags,
    )
    process.returncode = 0  # nobody waits for it: no warning when we leave
    return process.pid


class Service:
    """The VBoxSVC that answers this call."""

    def __init__(self, modes: Modes, modes_file: Path) -> None:
        self.modes = modes
        self.modes_file = modes_file
        self.programs = Path(modes.root) / "programs"
        name = os.environ.get("VBOX_IPC_SOCKETID") or "account"
        self.instance = Path(modes.root) / "ipc" / f"{name}.json"
        default = os.environ.get("VBOX_USER_HOME") or str(Path(modes.root) / "account")
        self.default_home = default
        self.pid = 0

    def connect(self) -> Home:
        """Find or start VBoxSVC; the home is its, not necessarily the caller's."""
        gate = Home(Path(self.modes.root) / "ipc")
        with gate.locked():
            found = read_json(self.instance)
            if alive(int(found.get("pid", 0))):
                os.utime(self.instance)
                self.pid = int(found["pid"])
                home = Home(Path(found["home"]))
            else:
                home = self._start_service()
        with home.locked():
            home.reconcile(self.modes.is_old)
        return home

    def _start_service(self) -> Home:
        home = Home(Path(self.default_home))
        with home.locked():
            home.drop_sessions()
            if not home.registry_file.exists():
                write_json(home.registry_file, {})
        environment = {
            "VBOX_STANDIN_HOME": str(home.folder),
            "VBOX_STANDIN_INSTANCE": str(self.instance),
            "VBOX_STANDIN_IDLE_S": str(self.modes.svc_idle_s),
        }
        write_json(self.instance, {"pid": 0, "home": str(home.folder)})
        program = str(self.programs / "VBoxSVC")
        self.pid = spawn([sys.executable, "-S", program], environment)
        write_json(self.instance, {"pid": self.pid, "home": str(home.folder)})
        return home

    def start_vm(self, home: Home, uuid: str, name: str) -> int:
        """Start the VM's process; its first order is written already."""
        environment = {
            "VBOX_STANDIN_HOME": str(home.folder),
            "VBOX_STANDIN_MODES": str(self.modes_file),
            "VBOX_STANDIN_SERVICE": str(self.pid),
        }
        program = str(self.programs / "VBoxHeadless")
        words = [sys.executable, "-S", program, "--comment", name, "--startvm", uuid]
        return spawn([*words, "--vrde", "config"], environment)


def order(home: Home, uuid: str, do: str, **more: object) -> int:
    """Give the VM's process an order, under the lock. Returns its number."""
    path = home.vm_folder(uuid) / "order.json"
    number = int(read_json(path).get("number", 0)) + 1
    write_json(path, {"number": number, "do": do, **more})
    return number


def wait_done(home: Home, uuid: str, number: int, is_old: bool) -> str:
    """Wait until the VM's process has carried out that order, or has ended. Returns the state."""
    while True:
        with home.locked():
            home.reconcile(is_old)
            session, state = home.session(uuid), home.state(uuid)
        if int(session.get("done", 0)) >= number or state in RESTING or session.get("stuck"):
            return state
        time.sleep(0.01)


def wait_while(home: Home, uuid: str, states: tuple[str, ...], is_old: bool) -> str:
    """Wait until the VM's state is another, or its process has died. Returns the state."""
    while True:
        with home.locked():
            home.reconcile(is_old)
            session = home.session(uuid)
            state = home.state(uuid)
        if state not in states or session.get("stuck"):
            return state
        time.sleep(0.01)
