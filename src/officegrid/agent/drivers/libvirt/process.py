"""QEMU's process beneath libvirt: for when libvirt itself does not answer.

Somebody sits down at the PC and libvirt hangs: then the VM's process is stopped or ended by a
signal. It is known by the UUID that libvirt puts on its command line (`-uuid`, qemu-system(1));
libvirt's own process, and other VMs, are never touched.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import psutil

from officegrid.core.vm import DriverError, Trouble

DIES_WITHIN_S = 5.0
STOPS_WITHIN_S = 1.0
_POLL_S = 0.01


class QemuProcess:
    """At most one process. Where signals are not allowed (another user's), nothing happens."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._known: psutil.Process | None = None

    def find(self) -> psutil.Process | None:
        """The living process, or None. Looks through all processes where none is known."""
        known = self._known
        if known is None or not _is_alive(known):
            known = self._known = next(filter(self._is_ours, psutil.process_iter()), None)
        return known

    def is_stopped(self, *, search: bool = True) -> bool:
        """Was it stopped by a signal? Without `search`, only a process known already counts: to
        look through all costs too much for something done every few seconds."""
        process = self.find() if search else self._known
        with suppress(psutil.Error, OSError):
            return process is not None and process.status() == psutil.STATUS_STOPPED
        return False

    def freeze(self) -> bool:
        """Stop it; True: it gets no CPU any more."""
        process = self.find()
        if process is None:
            return False
        with suppress(psutil.Error, OSError):
            process.suspend()
        deadline = time.monotonic() + STOPS_WITHIN_S
        while not self.is_stopped():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def thaw(self) -> None:
        """Let it go on, if it was stopped."""
        if self.is_stopped() and (process := self.find()) is not None:
            with suppress(psutil.Error, OSError):
                process.resume()

    def kill(self) -> None:
        """End it, frozen or not. Raises STUCK where it does not end, or may not be ended."""
        process = self.find()
        if process is None:
            return
        with suppress(psutil.Error, OSError):
            process.kill()
        deadline = time.monotonic() + DIES_WITHIN_S
        while _is_alive(process):
            if time.monotonic() > deadline:
                raise DriverError(
                    Trouble.STUCK,
                    f"The VM (process {process.pid}) does not end.",
                    "Neither libvirt nor a kill ended it.",
                    "Restart libvirtd; if the agent is not root, end this process as root.",
                )
            time.sleep(_POLL_S)

    def lower_priority(self) -> None:
        """As far as our user may. On Linux each thread has its own."""
        process = self.find()
        if process is None or sys.platform == "win32":
            return
        with suppress(psutil.Error, OSError):
            for thread in process.threads():
                psutil.Process(thread.id).nice(19)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            words = process.cmdline()
        except (psutil.Error, OSError):
            return False
        return self._uuid in words and "-uuid" in words


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False
