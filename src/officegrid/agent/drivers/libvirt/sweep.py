"""Domains of ours that are not the agent's VM any more: after a rename, or a change of folder.

A domain is ours if its metadata (libvirt, "Domain XML format", element metadata) names the agent's
own folder and the domain itself (`domain.is_ours`). Any other is left alone, whatever its name: a
copy that an admin has made of our VM carries our mark, but with the UUID of the original.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.libvirt import disk
from officegrid.agent.drivers.libvirt.domain import Places, is_ours
from officegrid.agent.drivers.libvirt.options import LibvirtOptions, is_system
from officegrid.agent.drivers.libvirt.virsh import Virsh

TIMEOUT_S = 15.0
SYSTEM_SAVES = Path("/var/lib/libvirt/qemu/save")
"""Where libvirt keeps managed saves as NAME.save (virsh(1), managedsave; libvirt, qemu_conf.c)."""
_GONE = "failed to get domain"


def sweep(virsh: Virsh, settings: VmSettings, places: Places, keep_uuid: str) -> list[str]:
    """Remove all of our folder but one, running or not; a sentence for each. Raises DriverError."""
    told = []
    listed = virsh.do(
        "list", "--all", "--uuid", timeout_s=TIMEOUT_S, what="libvirt does not list its VMs."
    )
    for uuid in listed.split():
        if uuid == keep_uuid or not _is_ours(virsh, uuid, settings):
            continue
        name = virsh.call("domname", uuid, timeout_s=TIMEOUT_S).stdout.strip()
        virsh.call("destroy", uuid, timeout_s=TIMEOUT_S)  # most are not running
        virsh.do(
            "undefine", uuid, "--managed-save", "--nvram", timeout_s=TIMEOUT_S,
            what=f"The leftover VM {name!r} cannot be removed from libvirt.", done=_GONE,
        )  # fmt: skip
        disk.remove(files_of(Places.named(places.folder, uuid)))
        told.append(f"The leftover VM {name!r} was removed from libvirt.")
    return told


def base_of(places: Places) -> Path:
    """The image, where QEMU's user could not read it at its own place (`disk.reachable`)."""
    return places.folder / f"{places.stem}-base"


def files_of(places: Places) -> list[Path]:
    """All that goes with the VM."""
    return [*places.all(), base_of(places)]


def disk_bytes(places: Places, settings: VmSettings, options: LibvirtOptions) -> int:
    """What the VM takes outside its own folder; files that cannot be seen do not count."""
    total = _size_bytes(_saves(options) / f"{settings.name}.save")
    if places.folder != settings.folder.absolute():
        total += sum(_size_bytes(path) for path in places.all())
        # A link costs no room of its own: its other name is the image in the agent's store.
        total += _size_bytes(base_of(places), links=False)
    return total


def _saves(options: LibvirtOptions) -> Path:
    if is_system(options):
        return SYSTEM_SAVES
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "libvirt/qemu/save"


def _size_bytes(path: Path, *, links: bool = True) -> int:
    try:
        facts = path.stat()
    except OSError:
        return 0
    if not stat.S_ISREG(facts.st_mode) or (facts.st_nlink > 1 and not links):
        return 0
    return facts.st_blocks * 512


def _is_ours(virsh: Virsh, uuid: str, settings: VmSettings) -> bool:
    said = virsh.call("dumpxml", uuid, timeout_s=TIMEOUT_S)
    return not said.exit_code and is_ours(said.stdout, settings)
