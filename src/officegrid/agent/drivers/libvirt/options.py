"""`[vm.options]` of agent.toml for the libvirt driver."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from officegrid.core.errors import UsageError

ACCELERATORS = ("auto", "kvm", "tcg")
SYSTEM_DISKS = Path("/var/lib/libvirt/images")


@dataclass(frozen=True, slots=True)
class LibvirtOptions:
    """All options, with their defaults; docs/drivers/libvirt.md explains each."""

    uri: str = ""
    """Which libvirt; empty: qemu:///system for root, qemu:///session for everybody else."""
    accelerator: str = "auto"
    """auto: kvm where the processor and the device allow it, else tcg (emulation)."""
    disk_folder: str = ""
    """Where disk, console log and seed lie: QEMU's own user must be able to enter it. Empty: the
    VM's folder; with qemu:///system /var/lib/libvirt/images."""
    machine: str = "q35"
    cpu_model: str = ""
    """A libvirt CPU model; empty: host-model with kvm, maximum without."""
    cpu_shares: int = 20
    """Weight against 1024 of ordinary programs; qemu:///system only."""
    kernel: str = ""
    """A Linux kernel to boot directly; empty: the disk has a boot loader of its own."""
    initrd: str = ""
    append: str = "console=ttyS0 quiet"
    network: str = "user"
    """user: outgoing connections only; 10.0.2.2 is this PC, with its services on loopback.
    none: no network card."""
    disk_margin_mb: int = 512
    """Must be free on the disk of `disk_folder` before a start."""
    save_timeout_s: int = 60
    """A save that takes longer is given up."""
    virsh: str = "virsh"
    image_tool: str = "qemu-img"


def parse_options(given: dict[str, Any]) -> LibvirtOptions:
    """Check and complete. Raises UsageError naming the option."""
    known = {item.name for item in fields(LibvirtOptions)}
    defaults = LibvirtOptions()
    for key, value in given.items():
        if key not in known:
            raise _wrong(key, f"There is no such option; there are {', '.join(sorted(known))}.")
        if type(value) is not type(getattr(defaults, key)):
            kind = "whole number" if isinstance(getattr(defaults, key), int) else "text"
            raise _wrong(key, f"It is a {kind}, not {value!r}.")
    options = LibvirtOptions(**given)
    if options.accelerator not in ACCELERATORS:
        raise _wrong("accelerator", f"It is one of {', '.join(ACCELERATORS)}.")
    if options.network not in ("user", "none"):
        raise _wrong("network", "It is user or none.")
    if not 2 <= options.cpu_shares <= 10_000:
        raise _wrong("cpu_shares", "It is 2 to 10000.")
    if options.save_timeout_s < 1:
        raise _wrong("save_timeout_s", "It is a number of seconds, 1 or more.")
    if options.disk_margin_mb < 0:
        raise _wrong("disk_margin_mb", "It is a number of megabytes, 0 or more.")
    if options.initrd and not options.kernel:
        raise _wrong("initrd", "It needs `kernel` too.")
    return options


def uri_of(options: LibvirtOptions) -> str:
    """The connection that is meant."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return options.uri or ("qemu:///system" if is_root else "qemu:///session")


def is_system(options: LibvirtOptions) -> bool:
    """Is it the libvirt of the whole machine, which may use control groups?"""
    return "///system" in uri_of(options)


def disk_folder(options: LibvirtOptions, folder: Path) -> Path:
    if options.disk_folder:
        return Path(options.disk_folder)
    return SYSTEM_DISKS if is_system(options) and SYSTEM_DISKS.is_dir() else folder


def _wrong(key: str, why: str) -> UsageError:
    return UsageError(
        f"The libvirt option {key!r} is wrong.",
        why,
        "Correct [vm.options]; see docs/drivers/libvirt.md.",
    )
