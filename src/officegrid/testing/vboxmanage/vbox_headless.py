"""The stand-in's VBoxHeadless: a VM process whose "guest" is a counter.

    VBoxHeadless --comment NAME --startvm UUID --vrde config

The counter (HOME/vms/UUID/counter) rises by one every 20 ms while the VM runs. Orders come in
HOME/vms/UUID/order.json; state changes go to the session, as a real VM process reports them to
VBoxSVC. SIGTERM saves a running VM; a paused one is lost and leaves VBoxSVC with "stopping" for
ever (both recorded from 7.1.8). When VBoxSVC dies, the process leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, os.environ["VBOX_STANDIN_SOURCE"])

from officegrid.testing.vboxmanage.modes import load_modes
from officegrid.testing.vboxmanage.store import Home, alive, read_json

TICK_S = 0.02
_LOOK_S = 0.005


class VmProcess:
    """Lives from power-on until save, power-off or kill."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.home = Home(Path(os.environ["VBOX_STANDIN_HOME"]))
        self.modes = load_modes(Path(os.environ["VBOX_STANDIN_MODES"]))
        self.folder = self.home.vm_folder(uuid)
        self.settings = self.home.settings(uuid)
        self.counter = 0
        self.running = False
        self.order_done = 0
        self.begun_s = time.monotonic()
        self.terminate = False
        log_folder = Path(self.settings["LogFldr"])
        log_folder.mkdir(parents=True, exist_ok=True)
        path = log_folder / "VBox.log"
        if path.exists():
            path.replace(log_folder / "VBox.log.1")
        self.log_file = path.open("w", encoding="utf-8")

    def log(self, line: str) -> None:
        since_s = time.monotonic() - self.begun_s
        self.log_file.write(f"00:00:{since_s:09.6f} {line}\n")
        self.log_file.flush()

    def report(self, state: str, **more: object) -> None:
        words = {"running": "Running", "paused": "Paused", "saving": "Saving", "saved": "Saved"}
        self.log(f"Console: Machine state changed to '{words.get(state, state.title())}'")
        with self.home.locked():
            self.home.set_session(self.uuid, state=state, **more)

    # -- power on -----------------------------------------------------------------------------

    def power_on(self) -> bool:
        order = read_json(self.folder / "order.json")
        self.order_done = int(order.get("number", 0))
        version = self.modes.version
        self.log_file.write(f"VirtualBox VM {version} linux.amd64 release log\n")
        self.log("Log opened")
        self.log(f"Process ID: {os.getpid()}")
        if self.modes.slow_mode:
            self.log(f"HM: HMR3Init: Attempting fall back to NEM: {self.modes.slow_mode}")
        else:
            self.log("HM: HMR3Init: VT-x w/ nested paging and unrestricted guest execution")
        time.sleep(self.modes.delay_s("startvm"))
        status = str(order.get("fail", ""))
        state_file = str(self.settings.get("state_file", ""))
        if not status and state_file:
            status = self._restore(Path(state_file))
        if status == "die":
            os._exit(1)
        if status:
            self.log(f"VMSetError: failed; rc={status}")
            self.log(f"Power up failed (vrc={status}, rc=NS_ERROR_FAILURE (0X80004005))")
            resting = "saved" if state_file else "poweroff"
            with self.home.locked():
                self.home.set_session(self.uuid, state=resting, pid=0, failed=status)
            return False
        with self.home.locked():
            self.home.change(self.uuid, state_file="", aborted=False)
        if state_file:
            Path(state_file).unlink(missing_ok=True)
        self.write_counter()
        self._write_disks()
        self.running = True
        self.report("running", pid=os.getpid(), resumes=int(bool(state_file)))
        return True

    def _write_disks(self) -> None:
        """A system that boots writes to its disks."""
        for controller in self.settings["controllers"]:
            for medium in controller["media"].values():
                if medium["kind"] == "hdd" and Path(medium["path"]).is_file():
                    with Path(medium["path"]).open("ab") as disk:
                        disk.write(b"a boot\n")

    def _restore(self, path: Path) -> str:
        try:
            head, body = path.read_bytes().split(b"\n", 1)
            facts = json.loads(head)
        except (OSError, ValueError):
            return "VERR_SSM_INTEGRITY_HEADER"
        if zlib.crc32(body) != facts["crc"]:
            return "VERR_SSM_INTEGRITY_DECOMPRESSION"
        self.counter = int(facts["counter"])
        return ""

    # -- life ---------------------------------------------------------------------------------

    def write_counter(self) -> None:
        fresh = self.folder / "counter.new"
        fresh.write_text(str(self.counter), encoding="ascii")
        with contextlib.suppress(PermissionError):  # on Windows, while somebody reads it
            fresh.replace(self.folder / "counter")

    def live(self) -> None:
        service = int(os.environ["VBOX_STANDIN_SERVICE"])
        next_tick_s = next_look_s = time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            now_s = time.monotonic()
            if self.terminate and self._terminated():
                return
            if self.running and now_s >= next_tick_s:
                next_tick_s = now_s + TICK_S
                self.counter += 1
                self.write_counter()
            if self._obey():
                return
            if now_s >= next_look_s:
                next_look_s = now_s + 0.1
                if not self.folder.exists() or not alive(service):
                    return  # VBoxSVC became unavailable, exiting.

    def _terminated(self) -> bool:
        if self.running:
            return self.save()
        self.report("stopping", stuck=True)
        return True

    def _obey(self) -> bool:
        """Carry out a new order; True: the process ends."""
        try:
            order = read_json(self.folder / "order.json")
        except (ValueError, OSError):
            return False
        number = int(order.get("number", 0))
        if number <= self.order_done:
            return False
        self.order_done = number
        ends = self._carry_out(str(order["do"]), order)
        with self.home.locked():
            self.home.set_session(self.uuid, done=number)
        return ends

    def _carry_out(self, verb: str, order: dict[str, Any]) -> bool:
        if verb == "pause":
            self.running = False
            self.report("paused")
        elif verb == "resume":
            self.running = True
            self.report("running")
        elif verb == "disk_full":
            self.running = False
            self.log("VD#0: Host disk full")
            self.log("Console: VM runtime error: fatal=false, errorID=DrvVD_DISKFULL")
            self.report("paused")
        elif verb == "savestate":
            return self.save(fails=str(order.get("fail", "")))
        elif verb == "poweroff":
            self.running = False
            self.report("stopping")
            time.sleep(self.modes.delay_s("poweroff"))
            with self.home.locked():
                self.home.change(self.uuid, aborted=False)
            self.report("poweroff", pid=0)
            return True
        return False

    def save(self, fails: str = "") -> bool:
        was_running, self.running = self.running, False
        self.report("saving")
        time.sleep(self.modes.delay_s("savestate"))
        if fails:
            self.log(f"SSM: save failed, rc={fails}")
            self.running = was_running
            self.report("running" if was_running else "paused")
            return False
        folder = Path(self.settings["SnapFldr"])
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
        path = folder / f"{stamp}-{time.time_ns() % 10**9:09d}Z.sav"
        body = os.urandom(4096)
        head = json.dumps({"counter": self.counter, "crc": zlib.crc32(body)}).encode()
        path.write_bytes(head + b"\n" + body)
        with self.home.locked():
            self.home.change(self.uuid, state_file=str(path), aborted=False)
        unlocks_s = time.time() + self.modes.unlock_delay_s
        self.report("saved", pid=0, unlocks_s=unlocks_s)
        return True


def main() -> int:
    words = sys.argv[1:]
    vm = VmProcess(words[words.index("--startvm") + 1])

    def ask_to_end(*_: object) -> None:
        vm.terminate = True

    signal.signal(signal.SIGTERM, ask_to_end)
    try:
        if not vm.power_on():
            return 1
        vm.live()
    finally:
        vm.log_file.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
