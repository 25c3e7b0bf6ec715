"""Domains of ours that are not the agent's VM any more: after a rename, or a change of folder.

A domain is ours if its metadata (libvirt, "Domain XML format", element metadata; printed by
`virsh metadata DOMAIN URI`) names the agent's own folder. Any other is left alone, whatever its
name.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

from officegrid.agent.drivers.libvirt import disk
from officegrid.agent.drivers.libvirt.domain import NAMESPACE, Places
from officegrid.agent.drivers.libvirt.virsh import Virsh

TIMEOUT_S = 15.0
_GONE = "failed to get domain"


def sweep(virsh: Virsh, folder: Path, places: Places, keep_uuid: str) -> list[str]:
    """Remove all of our folder but one, running or not; a sentence for each. Raises DriverError."""
    told = []
    listed = virsh.do(
        "list", "--all", "--uuid", timeout_s=TIMEOUT_S, what="libvirt does not list its VMs."
    )
    for uuid in listed.split():
        if uuid == keep_uuid or _folder_of(virsh, uuid) != str(folder):
            continue
        name = virsh.call("domname", uuid, timeout_s=TIMEOUT_S).stdout.strip()
        virsh.call("destroy", uuid, timeout_s=TIMEOUT_S)  # most are not running
        virsh.do(
            "undefine", uuid, "--managed-save", "--nvram", timeout_s=TIMEOUT_S,
            what=f"The leftover VM {name!r} cannot be removed from libvirt.", done=_GONE,
        )  # fmt: skip
        left = Places(places.folder, f"officegrid-{uuid}")
        disk.remove([*left.all(), base_of(left)])
        told.append(f"The leftover VM {name!r} was removed from libvirt.")
    return told


def base_of(places: Places) -> Path:
    """The image, where QEMU's user could not read it at its own place (`disk.reachable`)."""
    return places.folder / f"{places.stem}-base"


def disk_bytes(places: Places, folder: Path) -> int:
    """What the VM takes outside its own folder; files that cannot be seen do not count."""
    if places.folder == folder.absolute():
        return 0
    total = 0
    for path in places.all():
        if path.exists():
            total += path.stat().st_blocks * 512
    return total


def _folder_of(virsh: Virsh, uuid: str) -> str:
    """Of the agent that made this domain; empty: none of ours did."""
    said = virsh.call("metadata", uuid, NAMESPACE, timeout_s=TIMEOUT_S)
    if said.exit_code:
        return ""
    try:
        return Xml.fromstring(said.stdout).findtext("{*}folder") or ""
    except Xml.ParseError:
        return ""
