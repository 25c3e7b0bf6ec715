"""The VM's disk: a throw-away overlay over an image that is only ever read.

Format: `qemu-img info --output=json` (qemu-img(1)).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from officegrid.agent.drivers.command import CommandMissing, CommandProblem, Finished, run
from officegrid.core.vm import DriverError, Trouble

TIMEOUT_S = 60.0
ROOM_MB = 64
FORMATS = frozenset({"qcow2", "raw", "vmdk", "vdi"})


def make_overlay(overlay: Path, image: Path | None, image_tool: str) -> None:
    """Lay an empty overlay over `image`. IMAGE, DISK_FULL, PERMISSION, MISSING, FAILED."""
    if image is None or not image.is_file():
        raise DriverError(
            Trouble.IMAGE,
            "There is no image to make the VM from.",
            "The settings name none." if image is None else f"{image} is not there.",
            "Set `image` in [vm] of agent.toml to the image on this PC.",
        )
    image = image.absolute()
    looked = _run([image_tool, "info", "--output=json", str(image)])
    try:
        kind = str(json.loads(looked.stdout)["format"])
    except (ValueError, KeyError, TypeError):
        kind = "unreadable"
    if looked.exit_code or kind not in FORMATS:
        raise DriverError(
            Trouble.IMAGE,
            f"The image {image} cannot be used.",
            looked.stderr.strip() or f"Its format is {kind}.",
            "Copy the image to this PC again.",
        )
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.unlink(missing_ok=True)
    need_room(overlay.parent, ROOM_MB)
    words = ["create", "-q", "-f", "qcow2", "-F", kind, "-b", str(image), str(overlay)]
    made = _run([image_tool, *words])
    if made.exit_code:
        overlay.unlink(missing_ok=True)
        full = "No space left" in made.stderr
        raise DriverError(
            Trouble.DISK_FULL if full else Trouble.FAILED,
            f"The VM's disk cannot be made in {overlay.parent}.",
            made.stderr.strip(),
            "Free space on that disk." if full else "See the reason above.",
        )
    # The guest's certificate comes to lie in it; libvirt gives the file to QEMU's user.
    overlay.chmod(0o600)


def reachable(image: Path | None, base: Path) -> Path | None:
    """Where QEMU's own user can read the image: at its place, or as `base` beside the disk, which
    costs no room where both are on one file system. DISK_FULL, FAILED."""
    if image is None or not image.is_file() or _is_open(image):
        return image
    try:
        base.unlink(missing_ok=True)
        base.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(image.resolve(), base)
        except OSError:  # another file system, or one without links
            need_room(base.parent, ROOM_MB + image.stat().st_size // 2**20)
            shutil.copyfile(image, base)
            base.chmod(0o444)
    except OSError as error:
        raise DriverError(
            Trouble.FAILED,
            f"The image cannot be put into {base.parent}.",
            str(error),
            "QEMU's user cannot read it where it is; let the agent write to that folder.",
        ) from error
    return base


def _is_open(image: Path) -> bool:
    """May anybody enter its folders? Its own rights libvirt sees to."""
    try:
        return all(folder.stat().st_mode & 0o001 for folder in image.resolve().parents)
    except OSError:
        return True  # it is said elsewhere that it cannot be read


def need_room(folder: Path, margin_mb: int) -> None:
    """What the guest writes grows the overlay. DISK_FULL."""
    free_mb = shutil.disk_usage(folder).free // 2**20
    if free_mb < margin_mb:
        raise DriverError(
            Trouble.DISK_FULL,
            f"There is too little room on the disk of {folder} for the VM.",
            f"{free_mb} MB are free; {margin_mb} MB must be.",
            "Free some space on that disk, or set disk_margin_mb lower.",
        )


def trim(paths: Iterable[Path], most_bytes: int) -> None:
    """Empty files that the guest has filled; who writes them appends, and goes on at the start."""
    for path in paths:
        with suppress(OSError):
            if path.stat().st_size > most_bytes:
                os.truncate(path, 0)


def copy(source: Path, target: Path) -> None:
    """Replace `target` at once, readable by us and by QEMU's user only: there is a join code in
    a seed, and libvirt gives each disk to that user. FAILED."""
    draft = target.with_name(f"{target.name}.new")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
        os.replace(draft, target)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise DriverError(
            Trouble.FAILED, f"The seed cannot be copied to {target.parent}.", str(error)
        ) from error


def remove(paths: Iterable[Path]) -> None:
    """Remove those that are there. FAILED."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DriverError(
                Trouble.FAILED, f"{path} cannot be removed.", str(error), "Remove it by hand."
            ) from error


def _run(argv: list[str]) -> Finished:
    try:
        return run(argv, timeout_s=TIMEOUT_S)
    except CommandMissing as error:
        raise DriverError(
            Trouble.MISSING,
            f"The command {argv[0]} is not there.",
            str(error),
            "Install qemu-utils.",
        ) from error
    except CommandProblem as error:
        raise DriverError(Trouble.TIMEOUT, f"{argv[0]} does not end.", str(error)) from error
