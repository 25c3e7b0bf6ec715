"""Making the VM from an OVA, fitting it to the settings, resetting and removing it.

Option spellings are those of 6.1: 7.x keeps every one of them as an alias (VBoxManage manual,
modifyvm). The VM gets what a batch worker needs and nothing else: NAT, no USB, no sound, no
remote display, lowest priority.
"""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from officegrid.agent.drivers.virtualbox import parse, snapshots, stopping
from officegrid.agent.drivers.virtualbox.manage import failure
from officegrid.agent.drivers.virtualbox.vm import OWNER_KEY, Sight, Vm, free_disk_mb
from officegrid.agent.log import get_logger
from officegrid.core.vm import DriverError, Trouble, VmState

_IDE_TYPES = ("PIIX3", "PIIX4", "ICH6")
_SEED_CONTROLLER = "OfficeGrid"
FRESH = "fresh"
log = get_logger("virtualbox")


def import_image(vm: Vm) -> None:
    """Does nothing if our VM is there; takes it out again where it was set aside and the image is
    the same. Raises IMAGE, NAME_TAKEN, DISK_FULL, FAILED."""
    sight = vm.look()
    if sight.state is not VmState.ABSENT:
        if not vm.is_aside or _take_out(vm, sight):
            return
        delete(vm)
        sight = vm.look()
    vm.remember(None)
    image = _checked_image(vm)
    if sight.info or vm.look_by_name().info:
        raise DriverError(
            Trouble.NAME_TAKEN,
            f"VirtualBox has a VM named {vm.settings.name!r} already, and it is not ours.",
            "Office Grid touches no VM that it has not made.",
            "Rename that VM, or choose another name under [vm] in agent.toml.",
        )
    # Not registered and in our own folder: what an import that was cut off has left.
    shutil.rmtree(vm.machines / vm.settings.name, ignore_errors=True)
    vm.machines.mkdir(parents=True, exist_ok=True)
    mark = snapshots.image_mark(image)
    try:
        sight = _run_import(vm, image)
        vm.change(
            "The imported VM could not be marked as ours.",
            "setextradata", vm.uuid, OWNER_KEY, vm.mark,
        )  # fmt: skip
        fit(vm, sight)
    except DriverError:
        with contextlib.suppress(DriverError):
            delete(vm)
        raise
    snapshots.take_base(vm, image, mark)


def _take_out(vm: Vm, sight: Sight) -> bool:
    """The VM that is set aside, as if imported now; False: it must be imported. Raises IMAGE."""
    if vm.settings.image is None or not vm.settings.image.is_file():
        _checked_image(vm)
    if not snapshots.is_same_image(vm) or not snapshots.has_base(vm, sight):
        return False
    try:
        if sight.word != "poweroff" or vm.machine is None or vm.machine.aside != FRESH:
            restore(vm)
        fit(vm, vm.look())
    except DriverError as error:
        log.warning("not_taken_out", what=error.what, why=error.why, then="the image is imported")
        return False
    vm.remember_also(aside="")
    return True


def reset(vm: Vm) -> None:
    """Set our VM aside as it came from its image; delete it where that cannot be had. Nothing of
    what the guest has written is left. Raises as `delete`."""
    sight = vm.look()
    if sight.state is VmState.ABSENT:
        return
    if not snapshots.has_base(vm, sight) or not snapshots.is_same_image(vm):
        delete(vm)
        return
    stopping.power_off(vm)
    stopping.discard(vm)
    # First of all: a crash in the midst must not leave a VM that passes for one with its work.
    vm.remember_also(aside="yes")
    try:
        restore(vm)
    except DriverError as error:
        log.warning("not_reset", what=error.what, why=error.why, then="the VM is deleted")
        delete(vm)


def restore(vm: Vm) -> None:
    """Back to the snapshot; the VM is off and set aside. Raises DriverError."""
    snapshots.restore_base(vm)
    vm.remember_also(aside=FRESH, restored_s=str(int(time.time())))


def _checked_image(vm: Vm) -> Path:
    image = vm.settings.image
    fix = "Correct image under [vm] in agent.toml, or fetch the image again."
    if image is None or not image.is_file():
        where = f"There is no file {image}." if image else "agent.toml names none."
        raise DriverError(Trouble.IMAGE, "The VM's image is missing.", where, fix)
    size_mb = image.stat().st_size // (1024 * 1024)
    if image.suffix.lower() != ".ovf":
        try:
            with tarfile.open(image) as archive:
                first = archive.next()
        except (tarfile.TarError, OSError) as error:
            what = f"The VM's image {image} is not an OVA file."
            raise DriverError(Trouble.IMAGE, what, str(error), fix) from None
        if first is None or not first.name.lower().endswith(".ovf"):
            what = f"The VM's image {image} is not an OVA file."
            raise DriverError(Trouble.IMAGE, what, "An OVA begins with its .ovf description.", fix)
    # Disks in an OVA are compressed; twice its size is a guess that VirtualBox corrects later.
    wanted_mb = 2 * size_mb + vm.settings.memory_mb + vm.options.disk_margin_mb
    if (free_mb := free_disk_mb(vm.folder)) < wanted_mb:
        raise DriverError(
            Trouble.DISK_FULL,
            "There is not enough disk space to import the VM.",
            f"{free_mb} MB are free at {vm.folder}; about {wanted_mb} MB are needed.",
            "Free some space.",
        )
    return image


def _run_import(vm: Vm, image: Path) -> Sight:
    reply = vm.manage.call(
        "import", str(image), "--vsys", "0", "--vmname", vm.settings.name,
        "--basefolder", str(vm.machines.absolute()),
        timeout_s=vm.options.import_timeout_s,
    )  # fmt: skip
    what = f"The image {image.name} could not be imported."
    if not reply.ok:
        error = failure(what, reply)
        if error.trouble is Trouble.FAILED and reply.code in (
            parse.FILE_ERROR, parse.IPRT_ERROR, 0x80BB000A,
        ):  # fmt: skip
            fix = "Fetch the image again; is it complete?"
            raise DriverError(Trouble.IMAGE, what, reply.words, fix)
        raise error
    sight = vm.look_by_name()
    if vm.machine is None:
        raise DriverError(
            Trouble.FAILED, what, "VirtualBox reports success, but the VM is not in its list."
        )
    return sight


# -- settings ---------------------------------------------------------------------------------


def fit(vm: Vm, sight: Sight) -> None:
    """Bring the VM, which is off, to our settings; calls VirtualBox only where they differ."""
    info, settings = sight.info, vm.settings
    wanted = {
        "memory": ("memory", str(settings.memory_mb)),
        "cpus": ("cpus", str(settings.cpus)),
        "cpuexecutioncap": ("cpuexecutioncap", str(settings.cpu_cap_percent)),
        "nic1": ("nic1", "nat"),
        "vrde": ("vrde", "off"),
        "usb": ("usb", "off"),
        "vmprocpriority": ("vm-process-priority", "low"),
    }
    arguments: list[str] = []
    for key, (option, value) in wanted.items():
        if info.get(key) != value and not (key == "vmprocpriority" and key not in info):
            arguments += [f"--{option}", value]
    for number in range(2, 9):
        if info.get(f"nic{number}", "none") != "none":
            arguments += [f"--nic{number}", "none"]
    if info.get("audio", "none") not in ("none", "null") and info.get("audio_out") != "off":
        arguments += ["--audio", "none"]
    reach_host = "on" if vm.options.reach_host else "off"
    known = vm.machine.reach_host if vm.machine is not None else ""
    if known != reach_host and vm.version().hides_host_loopback:
        arguments += ["--natlocalhostreachable1", reach_host]
    if arguments:
        vm.change("The VM's settings could not be changed.", "modifyvm", vm.uuid, *arguments)
    vm.remember_also(reach_host=reach_host)
    _fit_seed(vm, sight)


def _fit_seed(vm: Vm, sight: Sight) -> None:
    """The seed disk is in the drive while its file exists; a missing file would stop the start."""
    seed = vm.settings.seed_iso
    attached = _slots(sight.info, lambda medium: medium.lower().endswith(".iso"))
    wanted = str(seed.absolute()) if seed is not None and seed.is_file() else None
    for controller, port, device, medium in attached:
        if wanted is not None and Path(medium) == Path(wanted):
            wanted = None
        elif not Path(medium).is_file():
            _attach(vm, controller, port, device, "emptydrive")
    if wanted is None:
        return
    free = _slots(sight.info, lambda medium: medium == "emptydrive")
    free += [
        slot
        for slot in _slots(sight.info, lambda medium: medium == "none")
        if _controller_type(sight.info, slot[0]) in _IDE_TYPES
    ]
    if free:
        _attach(vm, free[0][0], free[0][1], free[0][2], wanted)
        return
    what = "A drive for the VM's seed disk could not be added."
    vm.change(what, "storagectl", vm.uuid, "--name", _SEED_CONTROLLER, "--add", "ide")
    _attach(vm, _SEED_CONTROLLER, "0", "0", wanted)


def _slots(info: dict[str, str], wanted: Callable[[str], bool]) -> list[tuple[str, str, str, str]]:
    """(controller, port, device, medium) of the slots whose medium is `wanted`."""
    found = []
    names = [value for key, value in info.items() if key.startswith("storagecontrollername")]
    for name in names:
        for key, medium in info.items():
            port, dash, device = key.removeprefix(name + "-").partition("-")
            if key.startswith(name + "-") and dash and (port + device).isdigit() and wanted(medium):
                found.append((name, port, device, medium))
    return found


def _controller_type(info: dict[str, str], name: str) -> str:
    for key, value in info.items():
        if key.startswith("storagecontrollername") and value == name:
            return info.get(key.replace("name", "type"), "")
    return ""


def _attach(vm: Vm, controller: str, port: str, device: str, medium: str) -> None:
    vm.change(
        "The VM's seed disk could not be put into its drive.",
        "storageattach", vm.uuid, "--storagectl", controller, "--port", port, "--device", device,
        "--type", "dvddrive", "--medium", medium,
    )  # fmt: skip


# -- removing ---------------------------------------------------------------------------------


def delete(vm: Vm) -> None:
    """Remove our VM and its files, running or not. A VM that is not ours is left alone."""
    sight = vm.look()
    if sight.state is not VmState.ABSENT:
        if sight.state is VmState.BROKEN and sight.word == "inaccessible":
            vm.kill()
        else:
            stopping.power_off(vm)
            stopping.discard(vm)
        _unregister(vm, whole=sight.word != "inaccessible")
    vm.remember(None)
    shutil.rmtree(vm.machines, ignore_errors=True)
    if vm.machines.exists():
        raise DriverError(
            Trouble.FAILED,
            "Some files of the deleted VM could not be removed.",
            f"They are in {vm.machines}.",
            "Another program may have them open; delete the folder later.",
        )


def _unregister(vm: Vm, *, whole: bool) -> None:
    # An inaccessible VM has no settings that name its files: they go with our folder.
    options = ("--delete",) if whole else ()
    reply = vm.manage.call_patiently(
        "unregistervm", vm.uuid, *options, timeout_s=vm.options.change_timeout_s,
        done=lambda: vm.look().state is VmState.ABSENT,
    )  # fmt: skip
    if not reply.ok and vm.look().state is not VmState.ABSENT:
        raise failure("The VM could not be deleted.", reply)
