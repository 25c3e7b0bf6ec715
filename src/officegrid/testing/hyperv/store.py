"""The VMs of the stand-in: what the service vmms holds, in a JSON file, under one lock.

ROOT/vms.json                            id -> the VM, `state` and `pid` among its fields
PATH/NAME/Virtual Machines/ID.vmcx       its configuration file: without it, OffCritical
PATH/NAME/Virtual Machines/ID.vmrs       its saved state
ROOT/workers/ID/order.json, counter      orders to its worker process, and its guest's counter
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from officegrid.testing.vboxmanage.store import alive, folder_lock, read_json, write_json

__all__ = ["NUMBERS", "Store", "alive", "read_json", "write_json"]

NUMBERS = {
    "Running": 2, "Off": 3, "Stopping": 4, "Saved": 6, "Paused": 9, "Starting": 10,
    "Saving": 32773, "Pausing": 32776, "Resuming": 32777,
    "RunningCritical": 32783, "OffCritical": 32784, "SavedCritical": 32786,
    "PausedCritical": 32787,
}  # fmt: skip
MOVING = ("Starting", "Saving", "Stopping", "Pausing", "Resuming")


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "vms.json"

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return folder_lock(self.root)

    def vms(self) -> dict[str, dict[str, Any]]:
        return read_json(self.file)

    def get(self, vm_id: str) -> dict[str, Any]:
        """{} if there is none."""
        return dict(self.vms().get(vm_id.upper(), {}))

    def put(self, vm: dict[str, Any]) -> None:
        write_json(self.file, {**self.vms(), vm["id"]: vm})

    def change(self, vm_id: str, **fields: object) -> None:
        self.put({**self.get(vm_id), **fields})

    def remove(self, vm_id: str) -> None:
        left = self.vms()
        left.pop(vm_id, None)
        write_json(self.file, left)

    def config(self, vm: dict[str, Any]) -> Path:
        return Path(vm["path"]) / "Virtual Machines" / f"{vm['id']}.vmcx"

    def saved(self, vm: dict[str, Any]) -> Path:
        return self.config(vm).with_suffix(".vmrs")

    def worker(self, vm_id: str) -> Path:
        return self.root / "workers" / vm_id

    def touch(self, vm: dict[str, Any]) -> None:
        """The configuration file is written whenever the VM changes."""
        path = self.config(vm)
        if path.exists():
            os.utime(path)

    def state(self, vm: dict[str, Any]) -> str:
        """As vmms would call it now, the end of its worker and the loss of its files noticed."""
        state = str(vm["state"])
        resting = state in ("Off", "Saved")
        if resting and not self.config(vm).exists():
            return f"{state}Critical"
        if resting or state.endswith("Critical") or vm.get("stuck"):
            return state
        if alive(int(vm.get("pid", 0))):
            return state
        # A restore that died has not used its saved state up.
        return "Saved" if state == "Starting" and self.saved(vm).exists() else "Off"

    def reconcile(self) -> None:
        for vm in self.vms().values():
            now = self.state(vm)
            if now != vm["state"] and not now.endswith("Critical"):
                self.put({**vm, "state": now})

    def order(self, vm_id: str, do: str, **more: object) -> None:
        path = self.worker(vm_id) / "order.json"
        number = int(read_json(path).get("number", 0)) + 1
        write_json(path, {"number": number, "do": do, **more})

    def wait_while(self, vm_id: str, *states: str, limit_s: float = 600.0) -> dict[str, Any]:
        """Wait until the VM is in another state; its fields then."""
        deadline_s = time.monotonic() + limit_s
        while True:
            with self.locked():
                self.reconcile()
                vm = self.get(vm_id)
            if not vm or vm["state"] not in states or time.monotonic() >= deadline_s:
                return vm
            time.sleep(0.01)
