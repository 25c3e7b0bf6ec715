"""Cmdlets that move a VM from state to state; parameters from Microsoft's reference.

The saved state of a VM that fails to restore stays: the VM is Saved afterwards, as before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from officegrid.testing.hyperv.evaluator import Call, Signature
from officegrid.testing.hyperv.host import Host, worker_environment


class Power:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.store = host.store

    def signatures(self) -> dict[str, Signature]:
        common = {"names": "VM Name", "positions": "VM"}
        return {
            "Start-VM": Signature(self.start, switches="Passthru AsJob", **common),
            "Suspend-VM": Signature(self.suspend, switches="Passthru AsJob", **common),
            "Resume-VM": Signature(self.resume, switches="Passthru AsJob", **common),
            "Save-VM": Signature(self.save, switches="Passthru AsJob", **common),
            "Stop-VM": Signature(self.stop, switches="TurnOff Force Save Passthru AsJob", **common),
            "Remove-VMSavedState": Signature(
                self.remove_saved_state, names="VM VMName VMSnapshot", positions="VM"
            ),
        }

    def start(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if vm["state"] == "Paused":
            return self._ordered(vm, "resume", "Paused", kind)
        if vm["state"] not in ("Off", "Saved"):
            raise self.host.wrong_state(call)
        if kind == "silent":
            return []
        for file in [*vm["disks"], *vm["dvds"]]:
            if not Path(file).exists():
                raise self._failed(call, vm, "start", 0x80070002)
        fails = int(self.host.fault.get("status", 0)) if kind == "fail_inside" else 0
        with self.store.locked():
            self.store.order(vm["id"], "start", fail=fails)
            pid = self._spawn(vm["id"])
            self.store.change(vm["id"], state="Starting", pid=pid, failed=0)
            self.store.touch(vm)
        after = self.store.wait_while(vm["id"], "Starting")
        if after.get("state") not in ("Running", "Paused", "Saving"):
            raise self._failed(call, vm, "start", int(after.get("failed", 0)) or 0x80004005)
        self.host.leave(kind)
        return []

    def _failed(self, call: Call, vm: dict[str, Any], what: str, code: int) -> Exception:
        message = self.host.say(what, vm["name"], f"0x{code:08X}")
        return self.host.error(call, "NotSpecified", "Unspecified", message)

    def _spawn(self, vm_id: str) -> int:
        """The worker outlives PowerShell and keeps none of its pipes."""
        program = Path(self.host.modes.root) / "vmwp.exe"
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        script = Path(__file__).with_name("vmwp.py")
        process = subprocess.Popen(
            [str(program), "-S", "-E", str(script), vm_id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=worker_environment(self.host.modes_file),
            start_new_session=os.name == "posix",
            creationflags=flags,
        )
        process.returncode = 0  # nobody waits for it: no warning when we leave
        return process.pid

    def _ordered(self, vm: dict[str, Any], do: str, until_not: str, kind: str) -> list[Any]:
        if kind != "silent":
            with self.store.locked():
                self.store.order(vm["id"], do)
            self.store.wait_while(vm["id"], until_not)
        self.host.leave(kind)
        return []

    def suspend(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if vm["state"] != "Running":
            raise self.host.wrong_state(call)
        return self._ordered(vm, "pause", "Running", kind)

    def resume(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if vm["state"] != "Paused":
            raise self.host.wrong_state(call)
        return self._ordered(vm, "resume", "Paused", kind)

    def save(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if vm["state"] not in ("Running", "Paused"):
            raise self.host.wrong_state(call)
        if kind == "silent":
            return []
        fails = int(self.host.fault.get("status", 0)) if kind == "fail_inside" else 0
        with self.store.locked():
            self.store.change(vm["id"], state="Saving")
            self.store.order(vm["id"], "save", fail=fails)
        after = self.store.wait_while(vm["id"], "Saving")
        if after.get("state") != "Saved":
            raise self._failed(call, vm, "save", int(after.get("failed", 0)) or 0x80004005)
        self.host.leave(kind)
        return []

    def stop(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if not call.get("TurnOff"):
            raise self.host.error(
                call, "NotSpecified", "Unspecified", "The guest does not answer to a shutdown."
            )
        if vm["state"] not in ("Running", "Paused", "Starting", "PausedCritical"):
            raise self.host.wrong_state(call)
        if kind == "silent":
            return []
        with self.store.locked():
            self.store.order(vm["id"], "turn_off")
        # A worker that is only being powered on obeys when it is up.
        after = self.store.wait_while(
            vm["id"], "Running", "Paused", "Starting", "PausedCritical", "Stopping", limit_s=20
        )
        if after and after.get("state") != "Off":
            raise self.host.wrong_state(call)
        self.host.leave(kind)
        return []

    def remove_saved_state(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if "Saved" not in vm["state"]:
            raise self.host.wrong_state(call)
        if kind != "silent":
            with self.store.locked():
                self.store.saved(vm).unlink(missing_ok=True)
                self.store.change(vm["id"], state="Off")
                self.store.touch(vm)
        self.host.leave(kind)
        return []


def new_id() -> str:
    """As Hyper-V names files: upper case."""
    return str(uuid.uuid4()).upper()
