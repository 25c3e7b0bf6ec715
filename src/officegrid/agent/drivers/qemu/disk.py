"""The VM's disk: an image that is only ever read, and a throw-away overlay over it.

Formats: `qemu-img info --output=json` and the exit codes of `qemu-img check` (qemu-img(1): 0 whole,
2 corrupt, 3 leaked clusters but whole, 63 no check for this format).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from officegrid.agent.drivers.command import (
    CommandMissing,
    CommandProblem,
    Finished,
    in_background,
    run,
)
from officegrid.agent.drivers.qemu.files import Files, read_json, remove, write_json
from officegrid.core.vm import DriverError, Trouble

INFO_LIMIT_S = 30.0
CHECK_LIMIT_S = 600.0
FORMATS = frozenset({"qcow2", "vmdk", "vdi", "raw"})
RAW_SUFFIXES = frozenset({".raw", ".img"})
ROOM_MB = 64
"""A new overlay needs far less; with less than this the disk is as good as full."""
_FIX = "Copy the image to this PC again, then import it again."


@dataclass(frozen=True, slots=True)
class Made:
    """From what the VM was made: the content of image.json."""

    name: str
    """The VM's; the folder may hold a VM of another name, which is none of our business."""
    image: str
    format: str
    size: int
    modified_ns: int
    sha256: str

    @classmethod
    def read(cls, files: Files, name: str) -> Made | None:
        """None when there is no VM of that name. A damaged record counts as none."""
        found = read_json(files.made_of)
        if found is None or not files.overlay.exists():
            return None
        try:
            made = cls(**found)
        except TypeError:
            return None
        return made if made.name == name else None


def belongs_to_another(files: Files, name: str) -> str:
    """The name of the other VM that lives in this folder; empty when there is none."""
    owner = (read_json(files.made_of) or {}).get("name", name)
    return owner if isinstance(owner, str) and owner != name else ""


def make_overlay(files: Files, name: str, image: Path | None, image_tool: str) -> Made:
    """Check the image, take its digest, and lay an empty overlay over it.

    Raises IMAGE (missing, corrupt, of a format that is not taken), DISK_FULL, MISSING, FAILED.
    """
    if image is None:
        raise DriverError(
            Trouble.IMAGE, "There is no image to make the VM from.", "The settings name none.",
            "Set `image` in [vm] of agent.toml.",
        )  # fmt: skip
    image = image.absolute()
    kind = _checked_format(image, image_tool)
    made = _made(name, image, kind)
    if shutil.disk_usage(files.folder).free < ROOM_MB * 2**20:
        raise DriverError(
            Trouble.DISK_FULL, f"There is no room for the VM in {files.folder}.",
            f"Less than {ROOM_MB} MB are free.", "Free some space on this disk.",
        )  # fmt: skip
    draft = files.overlay.with_name(".overlay.draft")
    remove(draft)
    words = [image_tool, "create", "-q", "-f", "qcow2", "-F", kind, "-b", str(image), str(draft)]
    done = _run(words, INFO_LIMIT_S)
    if done.exit_code:
        remove(draft)
        full = "No space left" in done.stderr
        raise DriverError(
            Trouble.DISK_FULL if full else Trouble.FAILED,
            f"The VM's disk cannot be made in {files.folder}.",
            done.stderr.strip(),
            "Free some space on this disk." if full else "See the reason above.",
        )
    draft.replace(files.overlay)
    write_json(files.made_of, asdict(made))
    return made


def verify_image(files: Files, made: Made) -> Made:
    """The image must be the one under the overlay. Raises IMAGE when it is gone or changed."""
    image = Path(made.image)
    try:
        found = image.stat()
    except OSError as error:
        raise DriverError(
            Trouble.IMAGE, f"The VM's image {image} cannot be read.", error.strerror or "", _FIX
        ) from None
    if (found.st_size, found.st_mtime_ns) == (made.size, made.modified_ns):
        return made
    again = _made(made.name, image, made.format)
    if again.sha256 != made.sha256:
        raise DriverError(
            Trouble.IMAGE,
            f"The image {image} is not the one this VM was made from.",
            "Its content changed, and what the VM has written since fits the old one only.",
            "Put the old image back, or import the new one (this makes the VM anew).",
        )
    write_json(files.made_of, asdict(again))  # copied or touched: the same bytes
    return again


def fingerprint(overlay: Path) -> str:
    """Changes whenever the overlay was written to. Raises OSError."""
    found = overlay.stat()
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def sync_file(path: Path) -> None:
    """Make its content outlive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made(name: str, image: Path, kind: str) -> Made:
    try:
        found = image.stat()
        # Minutes for a large image, and somebody may come back meanwhile.
        digest = in_background(lambda: _sha256(image))
    except OSError as error:
        raise DriverError(
            Trouble.IMAGE, f"The image {image} cannot be read.", error.strerror or str(error), _FIX
        ) from None
    return Made(name, str(image), kind, found.st_size, found.st_mtime_ns, digest)


def _sha256(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_format(image: Path, image_tool: str) -> str:
    if not image.is_file():
        raise DriverError(Trouble.IMAGE, f"There is no image {image}.", "No such file.", _FIX)
    info = _run([image_tool, "info", "--output=json", str(image)], INFO_LIMIT_S)
    facts = _facts(info)
    kind = str(facts.get("format", ""))
    why = ""
    if info.exit_code:
        why = info.stderr.strip() or "qemu-img does not say why."
    elif kind not in FORMATS or (kind == "raw" and image.suffix.lower() not in RAW_SUFFIXES):
        # Anything at all is a raw disk to QEMU, a damaged qcow2 file too.
        why = f"It is not a disk image in one of the formats {', '.join(sorted(FORMATS))}."
    elif "backing-filename" in facts or _data_file(facts):
        why = "It is only a part: it refers to another file."
    else:
        why = _damage(image, kind, int(facts.get("cluster-size", 0)), image_tool)
    if why:
        raise DriverError(Trouble.IMAGE, f"The image {image} cannot be used.", why, _FIX)
    return kind


def _damage(image: Path, kind: str, cluster_bytes: int, image_tool: str) -> str:
    """What is wrong inside the image; empty when nothing is."""
    words = [image_tool, "check", "--output=json", "-f", kind, str(image)]
    checked = _run(words, CHECK_LIMIT_S)
    if checked.exit_code not in (0, 3, 63):
        return "It is damaged: " + " ".join((checked.stderr or checked.stdout).split())[:500]
    # The check reads tables, not data: what lies behind the end of a truncated file reads as
    # zeros. The last cluster need not be whole.
    ends = int(_facts(checked).get("image-end-offset", 0))
    if image.stat().st_size + cluster_bytes <= ends:
        return f"It is cut short: it has {image.stat().st_size} bytes and should have {ends}."
    return ""


def _facts(info: Finished) -> dict[str, Any]:
    try:
        facts = json.loads(info.stdout)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _data_file(facts: dict[str, Any]) -> bool:
    data = facts.get("format-specific", {}).get("data", {})
    return isinstance(data, dict) and "data-file" in data


def _run(words: list[str], limit_s: float) -> Finished:
    try:
        return run(words, timeout_s=limit_s, background=True)
    except CommandMissing as error:
        raise DriverError(
            Trouble.MISSING, f"{words[0]} is not installed.", str(error),
            "Install it (Debian: apt-get install qemu-utils).",
        ) from None  # fmt: skip
    except CommandProblem as error:
        raise DriverError(Trouble.TIMEOUT, f"{words[0]} takes too long.", str(error)) from None
