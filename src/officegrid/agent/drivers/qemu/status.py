"""What a VM is doing, in the words of `core.vm`, looked at without disturbing any verb.

Source of the run states: QEMU 7.2, qapi/run-state.json, `RunState`.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import psutil

from officegrid.agent.drivers.qemu import disk
from officegrid.agent.drivers.qemu import process as processes
from officegrid.agent.drivers.qemu.acceleration import HARDWARE, Learnt
from officegrid.agent.drivers.qemu.arguments import READY_BUFFER, READY_BUFFER_BYTES
from officegrid.agent.drivers.qemu.files import Files, trim
from officegrid.agent.drivers.qemu.monitor import Monitor, NoAnswer, NotThere, Refused
from officegrid.agent.drivers.qemu.options import QemuOptions
from officegrid.core.vm import VmState, VmStatus

LOOK_LIMIT_S = 2.0
YOUNG_S = 60.0
"""A QEMU that does not listen yet is starting for so long, afterwards it is a riddle."""
STATES = {
    "running": VmState.RUNNING,
    "suspended": VmState.RUNNING,
    "paused": VmState.PAUSED,
    "postmigrate": VmState.PAUSED,
    "prelaunch": VmState.STARTING,
    "preconfig": VmState.STARTING,
    "inmigrate": VmState.STARTING,
    "restore-vm": VmState.STARTING,
    "finish-migrate": VmState.SAVING,
    "save-vm": VmState.SAVING,
    "shutdown": VmState.STOPPING,
    "io-error": VmState.BROKEN,
    "internal-error": VmState.BROKEN,
    "guest-panicked": VmState.BROKEN,
    "watchdog": VmState.BROKEN,
}


class Looker:
    """Answers `state`. `doing` is what a verb of this driver object is at, if any is."""

    def __init__(self, name: str, options: QemuOptions, files: Files) -> None:
        self._name = name
        self._options = options
        self._files = files
        self.doing: VmState | None = None

    def status(self) -> VmStatus:
        """Never raises."""
        try:
            return self._status()
        except Exception as error:
            return VmStatus(VmState.UNKNOWN, f"It could not be looked at: {error!r}")

    def _status(self) -> VmStatus:
        doing = self.doing
        process = processes.find(self._files)
        if process is None:
            return self._without_process(doing)
        found = self._ask(process)
        if doing is not None and found.state not in (VmState.BROKEN, VmState.UNKNOWN):
            return replace(found, state=doing)
        return found

    def _without_process(self, doing: VmState | None) -> VmStatus:
        if disk.Made.read(self._files, self._name) is None:
            return VmStatus(VmState.ABSENT, f"There is no VM {self._name!r} in its folder.")
        if doing is not None:
            return VmStatus(doing)
        if self._files.stamp.exists():
            return VmStatus(VmState.SAVED)
        if self._files.running.exists():  # nobody ended it in good order
            words = processes.last_words(self._files, 300)
            return VmStatus(VmState.OFF, f"QEMU ended by itself. {words}".strip())
        return VmStatus(VmState.OFF)

    def _ask(self, process: psutil.Process) -> VmStatus:
        pids = (process.pid,)
        trim(self._files.console)
        ready = self.is_ready()
        try:
            with Monitor(self._files.look, LOOK_LIMIT_S) as monitor:
                word = str(monitor.call("query-status", timeout_s=LOOK_LIMIT_S)["status"])
                ready = ready or self._hear(monitor)
        except (NotThere, NoAnswer, Refused) as error:
            if not processes.is_alive(process):
                return self._without_process(self.doing)
            young = time.time() - process.create_time() < YOUNG_S
            if isinstance(error, NotThere) and young:
                return VmStatus(VmState.STARTING, "QEMU does not listen yet.", pids, ready)
            detail = f"QEMU (process {process.pid}): {error}."
            return VmStatus(VmState.UNKNOWN, detail, pids, ready)
        if reason := self.overdue():
            return VmStatus(VmState.BROKEN, reason, pids, ready)
        return VmStatus(STATES.get(word, VmState.UNKNOWN), word, pids, ready)

    def _hear(self, monitor: Monitor) -> bool:
        """Has the guest written to its port by now? Kept in a file: it says so only once."""
        try:
            said = monitor.call(
                "ringbuf-read", timeout_s=LOOK_LIMIT_S, device=READY_BUFFER, size=READY_BUFFER_BYTES
            )
        except Refused:  # started by an agent before this one, with a file in place of the buffer
            return False
        if said:
            self._files.ready.write_text("The guest is ready.\n", encoding="ascii")
        return bool(said)

    def is_ready(self) -> bool:
        """Had the guest written to its port when it was last looked at?"""
        try:
            return self._files.ready.stat().st_size > 0
        except OSError:
            return False

    def overdue(self) -> str:
        """Why this guest will not come up with its accelerator; empty while there is hope, and
        always where no other accelerator could be taken."""
        running = processes.Running.read(self._files)
        if running is None or not running.may_fall_back or self.is_ready():
            return ""
        limit_s = self._options.boot_deadline_s
        if time.monotonic() - running.waits_since_s <= limit_s:
            return ""
        return (
            f"The guest has not come up within {limit_s:g} s with {running.accelerator}: "
            "hardware virtualisation does not really work on this machine."
        )

    def waits_from_now(self) -> None:
        """A guest that was paused did not have its chance."""
        running = processes.Running.read(self._files)
        if running is not None and running.may_fall_back and not self.is_ready():
            with contextlib.suppress(OSError):
                replace(running, waits_since_s=time.monotonic()).write(self._files)

    def learn_from_wreck(self, learnt: Learnt) -> None:
        """QEMU died soon after its start, and its last words are about its accelerator."""
        running = processes.Running.read(self._files)
        if running is None or not running.may_fall_back or self.is_ready():
            return
        words = processes.last_words(self._files, 300)
        if any(word in words.lower() for word in (*HARDWARE, "msr")):
            learnt.remember(running.accelerator, running.qemu_version, f"QEMU said: {words}")
