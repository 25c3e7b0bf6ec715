"""The raw disk: MBR, a FAT partition that boots by BIOS and by UEFI, an ext4 partition.

    sector 2048   partition 1, FAT32, label GRIDBOOT, active: SYSLINUX, systemd-boot, kernel, initrd
    then          partition 2, ext4, label root

Everything works on a plain file: sfdisk(8), mkfs.vfat(8) --offset, mtools(1) (file@@offset),
syslinux(1) -t. SYSLINUX starts on a BIOS; a UEFI firmware starts EFI/BOOT/BOOTX64.EFI, which is
systemd-boot, unsigned: Secure Boot must be off.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from officegrid.image import ext4
from officegrid.image.run import BuildError, Runner

_MIB = 2**20
_SECTOR = 512
_BOOT_START = 1 * _MIB
_BOOT_SIZE = 127 * _MIB
_ROOT_START = _BOOT_START + _BOOT_SIZE
_BOOT_LABEL = "GRIDBOOT"
_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
_LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
_EFI = "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
_KERNEL_LINE = (
    "root=LABEL=root rw fsck.mode=skip quiet loglevel=3 panic=10 console=tty0 console=ttyS0"
)
_SYSLINUX = """\
DEFAULT grid
PROMPT 0
TIMEOUT 1
LABEL grid
  LINUX /vmlinuz
  INITRD /initrd.img
  APPEND {line}
"""
_ENTRY = """\
title GridMachine
linux /vmlinuz
initrd /initrd.img
options {line}
"""


def layout(disk_gb: int, name: str) -> str:
    """Partition table for sfdisk; the disk's identifier follows from the build's name."""
    identifier = hashlib.sha256(f"disk {name}".encode()).hexdigest()[:8]
    boot = f"start={_BOOT_START // _SECTOR}, size={_BOOT_SIZE // _SECTOR}, type=c, bootable"
    size = (disk_gb * 10**9 // _MIB * _MIB - _ROOT_START) // _SECTOR
    return (
        f"label: dos\nlabel-id: 0x{identifier}\nunit: sectors\n{boot}\n"
        f"start={_ROOT_START // _SECTOR}, size={size}, type=83\n"
    )


def boot_folder(folder: Path, kernel: Path, initrd: Path, root: Path) -> bool:
    """Fill `folder` with what lies on the boot partition; True when UEFI finds its program.

    Raises BuildError when it does not fit.
    """
    folder.mkdir()
    files = {
        "vmlinuz": kernel.read_bytes(),
        "initrd.img": initrd.read_bytes(),
        "ldlinux.c32": _LDLINUX.read_bytes(),
        "syslinux.cfg": _SYSLINUX.format(line=_KERNEL_LINE).encode(),
    }
    efi = root / _EFI
    if efi.exists():
        files |= {
            "EFI/BOOT/BOOTX64.EFI": efi.read_bytes(),
            "loader/loader.conf": b"timeout 0\neditor no\n",
            "loader/entries/grid.conf": _ENTRY.format(line=_KERNEL_LINE).encode(),
        }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    total = sum(map(len, files.values()))
    if total > _BOOT_SIZE - 8 * _MIB:
        raise BuildError(
            "Kernel and initrd do not fit on the boot partition.",
            f"They have {total // _MIB} MiB, the partition has {_BOOT_SIZE // _MIB}.",
        )
    return efi.exists()


def write(run: Runner, disk: Path, root: Path, boot: Path, disk_gb: int, name: str) -> None:
    """Make the whole disk at `disk`, a sparse file. Raises BuildError."""
    size = disk_gb * 10**9 // _MIB * _MIB
    with disk.open("wb") as file:
        file.truncate(size)
    what = "The disk's partitions could not be made."
    run.run(["sfdisk", "--quiet", str(disk)], what, stdin=layout(disk_gb, name))
    _write_boot(run, disk, boot, name)
    with disk.open("r+b") as file:
        file.write(_MBR.read_bytes()[:440])
    ext4.write(run, root, disk, _ROOT_START, size - _ROOT_START, name)


def _write_boot(run: Runner, disk: Path, boot: Path, name: str) -> None:
    what = "The boot partition could not be made."
    serial = hashlib.sha256(f"boot {name}".encode()).hexdigest()[:8]
    run.run(
        ["mkfs.vfat", "--invariant", "-F", "32", "-s", "1", "-h", str(_BOOT_START // _SECTOR),
         "--offset", str(_BOOT_START // _SECTOR), "-i", serial, "-n", _BOOT_LABEL, str(disk),
         str(_BOOT_SIZE // 1024)],
        what,
    )  # fmt: skip
    for path in [boot, *boot.rglob("*")]:
        os.utime(path, (run.epoch_s, run.epoch_s))
    partition = f"{disk}@@{_BOOT_START}"
    for path in sorted(boot.iterdir()):
        run.run(["mcopy", "-i", partition, "-s", "-m", "-o", str(path), "::"], what)
    run.run(["syslinux", "--install", "-t", str(_BOOT_START), str(disk)], what)
