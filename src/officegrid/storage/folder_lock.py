"""One coordinator per database: a lock file beside it, held as long as the database is open.

The lock belongs to the open file (flock), so it vanishes with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from officegrid.core.errors import ConflictError


class FolderLock:
    """An exclusive lock beside `database`. Raises ConflictError naming the process that has it."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".lock")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 64).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise ConflictError(
                f"Another coordinator uses {database} already (process {holder or 'unknown'}).",
                "Two coordinators on one folder would give the same work out twice.",
                "Stop that process first, or choose another --data folder.",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock up. The file stays: deleting it would let two processes lock two files."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
