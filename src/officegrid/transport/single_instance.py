"""One worker, one agent per machine: a lock on a file, held by the kernel for as long as the
process lives.

A list of processes or a file with a number in it would go stale with the first crash, and a
restored VM would come back with both. The lock file lies in the program's own folder, and that
folder belongs to one joined identity.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from officegrid.core.errors import ConflictError, UnavailableError

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # Far behind the text, so that others can still read who holds the lock.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def single_instance(
    folder: Path, what: str, fix: str, inherited: int | None = None
) -> Iterator[int]:
    """Hold the machine's lock for one `what` ("worker", "agent"): `<folder>/<what>.lock`. Gives its
    file descriptor.

    `inherited`: a descriptor that the program this process was before has held the lock with; it is
    held without a gap. One that is something else is left alone.

    Raises ConflictError ("already_running") naming who holds it, with `fix` as the advice, and
    UnavailableError when the folder cannot be used.
    """
    path = folder / f"{what}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if inherited is not None and _is_same_file(inherited, descriptor):
            os.close(descriptor)
            descriptor = inherited
            os.set_inheritable(descriptor, False)
    except OSError as error:
        raise UnavailableError(
            f"The {what}'s folder {folder} cannot be used.",
            error.strerror or str(error),
            "Make it writable, or set OFFICEGRID_HOME to one that is.",
        ) from None
    try:
        try:
            _lock(descriptor)
        except OSError:
            holder = path.read_text(errors="replace").strip() or "unknown"
            article = "An" if what[0] in "aeiou" else "A"
            raise ConflictError(
                f"{article} {what} is already running on this machine.",
                f"Process {holder} holds {path}.",
                fix,
                code="already_running",
            ) from None
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


def _is_same_file(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:  # it is not open
        return False


def is_held(folder: Path, what: str) -> bool:
    """Does a running `what` hold its lock? False also when there is no such file."""
    try:
        descriptor = os.open(folder / f"{what}.lock", os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
