"""What lies where in the folder of a VM under QEMU, and small files that are whole or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from officegrid.agent import files
from officegrid.agent.files import read_json, sync_folder

__all__ = ["Files", "read_json", "remove", "sync_folder", "trim", "write_json"]

CONSOLE_MOST_BYTES = 4 * 2**20

CONTROL_SOCKET = "control.sock"
LOOK_SOCKET = "look.sock"


@dataclass(frozen=True, slots=True)
class Files:
    """Paths in one VM's folder. Nothing else in there is ever touched."""

    folder: Path

    @property
    def overlay(self) -> Path:
        """All the guest ever wrote: a qcow2 file over the image."""
        return self.folder / "overlay.qcow2"

    @property
    def made_of(self) -> Path:
        """From which image the VM was made (`disk.Made`); written last, so it means "imported"."""
        return self.folder / "image.json"

    @property
    def memory(self) -> Path:
        """The guest's memory and devices, in QEMU's migration format."""
        return self.folder / "state.ram"

    @property
    def stamp(self) -> Path:
        """Says that `memory` is whole and what it fits (`saved.Stamp`); without it, no state."""
        return self.folder / "state.json"

    @property
    def running(self) -> Path:
        """How the present process was started (`process.Running`)."""
        return self.folder / "running.json"

    @property
    def learnt(self) -> Path:
        """Accelerators that failed here (`acceleration.Learnt`)."""
        return self.folder / "accelerators.json"

    @property
    def pid(self) -> Path:
        return self.folder / "qemu.pid"

    @property
    def log(self) -> Path:
        """QEMU's own words."""
        return self.folder / "qemu.log"

    @property
    def console(self) -> Path:
        """The guest's words: its first serial port. Emptied above CONSOLE_MOST_BYTES."""
        return self.folder / "console.log"

    @property
    def ready(self) -> Path:
        """Written by us once the guest has written to its port `grid.ready.0`."""
        return self.folder / "ready"

    @property
    def control(self) -> Path:
        return self.folder / CONTROL_SOCKET

    @property
    def look(self) -> Path:
        return self.folder / LOOK_SOCKET

    def everything(self) -> tuple[Path, ...]:
        """All files a VM may have, the ones that mean something first."""
        return (
            self.stamp, self.made_of, self.memory, self.overlay, self.running, self.pid,
            self.log, self.console, self.ready, self.control, self.look,
        )  # fmt: skip


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write so that a power cut leaves the old or the new content. Raises OSError."""
    files.write_json(path, content)
    sync_folder(path.parent)


def trim(path: Path, most_bytes: int = CONSOLE_MOST_BYTES) -> None:
    """Empty a file that a guest has filled; its writer appends, so it goes on at the start."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > most_bytes:
            os.truncate(path, 0)


def remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
