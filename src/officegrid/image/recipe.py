"""What an image is to be made of: pure, checked once, before anything is downloaded.

A `Recipe` holds the admin's choices. The families (`debian`, `el9`) turn it into package lists and
commands. Two builds from equal recipes and equal package indexes give equal disks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from officegrid.core.errors import UsageError

PARTS = {
    "php": "PHP on the command line with the usual extensions",
    "mariadb": "MariaDB server and client, reached by a local socket only",
    "python": "pip, venv and a few common modules (the interpreter itself is always there)",
}
RELEASES = {"debian": ("bookworm", "trixie"), "el9": ("9",)}
"""By family; the first is the default."""
FORMATS = ("qcow2", "ova", "vhdx")
"""qcow2: QEMU and libvirt. ova: VirtualBox. vhdx: Hyper-V."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_PACKAGE = re.compile(r"[a-z0-9][A-Za-z0-9.+_-]*")
_MIRROR = re.compile(r"(https?|file)://[^\s\[\]]+")
_LEAST_DISK_GB, _MOST_DISK_GB = 4, 1024


@dataclass(frozen=True, slots=True)
class Recipe:
    """`disk_gb`: what the guest sees; a file takes what is written. `start`: how the worker runs,
    "service" or "cron" (every `every_minutes`). `packages`: the company's own, by name.
    `scripts`: run in the guest's root as root, in this order. Empty `mirror`: the public one."""

    family: str
    release: str
    parts: tuple[str, ...]
    formats: tuple[str, ...]
    start: str = "service"
    every_minutes: int = 5
    packages: tuple[str, ...] = ()
    scripts: tuple[Path, ...] = ()
    disk_gb: int = 16
    mirror: str = ""
    security_mirror: str = ""
    wheelhouse: Path | None = None

    def guest_settings(self) -> dict[str, Any]:
        """The guest's `/etc/officegrid/guest.json`: defaults that a seed may override."""
        return {
            "start": self.start, "every_minutes": self.every_minutes, "user": "grid", "slots": 1,
        }  # fmt: skip


def parse_list(texts: Iterable[str], known: Iterable[str], option: str) -> tuple[str, ...]:
    """`["php,mariadb", "python"]` -> the names, each once, in the order of `known`. "none" stands
    for the empty list. Raises UsageError for a name that is not known."""
    known = tuple(known)
    words = {word.strip() for text in texts for word in text.split(",") if word.strip()}
    words.discard("none")
    if wrong := sorted(words - set(known)):
        raise UsageError(
            f"{option}: {', '.join(wrong)} is not known.",
            f"Known are {', '.join(known)}.",
            f"Give for example {option} {','.join(known[:2])}.",
        )
    return tuple(name for name in known if name in words)


def parse_start(text: str) -> tuple[str, int]:
    """`service`, `cron` or `cron:N` -> (start, every_minutes). Raises UsageError."""
    if text == "service":
        return "service", 5
    word, _, number = text.partition(":")
    if word == "cron" and (number.isdigit() or not number):
        every = int(number or 5)
        if 1 <= every <= 59:
            return "cron", every
    raise UsageError(
        f"--start {text} is not known.",
        "The worker runs as a service, or is started by cron every N minutes, 1 to 59.",
        "Give --start service, --start cron or --start cron:10.",
    )


def check(recipe: Recipe) -> Recipe:
    """The same recipe. Raises UsageError where it cannot be built."""
    releases = RELEASES.get(recipe.family)
    if releases is None:
        raise UsageError(f"--family {recipe.family} is not known.", fix="Give debian or el9.")
    if recipe.release not in releases:
        raise UsageError(
            f"--release {recipe.release} does not belong to the family {recipe.family}.",
            fix=f"Give one of {', '.join(releases)}.",
        )
    if not recipe.formats:
        raise UsageError("An image needs a file format.", fix=f"Give --format {FORMATS[0]}.")
    if not _LEAST_DISK_GB <= recipe.disk_gb <= _MOST_DISK_GB:
        raise UsageError(
            f"A disk of {recipe.disk_gb} GB is out of bounds.",
            f"The disk has {_LEAST_DISK_GB} to {_MOST_DISK_GB} GB.",
        )
    for package in recipe.packages:
        if not _PACKAGE.fullmatch(package):
            raise UsageError(f"{package!r} is not the name of a package.")
    for mirror in (recipe.mirror, recipe.security_mirror):
        _check_mirror(mirror)
    return recipe


def _check_mirror(mirror: str) -> None:
    if mirror and not _MIRROR.fullmatch(mirror):
        raise UsageError(
            f"{mirror!r} is not the address of a package mirror.",
            fix="Give an address such as https://mirror.example.com/debian.",
        )
    if "@" in mirror:
        raise UsageError(
            "The address of the mirror holds a password or a user.",
            "It is kept in the image, which every desktop gets, and an image holds no secret.",
            "Use a mirror that needs none, or let a proxy on the building machine add it.",
        )


def check_name(name: str) -> str:
    """The name of a build, which is also the name of its files. Raises UsageError."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of an image.",
            "It names files: letters, digits, dots, dashes and underscores, 80 at most.",
            "Give --name grid-2026.1.",
        )
    return name
