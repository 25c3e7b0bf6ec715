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


def copy(source: Path, target: Path) -> None:
    """Replace `target` at once. DISK_FULL, FAILED."""
    draft = target.with_name(f"{target.name}.new")
    try:
        shutil.copyfile(source, draft)
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
