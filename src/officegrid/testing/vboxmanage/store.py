"""The stand-in's state: VM settings on disk, and sessions as VBoxSVC would hold them in memory.

    HOME/VirtualBox.xml        the registry: UUID -> settings file (JSON here; nobody else reads it)
    FOLDER/NAME/NAME.vbox      one VM's settings, `state_file` and `aborted` among them
    HOME/session.json          what VBoxSVC remembers: VMState, process, stuck; void once it is dead
    HOME/vms/UUID/             orders to the VM's process and its counter
    ROOT/ipc/ID.json           which VBoxSVC serves an IPC id, with which home

All changes happen under one file lock per home.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESTING = ("poweroff", "saved", "aborted", "aborted-saved")


def alive(pid: int) -> bool:
    """Is there such a process, other than a zombie?"""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value, indent=1), encoding="utf-8")
    for _ in range(50):  # on Windows a reader may hold it for a moment
        try:
            fresh.replace(path)
            return
        except PermissionError:
            time.sleep(0.01)
    fresh.replace(path)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the stand-in's lock on a folder, made where it is missing; waits for others."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "standin.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.005)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Home:
    """One registry with its sessions. `locked()` around whatever reads and writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry_file = folder / "VirtualBox.xml"
        self.session_file = folder / "session.json"

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return folder_lock(self.folder)

    # -- settings -----------------------------------------------------------------------------

    def machines(self) -> dict[str, str]:
        """UUID to settings file, in the order of registration."""
        return dict(read_json(self.registry_file))

    def register(self, settings: dict[str, Any]) -> None:
        write_json(self.registry_file, {**self.machines(), settings["uuid"]: settings["CfgFile"]})
        self.store(settings)

    def unregister(self, uuid: str) -> None:
        machines = self.machines()
        machines.pop(uuid, None)
        write_json(self.registry_file, machines)
        self.forget(uuid)

    def forget(self, uuid: str) -> None:
        """The session: the state is then what the settings say."""
        session = read_json(self.session_file)
        if session.pop(uuid, None) is not None:
            write_json(self.session_file, session)

    def settings(self, uuid: str) -> dict[str, Any]:
        """{} if the VM is inaccessible: its settings file is gone or damaged."""
        try:
            return read_json(Path(self.machines()[uuid]))
        except (OSError, ValueError):
            return {}

    def store(self, settings: dict[str, Any]) -> None:
        write_json(Path(settings["CfgFile"]), settings)

    def change(self, uuid: str, **values: object) -> None:
        self.store({**self.settings(uuid), **values})

    def find(self, target: str) -> str | None:
        """By UUID, or by name among the accessible."""
        plain = target.strip("{}").lower()
        for uuid in self.machines():
            if uuid == plain or self.settings(uuid).get("name") == target:
                return uuid
        return None

    # -- sessions -----------------------------------------------------------------------------

    def session(self, uuid: str) -> dict[str, Any]:
        return dict(read_json(self.session_file).get(uuid, {}))

    def set_session(self, uuid: str, **values: object) -> None:
        """`state` also sets the time of its change."""
        whole = read_json(self.session_file)
        if "state" in values:
            values["changed"] = now_text()
        whole[uuid] = {**whole.get(uuid, {}), **values}
        write_json(self.session_file, whole)

    def state(self, uuid: str) -> str:
        found = self.session(uuid).get("state")
        return str(found) if found else resting_state(self.settings(uuid))

    def drop_sessions(self) -> None:
        """VBoxSVC died, and with it all it knew."""
        write_json(self.session_file, {})

    def reconcile(self, is_old: bool) -> None:
        """See which VM processes have died, as VBoxSVC does within a moment."""
        for uuid in self.machines():
            session = self.session(uuid)
            state = session.get("state", "")
            if not state or state in RESTING or session.get("stuck"):
                continue
            if alive(int(session.get("pid", 0))):
                continue
            settings = self.settings(uuid)
            if state in ("restoring", "starting") and settings.get("state_file") and not is_old:
                self.change(uuid, aborted=True)
                self.set_session(uuid, state="aborted-saved", pid=0)
            else:
                # 6.1 loses the saved state of a VM that dies while it is restored.
                self.change(uuid, aborted=True, state_file="")
                self.set_session(uuid, state="aborted", pid=0)

    def vm_folder(self, uuid: str) -> Path:
        return self.folder / "vms" / uuid


def resting_state(settings: dict[str, Any]) -> str:
    """What a new VBoxSVC reads from the settings."""
    if settings.get("state_file"):
        return "aborted-saved" if settings.get("aborted") else "saved"
    return "aborted" if settings.get("aborted") else "poweroff"


def now_text() -> str:
    whole, part = divmod(time.time(), 1)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{stamp}.{int(part * 1000):03d}000000"


def new_uuid() -> str:
    """A random one; the module uuid would take longer to import than a call takes."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"
