"""What the grid takes on a PC's disk stays within bounds, and nothing of ours is left behind.

Nothing that is not provably ours is touched: files with names that only the store makes, in the
agent's own folder, and VMs that bear the driver's mark.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from officegrid.agent.drivers.base import Driver
from officegrid.agent.drivers.command import in_background
from officegrid.agent.images.store import GB, Store, folder_bytes
from officegrid.agent.log import get_logger
from officegrid.core.errors import OfficeGridError

log = get_logger("images")

LOOK_EVERY_S = 60.0
SWEEP_EVERY_S = 86400.0
OUTGROWN_EVERY_S = 6 * 3600.0
"""A VM is made anew for its size at most so often: one that is too large from the beginning would
otherwise never get to work."""
OVERLAY_BYTES = 2 * GB
"""What a worker VM writes to its own disk within days, as a rule."""
OVA_GROWS = 3
"""VirtualBox unpacks the disk of an OVA: so many times the file's size."""


Kept = tuple[Collection[str], bool]
"""Digests of files that are needed, and whether other parts may go."""


class Tell(Protocol):
    def __call__(self, text: str, *, once: bool = False) -> None: ...


def vm_room_bytes(image_bytes: int, ext: str, memory_mb: int) -> int:
    """What a VM made from an image will need: its own disk and, when saved, its memory."""
    unpacked = OVA_GROWS * image_bytes if ext == "ova" else 0
    return OVERLAY_BYTES + memory_mb * 2**20 + unpacked


class Hygiene:
    """`use` begins with a sweep."""

    def __init__(self, store: Store, kept: Callable[[], Kept], tell: Tell) -> None:
        self._store, self._kept, self._tell = store, kept, tell
        self._driver: Driver | None = None
        self._name = ""
        self._pinned = True
        self._looked_s = self._swept_s = self._outgrown_s = float("-inf")
        self._sweeping = threading.Lock()

    def use(self, driver: Driver, name: str, *, pinned: bool) -> None:
        self._driver, self._name, self._pinned = driver, name, pinned
        self._swept_s = float("-inf")

    def daily(self, now_s: float) -> None:
        """Sweep files and VMs, if it is time; returns at once."""
        if now_s - self._swept_s >= SWEEP_EVERY_S and self._driver is not None:
            self._swept_s = now_s
            threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def sweep_files(self) -> None:
        """Image files that are not needed. While agent.toml names an image of its own none is
        removed: a VM made before that may rest on one."""
        if self._pinned:
            return
        with self._sweeping:
            kept, parts = self._kept()
            for sentence in self._store.sweep(kept, parts=parts):
                log.info("swept", what=sentence)

    def sweep_files_soon(self) -> None:
        """The same on a thread of its own: to remove a large file takes seconds."""
        threading.Thread(target=self._sweep_files, name="sweep-files", daemon=True).start()

    def outgrown(self, folder: Path, quota_gb: float, now_s: float) -> str:
        """A sentence with the numbers if the VM takes more than it may; looks once a minute."""
        if now_s - self._looked_s < LOOK_EVERY_S or now_s - self._outgrown_s < OUTGROWN_EVERY_S:
            return ""
        self._looked_s = now_s
        used = folder_bytes(folder)
        measure = getattr(self._driver, "disk_bytes", None)
        if measure is not None:
            used += measure()
        if used <= quota_gb * GB:
            return ""
        self._outgrown_s = now_s
        return (
            f"The worker VM takes {used / GB:.1f} GB of this PC's disk; {quota_gb:g} GB are "
            "allowed (disk_quota_gb). It is made anew; nothing of a job is lost."
        )

    def _sweep_files(self) -> None:
        try:
            self.sweep_files()
        except Exception as error:  # files that are left take room, that is all
            log.error("sweep_fault", why=f"{type(error).__name__}: {error}")

    def _sweep(self) -> None:
        self._sweep_files()
        sweep = getattr(self._driver, "sweep", None)
        if sweep is None:
            return
        try:
            told: list[str] = in_background(lambda: sweep(self._name))
        except OfficeGridError as error:
            log.warning("not_swept", what=error.what, why=error.why)
            return
        except Exception as error:
            log.error("sweep_fault", why=f"{type(error).__name__}: {error}")
            return
        for sentence in told:
            self._tell(sentence)
