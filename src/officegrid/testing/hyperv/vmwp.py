"""The stand-in's worker process: `vmwp.exe ID`, whose "guest" is a counter.

The counter (ROOT/workers/ID/counter) rises by one every 20 ms while the VM runs. Orders come in
order.json beside it; what becomes of the VM goes into the store, as a real worker process reports
it to vmms. The process stays for a moment after its VM is called saved or off.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["OFFICEGRID_STANDIN_SOURCE"])

from officegrid.testing.hyperv.modes import load_modes
from officegrid.testing.hyperv.store import Store, read_json

TICK_S = 0.02
_LOOK_S = 0.005


class Worker:
    """Lives from power-on until save, power-off or kill."""

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        self.modes_file = Path(os.environ["OFFICEGRID_STANDIN_MODES"])
        self.modes = load_modes(self.modes_file)
        self.store = Store(Path(self.modes.root))
        self.folder = self.store.worker(vm_id)
        self.vm = self.store.get(vm_id)
        self.counter = 0
        self.running = False
        self.order_done = 0

    def report(self, state: str, **more: object) -> None:
        with self.store.locked():
            self.store.change(self.vm_id, state=state, **more)
            self.store.touch(self.vm)

    def power_on(self) -> bool:
        order = read_json(self.folder / "order.json")
        self.order_done = int(order.get("number", 0))
        time.sleep(self.modes.delay_s("Start-VM"))
        saved = self.store.saved(self.vm)
        status = int(order.get("fail", 0))
        restoring = saved.exists()
        if not status and restoring:
            status = self._restore(saved)
        if status:
            self.report("Saved" if restoring else "Off", pid=0, failed=status)
            return False
        saved.unlink(missing_ok=True)
        self.write_counter()
        self.running = True
        self.report("Running", failed=0)
        return True

    def _restore(self, path: Path) -> int:
        try:
            head, body = path.read_bytes().split(b"\n", 1)
            facts = json.loads(head)
            damaged = zlib.crc32(body) != facts["crc"]
        except (OSError, ValueError, KeyError):
            damaged = True
        if damaged:
            return 0x80070570  # ERROR_FILE_CORRUPT
        self.counter = int(facts["counter"])
        return 0

    def write_counter(self) -> None:
        fresh = self.folder / "counter.new"
        fresh.write_text(str(self.counter), encoding="ascii")
        fresh.replace(self.folder / "counter")

    def live(self) -> None:
        next_tick_s = time.monotonic()
        while self.folder.exists():
            time.sleep(_LOOK_S)
            now_s = time.monotonic()
            if self.running and now_s >= next_tick_s:
                next_tick_s = now_s + TICK_S
                self.counter += 1
                self.write_counter()
            try:
                order = read_json(self.folder / "order.json")
            except (ValueError, OSError):
                continue
            if int(order.get("number", 0)) > self.order_done:
                self.order_done = int(order["number"])
                self.modes = load_modes(self.modes_file)  # tests change them meanwhile
                if self._carry_out(str(order["do"]), order):
                    time.sleep(self.modes.linger_s)
                    return

    def _carry_out(self, verb: str, order: dict[str, Any]) -> bool:
        """True: the process ends."""
        if verb == "pause":
            self.running = False
            self.report("Paused")
        elif verb == "resume":
            self.running = True
            self.report("Running")
        elif verb == "critical":
            self.running = False
            self.report("PausedCritical")
        elif verb == "save":
            return self._save(int(order.get("fail", 0)))
        elif verb == "turn_off":
            self.running = False
            self.report("Stopping")
            time.sleep(self.modes.delay_s("Stop-VM"))
            self.report("Off")
            return True
        return False

    def _save(self, status: int) -> bool:
        was_running, self.running = self.running, False
        self.report("Saving", failed=0)
        time.sleep(self.modes.delay_s("Save-VM"))
        if status:
            self.running = was_running
            self.report("Running" if was_running else "Paused", failed=status)
            return False
        body = os.urandom(4096)
        head = json.dumps({"counter": self.counter, "crc": zlib.crc32(body)}).encode()
        self.store.saved(self.vm).write_bytes(head + b"\n" + body)
        self.report("Saved")
        return True


def main() -> int:
    worker = Worker(sys.argv[1])
    if not worker.power_on():
        return 1
    worker.live()
    return 0


if __name__ == "__main__":
    sys.exit(main())
