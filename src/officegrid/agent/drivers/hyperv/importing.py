"""Making the VM on a differencing disk over the image, fitting it to the settings, removing it.

The image (VHDX) is never written: all that the guest changes goes to `hyperv/disk.vhdx` in the
driver's folder, whose parent it is. A parent that changes makes its children useless, so a new
image means a new import.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace

from officegrid.agent.drivers.hyperv import scripts
from officegrid.agent.drivers.hyperv.powershell import ScriptError, ShellProblem
from officegrid.agent.drivers.hyperv.stopping import discard, power_off
from officegrid.agent.drivers.hyperv.troubles import codes, failure, trouble_of
from officegrid.agent.drivers.hyperv.vm import Machine, Vm
from officegrid.core.vm import DriverError, Trouble, VmState

_VHDX = b"vhdxfile"
"""The file type identifier at the beginning of every VHDX ([MS-VHDX], 2.2.1)."""
_CORRUPT = 0x80070570
"""ERROR_FILE_CORRUPT: of a new disk this can only mean the image below it."""
_REMOVE_S = 5.0


def import_image(vm: Vm) -> None:
    """Does nothing if our VM is there. Raises IMAGE, NAME_TAKEN, DISK_FULL, FAILED, …"""
    sight = vm.look(pids=False)
    if sight.state is not VmState.ABSENT:
        return
    vm.remember(None)
    _check_image(vm)
    if sight.foreign:
        raise DriverError(
            Trouble.NAME_TAKEN,
            f"Hyper-V has a VM named {vm.settings.name!r} already, and it is not ours.",
            "Office Grid touches no VM that it has not made.",
            "Rename that VM, or choose another name under [vm] in agent.toml.",
        )
    # No VM of ours: what lies here is what an import that was cut off has left.
    shutil.rmtree(vm.place, ignore_errors=True)
    try:
        vm.place.mkdir(parents=True)
        _create(vm)
    except OSError as error:
        what = "The VM could not be made."
        raise DriverError(Trouble.FAILED, what, str(error), "Check the agent's folder.") from None
    except DriverError:
        with contextlib.suppress(DriverError):
            delete(vm)
        raise


def _check_image(vm: Vm) -> None:
    image = vm.settings.image
    fix = "Correct image under [vm] in agent.toml, or fetch the image again."
    if image is None or not image.is_file():
        where = f"There is no file {image}." if image else "agent.toml names none."
        raise DriverError(Trouble.IMAGE, "The VM's image is missing.", where, fix)
    try:
        with image.open("rb") as file:
            head = file.read(len(_VHDX))
    except OSError as error:
        raise DriverError(
            Trouble.IMAGE, f"The VM's image {image} cannot be read.", str(error), fix
        ) from None
    if head != _VHDX:
        raise DriverError(
            Trouble.IMAGE,
            f"The VM's image {image} is not a VHDX file.",
            "A VHDX begins with the word vhdxfile.",
            "Fetch the image for Hyper-V, or convert one: qemu-img convert -O vhdx, Convert-VHD.",
        )
    vm.require_disk("import")


def _create(vm: Vm) -> None:
    what = f"The VM {vm.settings.name!r} could not be made."
    body = scripts.create(vm.settings, vm.options, str(vm.disk), str(vm.place), vm.mark)
    try:
        made = vm.try_to(body, vm.options.import_timeout_s)
    except ScriptError as error:
        if _CORRUPT in codes(error):
            fix = "Fetch the image again; is it complete?"
            raise DriverError(Trouble.IMAGE, what, error.message, fix) from None
        if trouble_of(error) is Trouble.GONE:
            raise DriverError(
                Trouble.FAILED, what, f"Hyper-V says: {error.message}",
                f"Does the virtual switch {vm.options.switch!r} exist?",
            ) from None  # fmt: skip
        raise failure(what, error) from None
    except ShellProblem as error:
        raise failure(what, error) from None
    vm_id = str(made[0].get("id", "")) if made and isinstance(made[0], dict) else ""
    if not vm_id:
        raise DriverError(Trouble.FAILED, what, "Hyper-V reports success, but gives no id.")
    vm.remember(Machine(vm_id, vm.settings.name, fitted=wanted(vm)))


# -- settings ---------------------------------------------------------------------------------


def wanted(vm: Vm) -> str:
    """The settings that `fit` brings a VM to, in a form that can be compared."""
    settings = vm.settings
    iso = settings.seed_iso
    try:
        stamp = iso.stat().st_mtime_ns if iso is not None else 0
    except OSError:
        stamp = 0
    return f"{settings.memory_mb} {settings.cpus} {settings.cpu_cap_percent} {iso} {stamp}"


def fit_script(vm: Vm) -> str:
    """What brings the VM to the settings; "" if it has them."""
    known = vm.machine
    return "" if known is not None and known.fitted == wanted(vm) else scripts.fit(vm.settings)


def fitted(vm: Vm) -> None:
    """It has been brought to the settings."""
    if vm.machine is not None:
        vm.remember(replace(vm.machine, fitted=wanted(vm)))


# -- removing ---------------------------------------------------------------------------------


def delete(vm: Vm) -> None:
    """Remove our VM and its files, running or not. A VM that is not ours is left alone."""
    sight = vm.look()
    if sight.state is not VmState.ABSENT:
        if sight.state is not VmState.OFF:
            with contextlib.suppress(DriverError):  # Remove-VM decides what can go
                power_off(vm)
                discard(vm)
        vm.run("The VM could not be deleted.", scripts.remove(vm.id), vm.options.change_timeout_s)
    vm.wait_for_process_end(sight.pids, _REMOVE_S)
    vm.remember(None)
    _remove_files(vm)


def _remove_files(vm: Vm) -> None:
    """Hyper-V lets go of the disk a moment after the VM is gone."""
    deadline_s = time.monotonic() + _REMOVE_S
    while vm.place.exists():
        shutil.rmtree(vm.place, ignore_errors=True)
        if not vm.place.exists():
            return
        if time.monotonic() >= deadline_s:
            raise DriverError(
                Trouble.FAILED,
                "Some files of the deleted VM could not be removed.",
                f"They are in {vm.place}.",
                "Another program may have them open; delete the folder later.",
            )
        time.sleep(0.1)


def sweep(vm: Vm, keep_name: str) -> list[str]:
    """Remove VMs that are ours (`Vm.is_ours`) but not the one; a sentence for each. Their disks lie
    in our folder, which the next import empties."""
    what, told = "Hyper-V does not list its VMs.", []
    kept = vm.machine.id if vm.machine is not None else ""
    for found in vm.run(what, scripts.list_all(), vm.options.poll_timeout_s):
        one = found if isinstance(found, dict) else {}
        vm_id, name = str(one.get("id", "")), str(one.get("name", ""))
        if not vm_id or vm_id == kept or (not kept and name == keep_name) or not vm.is_ours(one):
            continue
        body = f"{scripts.turn_off(vm_id)}; {scripts.discard(vm_id)}; {scripts.remove(vm_id)}"
        what = f"The leftover VM {name!r} could not be removed from Hyper-V."
        vm.run(what, body, vm.options.change_timeout_s)
        told.append(f"The leftover VM {name!r} was removed from Hyper-V.")
    return told
