"""The snapshot of the VM as it came from its image: taken once, gone back to in seconds.

An import copies the whole disk; a restore makes one empty differencing disk and drops the one
before. VBoxManage manual, "snapshot" (take, restore; restore needs a VM that is off) and
"Snapshot contents": a restore brings back the hard disk, all hardware settings and what is in the
drives; the VM's folder, name and extra data stay. What changed since in our own settings is
brought back by `importing.fit`. Snapshots are seen in `showvminfo --machinereadable`: SnapshotName,
SnapshotUUID, with -1, -1-1 for children; CurrentSnapshotName, CurrentSnapshotUUID.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from officegrid.agent.drivers.virtualbox.vm import Sight, Vm
from officegrid.agent.log import get_logger
from officegrid.core.vm import DriverError, Trouble

log = get_logger("virtualbox")

BASE = "officegrid-base"


def image_mark(image: Path) -> str:
    """`SIZE MTIME_NS SHA256`; empty if it has changed meanwhile or cannot tell: an OVF file says
    nothing of its disks' content. The import that follows reads the same file from memory."""
    if image.suffix.lower() == ".ovf":
        return ""
    try:
        before = _stamp(image)
        with image.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{before} {sha256}" if _stamp(image) == before else ""
    except OSError:
        return ""


def _stamp(image: Path) -> str:
    facts = image.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def is_same_image(vm: Vm) -> bool:
    """Was our VM made from what lies at `settings.image` now? Reads the whole file only where its
    time differs and its size does not."""
    image, mark = vm.settings.image, vm.machine.image if vm.machine is not None else ""
    if image is None or not mark:
        return False
    stamp, _, sha256 = mark.rpartition(" ")
    try:
        now = _stamp(image)
    except OSError:
        return False
    if now == stamp:
        return True
    same_size = now.partition(" ")[0] == stamp.partition(" ")[0]
    return same_size and image_mark(image).endswith(f" {sha256}")


def take_base(vm: Vm, image: Path, mark: str) -> None:
    """Of the VM, just made. Never raises DriverError: without it the next reset imports again."""
    if not mark:
        return
    try:
        vm.change("The VM's first snapshot could not be taken.", "snapshot", vm.uuid, "take", BASE)
        info = vm.look().info
        snapshot = info.get("CurrentSnapshotUUID", "")
        if info.get("CurrentSnapshotName") != BASE or not snapshot:
            what = "VirtualBox does not show the snapshot that it has taken."
            raise DriverError(Trouble.FAILED, what)
        if _stamp(image) != mark.rpartition(" ")[0]:
            raise DriverError(Trouble.FAILED, "The image was changed while it was imported.")
        vm.remember_also(image=mark, base=snapshot)
    except (DriverError, OSError) as error:
        log.warning("no_base_snapshot", why=str(error), then="a reset will import the image anew")


def has_base(vm: Vm, sight: Sight) -> bool:
    """Is our snapshot there, and no other? Those of others would hold the disk space."""
    there = {value for key, value in sight.info.items() if key.startswith("SnapshotUUID")}
    return vm.machine is not None and bool(vm.machine.base) and there == {vm.machine.base}


def restore_base(vm: Vm) -> None:
    """The VM is off. Raises DriverError; VMState and the current snapshot decide."""
    base = vm.machine.base if vm.machine is not None else ""
    began_s = time.monotonic()
    # By its UUID: a name may be given twice.
    vm.change(
        "The VM's first snapshot could not be restored.", "snapshot", vm.uuid, "restore", base
    )
    sight = vm.look()
    if sight.word != "poweroff" or sight.info.get("CurrentSnapshotUUID") != base:
        raise DriverError(
            Trouble.FAILED,
            "The VM's first snapshot was restored, but the VM does not show it.",
            f"VirtualBox says {sight.word!r}.",
        )
    # The restore has undone the NAT switch too, and showvminfo does not tell.
    vm.remember_also(reach_host="")
    log.info("base_restored", took_s=round(time.monotonic() - began_s, 1))
