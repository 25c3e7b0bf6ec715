"""One worker per machine: a lock on a file, held by the kernel for as long as the process lives.

A list of processes or a file with a number in it would go stale with the first crash, and a
restored VM would come back with both. The lock file lies in the worker's folder, and the worker's
folder belongs to one joined identity.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from officegrid.core.errors import ConflictError, UnavailableError

if os.name == "nt":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # Far behind the text, so that others can still read who holds the lock.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def single_instance(folder: Path) -> Iterator[None]:
    """Hold the machine's worker lock. Raises ConflictError naming who holds it."""
    path = folder / "worker.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UnavailableError(
            f"The worker's folder {folder} cannot be used.",
            error.strerror or str(error),
            "Make it writable, or set OFFICEGRID_HOME to one that is.",
        ) from None
    try:
        try:
            _lock(descriptor)
        except OSError:
            holder = path.read_text(errors="replace").strip() or "unknown"
            raise ConflictError(
                "A worker is already running on this machine.",
                f"Process {holder} holds {path}.",
                "Nothing to do: one worker per machine is enough; use --slots for more at once.",
                code="already_running",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
