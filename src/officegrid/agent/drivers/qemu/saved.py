"""The saved state: the guest's memory in one file, and a stamp beside it that says it is whole.

The memory goes through QEMU's migration into a file of ours, rather than into a snapshot inside
the overlay: it is as fast, can be dropped by removing a file, checked byte by byte before the
guest runs, and leaves nothing behind in the overlay. The file is handed to QEMU open, so that no
shell and no path is involved. The stamp is written last, by rename: what has no stamp is no state.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from officegrid.agent.drivers.qemu.files import Files, read_json, remove, sync_folder, write_json
from officegrid.agent.drivers.qemu.monitor import Monitor, NoAnswer, Refused
from officegrid.core.vm import DriverError, Trouble

FORMAT = 1
CHUNK_BYTES = 4 * 2**20
FASTEST_BYTES_S = 2**40
"""QEMU's own limit of 128 MiB/s is made for networks."""
STALL_S = 30.0
"""A save or restore that moves no byte for so long is given up."""
CALL_LIMIT_S = 10.0
CANCEL_LIMIT_S = 2.0
FILE_URI_SINCE = (9, 1)
"""From here on `fd:` is for sockets only, and `file:` takes descriptors (QEMU, deprecated.rst)."""
_POLL_S = 0.01
_FIX = "Discard the saved state; the next start is a cold boot. Nothing of a job is lost."


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a saved state fits, the content of state.json."""

    format: int
    qemu_version: str
    digest: str
    accelerator: str
    memory_mb: int
    bytes: int
    crc32: int
    image_sha256: str
    overlay: str
    """`disk.fingerprint` at the moment of saving: nothing may have been written since."""
    ready: bool
    """The guest had said that it is up."""
    saved_at: float

    @classmethod
    def read(cls, files: Files) -> Stamp | None:
        """None when there is no saved state. Raises SAVED_STATE for a stamp that is damaged."""
        if not files.stamp.exists():
            return None
        found = read_json(files.stamp)
        names = {item.name for item in fields(cls)}
        if found is None or set(found) != names or found["format"] != FORMAT:
            raise unusable("Its description is damaged, or from another version of Office Grid.")
        return cls(**found)

    def write(self, files: Files) -> None:
        write_json(files.stamp, asdict(self))


def unusable(why: str) -> DriverError:
    return DriverError(Trouble.SAVED_STATE, "The saved state cannot be used.", why, _FIX)


def drop(files: Files) -> None:
    """The stamp first: a state that is half removed must not look whole."""
    remove(files.stamp)
    sync_folder(files.folder)
    remove(files.memory)


def write_memory(monitor: Monitor, path: Path, version: tuple[int, ...], timeout_s: float) -> None:
    """Let QEMU write the halted guest's memory to a new file, within the time.

    Raises Refused with QEMU's reason (a full disk, for one), NoAnswer (also when the time is over;
    QEMU has been told to give up), NotThere; the file is then for the caller to remove.
    """
    deadline = time.monotonic() + timeout_s
    remove(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        uri = _hand_over(monitor, descriptor, version)
    finally:
        os.close(descriptor)
    monitor.call("migrate-set-parameters", timeout_s=CALL_LIMIT_S, max_bandwidth=FASTEST_BYTES_S)
    monitor.call("migrate", timeout_s=CALL_LIMIT_S, uri=uri)

    def in_time() -> None:
        if time.monotonic() > deadline:
            _cancel(monitor)
            raise NoAnswer(f"The memory was not written within {timeout_s:g} s.")

    _follow(monitor, lambda: path.stat().st_size, in_time)


def read_memory(
    monitor: Monitor, path: Path, version: tuple[int, ...], stamp: Stamp,
    cancelled: Callable[[], None],
) -> None:  # fmt: skip
    """Let a QEMU that waits for it read the memory, and check every byte meanwhile.

    The guest does not run yet. `cancelled` raises to end this. Raises SAVED_STATE, or Refused,
    NoAnswer, NotThere where QEMU did not take it.
    """
    with path.open("rb", buffering=0) as file:
        handed = os.open(path, os.O_RDONLY)
        try:
            uri = _hand_over(monitor, handed, version)
        finally:
            os.close(handed)
        monitor.call("migrate-incoming", timeout_s=CALL_LIMIT_S, uri=uri)
        found, length = 0, 0
        while chunk := file.read(CHUNK_BYTES):
            cancelled()
            found = zlib.crc32(chunk, found)
            length += len(chunk)
    if (found, length) != (stamp.crc32, stamp.bytes):
        raise unusable("Its content is not what was saved: the disk damaged it.")
    _follow(monitor, lambda: 0, cancelled)


def check(path: Path) -> tuple[int, int]:
    """(CRC-32, bytes) of a file, read once. Raises OSError."""
    found, length = 0, 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            found = zlib.crc32(chunk, found)
            length += len(chunk)
    return found, length


def _cancel(monitor: Monitor) -> None:
    """End the migration, and wait for a moment until QEMU would begin another one."""
    with contextlib.suppress(Refused):
        monitor.call("migrate_cancel", timeout_s=CANCEL_LIMIT_S)
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while monitor.call("query-migrate", timeout_s=CANCEL_LIMIT_S).get("status") == "cancelling":
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def _hand_over(monitor: Monitor, descriptor: int, version: tuple[int, ...]) -> str:
    """Give QEMU an open file; the migration address under which it knows it."""
    if version >= FILE_URI_SINCE:
        reply = monitor.send_file(descriptor, "add-fd", timeout_s=CALL_LIMIT_S)
        return f"file:/dev/fdset/{reply['fdset-id']}"
    monitor.send_file(descriptor, "getfd", timeout_s=CALL_LIMIT_S, fdname="state")
    return "fd:state"


def _follow(
    monitor: Monitor, size: Callable[[], int], cancelled: Callable[[], None] = lambda: None
) -> None:
    """Until the migration has ended. Raises Refused with its reason, or when it stands still."""
    moved_at, moved = time.monotonic(), -1
    while True:
        cancelled()
        reply: dict[str, Any] = monitor.call("query-migrate", timeout_s=CALL_LIMIT_S)
        status = reply.get("status", "none")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise Refused(str(reply.get("error-desc", status)))
        progress = int(reply.get("ram", {}).get("transferred", 0)) + size()
        if progress != moved:
            moved_at, moved = time.monotonic(), progress
        elif time.monotonic() - moved_at > STALL_S:
            raise Refused(f"it has not moved for {STALL_S:g} s")
        time.sleep(_POLL_S)
