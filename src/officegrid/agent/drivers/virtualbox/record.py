"""What the driver remembers about its VM, and the lock that keeps two agents from one VM.

`machine.json` in the driver's folder holds the VM's UUID, so that it is found whatever its name
has become, even while VirtualBox calls it inaccessible. `vbox.lock` is held during every verb
that changes something; it belongs to the open file, so it vanishes with its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from officegrid.core.vm import DriverError, Trouble

RECORD = "machine.json"
LOCK = "vbox.lock"


@dataclass(frozen=True, slots=True)
class Machine:
    uuid: str
    name: str
    saved_by: str = ""
    """The VirtualBox version that made the saved state."""
    reach_host: str = ""
    """What the NAT switch for this PC's loopback was set to; showvminfo does not tell."""
    image: str = ""
    """What it was made from: size, mtime in ns and SHA-256 (`snapshots.image_mark`)."""
    base: str = ""
    """UUID of the snapshot that was taken right after the import; empty: there is none."""
    aside: str = ""
    """`yes`: it waits for the next import, which takes it out again; for all else it is absent.
    `fresh`: and it is back at `base` already. Empty: it is in use."""
    restored_s: str = ""
    """When it was last brought back to `base`, Unix seconds."""


def load_machine(folder: Path) -> Machine | None:
    """None if there is none, or if the file is damaged: then the VM is looked for by name."""
    try:
        kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        known = {field.name for field in fields(Machine)}
        return Machine(**{key: str(value) for key, value in kept.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def record_mark(folder: Path) -> tuple[int, int] | None:
    """Changes with each record; None: there is none."""
    try:
        facts = (folder / RECORD).stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def store_machine(folder: Path, machine: Machine | None) -> None:
    path = folder / RECORD
    if machine is None:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(asdict(machine), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


class VmLock:
    """One per VM: a mutex for the threads of this process, a file lock for other processes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._mutex = threading.RLock()
        self._depth = 0

    @contextlib.contextmanager
    def hold(self, timeout_s: float, *, urgent: bool = False) -> Iterator[None]:
        """Wait for the lock. Raises DriverError LOCKED when it is not to be had in time, unless
        `urgent`: somebody sits down at the PC, and pausing does no harm beside another call."""
        if not self._mutex.acquire(timeout=timeout_s):
            if not urgent:
                raise _busy()
            yield
            return
        descriptor = -1
        try:
            if self._depth == 0:
                descriptor = self._take(time.monotonic() + timeout_s, urgent)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            self._mutex.release()

    def _take(self, deadline_s: float, urgent: bool) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline_s:
                os.close(descriptor)
                if urgent:
                    return -1
                raise _busy()
            time.sleep(0.02)
        return descriptor


def _busy() -> DriverError:
    return DriverError(
        Trouble.LOCKED,
        "Another process handles this VM right now.",
        "Two agents use one folder, or a command of the agent is still at work.",
        "Run one agent per PC.",
    )


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
