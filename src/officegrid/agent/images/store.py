"""Images on this PC: their files, what is remembered about them, room for them, and sweeping.

<home>/agent/images/<sha256>.<qcow2|ova|vhdx>    whole and verified, mode 0400
                    <sha256>.part                as far as it has come
<home>/agent/images.json                         `core.imagelife.Life`
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from officegrid.agent.files import read_json, sync_folder, write_json
from officegrid.agent.log import get_logger
from officegrid.core.errors import LimitError, UnavailableError
from officegrid.core.imageevents import Held
from officegrid.core.imagelife import Life

log = get_logger("images")

GB = 10**9
SPARE_BYTES = GB
"""Stays free on the disk of the images, whatever is fetched."""
PART = "part"
EXTENSIONS = frozenset({"qcow2", "ova", "vhdx"})
_LIFE = TypeAdapter(Life)
_FORMAT = 1
_READ_BYTES = 2**20


class Store:
    """One per agent. Methods raise UnavailableError where the disk does not let them."""

    def __init__(self, folder: Path, record: Path) -> None:
        self.folder = folder
        self._record = record
        self._lock = threading.Lock()
        """A draft of the record is no leftover while it is being written."""
        self.damaged = False
        """What was known was lost, and no VM has been made or deleted since: no file may be taken
        for unnecessary."""

    # --- what is remembered

    def load(self) -> Life:
        """What an earlier run kept; a new life if there is none or it is damaged."""
        kept = read_json(self._record)
        try:
            if kept is not None and kept.pop("format", None) == _FORMAT:
                life = _LIFE.validate_python(kept)
                self.damaged = life.unsure
                return life
        except ValidationError:
            pass
        self.damaged = self._record.exists()
        if self.damaged:
            log.warning("damaged", path=self._record)
        return Life(unsure=self.damaged)

    def save(self, life: Life) -> None:
        """Durable when it returns."""
        with self._lock:
            try:
                self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_json(self._record, {"format": _FORMAT, **asdict(life)})
            except OSError as error:
                what = "keep what it knows about images"
                raise self._trouble(what, self._record, error) from None
            sync_folder(self._record.parent)
            self.damaged = life.unsure

    # --- files

    def path(self, held: Held) -> Path:
        return self.folder / f"{held.sha256}.{held.ext}"

    def part(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.{PART}"

    def holds(self, held: Held) -> bool:
        """Is its file there, with the right size? Its content was verified when it came."""
        with contextlib.suppress(OSError):
            return self.path(held).stat().st_size == held.size
        return False

    def is_whole(self, held: Held) -> bool:
        """Reads all of it."""
        try:
            with self.path(held).open("rb") as file:
                return digest(file) == held.sha256
        except OSError:
            return False

    def open_part(self, sha256: str) -> BinaryIO:
        """To read and write, made if it is not there; readable by its owner only."""
        path = self.part(sha256)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            return os.fdopen(os.open(path, flags, 0o600), "r+b")
        except OSError as error:
            raise self._trouble("write the image", path, error) from None

    def finish(self, held: Held) -> None:
        """The part is whole and synced: give it its name, for good."""
        part, path = self.part(held.sha256), self.path(held)
        try:
            os.chmod(part, stat.S_IRUSR)
            os.replace(part, path)
        except OSError as error:
            raise self._trouble("keep the image", path, error) from None
        sync_folder(self.folder)

    def drop(self, held: Held) -> None:
        """A file that is not what it should be."""
        _remove(self.path(held))

    def need_room(self, name: str, left_bytes: int, vm_bytes: int) -> None:
        """Raises LimitError unless the rest of the image and the VM made from it will fit."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._trouble("use the folder of the images", self.folder, error) from None
        needed = left_bytes + vm_bytes + SPARE_BYTES
        if free < needed:
            vm = f"{vm_bytes / GB:.1f} GB for the VM, " if vm_bytes else ""
            raise LimitError(
                f"There is no room for the worker image {name}.",
                f"{free / GB:.1f} GB are free on the disk of {self.folder}; {needed / GB:.1f} GB "
                f"must be: {left_bytes / GB:.1f} GB for the image, {vm}"
                f"{SPARE_BYTES / GB:.0f} GB to spare.",
                "Free some space on this PC; the agent tries again by itself.",
            )

    # --- hygiene

    def sweep(self, kept: Collection[str], *, parts: bool = True) -> list[str]:
        """Remove image files and (with `parts`) parts of ours whose digest is not in `kept`, and
        drafts that a crash has left; a sentence for each. Other files are none of our business.
        Nothing is removed while the record is damaged: the VM may rest on any of them."""
        with self._lock:
            return [] if self.damaged else self._sweep(kept, parts=parts)

    def _sweep(self, kept: Collection[str], *, parts: bool) -> list[str]:
        told = []
        for path in _files(self.folder):
            digest_text, _, ext = path.name.partition(".")
            ours = len(digest_text) == 64 and not digest_text.strip("0123456789abcdef")
            takes = parts if ext == PART else ext in EXTENSIONS
            if ours and takes and digest_text not in kept:
                size = path.stat().st_size if path.exists() else 0
                if _remove(path):
                    told.append(f"The image file {path.name} ({size / GB:.2f} GB) was removed.")
        prefix = f".{self._record.name}."
        for path in _files(self._record.parent):
            if path.name.startswith(prefix) and _remove(path):
                told.append(f"The draft {path.name} was removed.")
        return told

    def _trouble(self, what: str, path: Path, error: OSError) -> UnavailableError:
        return UnavailableError(
            f"The agent cannot {what}.",
            f"{path}: {error.strerror or error}.",
            "Free some disk space, or check the rights of the agent's folder.",
        )


def digest(file: BinaryIO) -> str:
    """SHA-256 of what is left of an open file. Raises OSError."""
    found = hashlib.sha256()
    while data := file.read(_READ_BYTES):
        found.update(data)
    return found.hexdigest()


def folder_bytes(folder: Path) -> int:
    """What all files below a folder take on the disk; those that vanish meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(place, name))
                blocks = getattr(found, "st_blocks", None)
                total += found.st_size if blocks is None else blocks * 512
    return total


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []


def _remove(path: Path) -> bool:
    try:
        if os.name == "nt":  # where a file that may not be written may not be removed either
            os.chmod(path, stat.S_IWUSR)
        path.unlink()
    except OSError as error:
        log.warning("not_removed", path=path, why=error.strerror or error)
        return False
    return True
