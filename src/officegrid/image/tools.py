"""What a build needs of the machine it runs on, checked before anything is begun."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from officegrid.core.errors import ForbiddenError, UnavailableError

SHARED = {
    "unshare": "util-linux",
    "sfdisk": "fdisk",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "syslinux": "syslinux",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "tar": "tar",
}
"""Programs that every build needs, with the Debian package of each."""
SYSLINUX_FILES = {
    "/usr/lib/syslinux/mbr/mbr.bin": "syslinux-common",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32": "syslinux-common",
}
_WORK_BYTES = 5_000_000_000
_OUTPUT_BYTES = 3_000_000_000


def check_root(user_id: int | None = None) -> None:
    """Raises ForbiddenError unless the user is root."""
    if (os.geteuid() if user_id is None else user_id) != 0:
        raise ForbiddenError(
            "An image can be built by root only.",
            "The files in it belong to root, and the packages' own scripts run in a chroot.",
            "Run it with sudo, on a build machine or in a VM you can throw away.",
        )


def check_tools(
    programs: Mapping[str, str], found: Callable[[str], str | None] = shutil.which
) -> None:
    """Raises UnavailableError that names every missing package in one command."""
    missing = {package for program, package in programs.items() if not found(program)}
    missing |= {package for path, package in SYSLINUX_FILES.items() if not Path(path).exists()}
    if missing:
        packages = " ".join(sorted(missing))
        raise UnavailableError(
            "Programs that build images are missing on this machine.",
            f"They belong to: {packages}.",
            f"Run: apt-get install -y --no-install-recommends {packages}",
        )


def check_space(work: Path, output: Path) -> None:
    """Raises UnavailableError where a full disk would end the build half-way."""
    for folder, needed, option in ((work, _WORK_BYTES, "--work"), (output, _OUTPUT_BYTES, "-o")):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UnavailableError(
                f"There is not enough room in {folder} to build an image.",
                f"{free / 1e9:.1f} GB are free, {needed / 1e9:.0f} GB are needed at most.",
                f"Free some disk space, or name another folder with {option}.",
            )
