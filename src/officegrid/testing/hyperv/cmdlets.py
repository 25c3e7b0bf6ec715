"""Cmdlets that make, list, change and remove VMs, and their disks.

Parameters are those of Microsoft's reference (Hyper-V module, Windows Server 2022); of those that
exist, only what the driver uses does anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from officegrid.testing.hyperv.evaluator import Call, Signature
from officegrid.testing.hyperv.host import Host
from officegrid.testing.hyperv.power import new_id
from officegrid.testing.hyperv.values import Named, PsError, Thing, lookup, text

VHDX = b"vhdxfile"
_CHOICES = {
    "AutomaticStartAction": ("Nothing", "StartIfRunning", "Start"),
    "AutomaticStopAction": ("TurnOff", "Save", "ShutDown"),
    "CheckpointType": ("Disabled", "Production", "ProductionOnly", "Standard"),
    "EnableSecureBoot": ("On", "Off"),
}


class Machines:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.store = host.store

    def signatures(self) -> dict[str, Signature]:
        return {
            "Get-VM": Signature(self.get, names="Name Id ComputerName", positions="Name"),
            "New-VM": Signature(
                self.new,
                names="Name MemoryStartupBytes Generation VHDPath Path SwitchName BootDevice",
                switches="NoVHD Force",
                positions="Name",
            ),
            "Set-VM": Signature(
                self.set,
                names="VM Name ProcessorCount MemoryStartupBytes AutomaticStartAction "
                "AutomaticStopAction AutomaticCheckpointsEnabled CheckpointType Notes NewVMName "
                "SnapshotFileLocation SmartPagingFilePath",
                switches="StaticMemory DynamicMemory Passthru",
                positions="VM",
            ),
            "Set-VMProcessor": Signature(
                self.set,
                names="VM VMName Count Maximum Reserve RelativeWeight",
                switches="Passthru",
                positions="VM",
            ),
            "Set-VMFirmware": Signature(
                self.firmware, names="VM VMName EnableSecureBoot SecureBootTemplate", positions="VM"
            ),
            "Remove-VM": Signature(
                self.remove, names="VM Name", switches="Force", positions="VM"
            ),
            "New-VHD": Signature(
                self.new_vhd, names="Path ParentPath SizeBytes", switches="Differencing Dynamic",
                positions="Path",
            ),
            "Get-VMDvdDrive": Signature(self.dvds, names="VM VMName", positions="VM"),
            "Add-VMDvdDrive": Signature(self.add_dvd, names="VM VMName Path", positions="VM"),
            "Remove-VMDvdDrive": Signature(self.remove_dvd, names="VMName"),
            "Get-VMSwitch": Signature(self.switches, names="Name Id", positions="Name"),
        }  # fmt: skip

    def get(self, call: Call) -> list[Any]:
        self.host.enter(call)
        if not self.host.modes.may:
            if self.host.modes.silent_without_right:
                return []
            raise self.host.error(call, "PermissionDenied", "AccessDenied", self.host.say("right"))
        with self.store.locked():
            self.store.reconcile()
            vms = list(self.store.vms().values())
        if call.get("Id") is not None:
            wanted = text(call.get("Id"))
            vms = [vm for vm in vms if vm["id"] == wanted.upper()]
        elif call.get("Name") is not None:
            wanted = text(call.get("Name"))
            vms = [vm for vm in vms if vm["name"].lower() == wanted.lower()]
        else:
            return [self.host.vm_thing(vm) for vm in vms]
        if not vms:
            message = self.host.say("notfound", wanted)
            raise self.host.error(call, "InvalidArgument", "InvalidParameter", message)
        return [self.host.vm_thing(vm) for vm in vms]

    def new(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        disk = text(call.get("VHDPath"))
        if not Path(disk).is_file():
            raise self.host.error(
                call, "ObjectNotFound", "ObjectNotFound", f"{disk} (0x80070002)", 0x80070002
            )
        switch = call.get("SwitchName")
        if switch is not None and switch not in self.host.modes.switches:
            raise self.host.error(
                call, "InvalidArgument", "InvalidParameter", f"no switch {switch}"
            )
        name = text(call.get("Name", "New Virtual Machine"))
        vm = {
            "id": new_id(), "name": name, "state": "Off", "notes": "", "pid": 0,
            "path": str(Path(text(call.get("Path"))) / name),
            "generation": int(call.get("Generation", 1)),
            "disks": [disk], "dvds": [], "switch": switch, "settings": {
                "MemoryStartupBytes": int(call.get("MemoryStartupBytes", 2**29)),
            },
        }  # fmt: skip
        config = self.store.config(vm)
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text("configuration of a stand-in VM\n", encoding="ascii")
        self.store.worker(vm["id"]).mkdir(parents=True)
        with self.store.locked():
            self.store.put(vm)
        self.host.leave(kind)
        return [self.host.vm_thing(vm)]

    def set(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        given = {key: value for key, value in call.named.items() if key != "VM"}
        for key, choices in _CHOICES.items():
            if key in given and not lookup(dict.fromkeys(choices), text(given[key]))[0]:
                raise PsError(
                    "InvalidArgument", "CannotConvertArgumentNoMessage", f"-{key} {given[key]}"
                )
        memory = int(given.get("MemoryStartupBytes", 2**21))
        if memory % 2**21 or not 0 <= int(given.get("Maximum", 0)) <= 100:
            raise self.host.error(call, "InvalidArgument", "InvalidParameter", str(given))
        if vm["state"] != "Off" and set(given) - {"Notes", "RelativeWeight", "Maximum"}:
            raise self.host.wrong_state(call)
        with self.store.locked():
            notes = text(given.pop("Notes", vm["notes"]))
            settings = {**vm["settings"], **given}
            self.store.change(vm["id"], notes=notes, settings=settings)
            self.store.touch(vm)
        self.host.leave(kind)
        return []

    def firmware(self, call: Call) -> list[Any]:
        if self.host.target(call)["generation"] != 2:
            raise self.host.error(
                call, "InvalidArgument", "InvalidParameter", "Generation 1 has no firmware."
            )
        return self.set(call)

    def remove(self, call: Call) -> list[Any]:
        kind = self.host.enter(call)
        vm = self.host.target(call)
        if not call.get("Force"):
            raise PsError("InvalidOperation", "InvalidOperation", "NonInteractive: no prompt.")
        if not vm["state"].startswith(("Off", "Saved")):
            raise self.host.wrong_state(call)
        if kind != "silent":
            with self.store.locked():
                self.store.config(vm).unlink(missing_ok=True)
                self.store.saved(vm).unlink(missing_ok=True)
                self.store.remove(vm["id"])
        self.host.leave(kind)
        return []

    # -- disks --------------------------------------------------------------------------------

    def new_vhd(self, call: Call) -> list[Any]:
        self.host.enter(call)
        path, parent = Path(text(call.get("Path"))), Path(text(call.get("ParentPath")))
        if path.exists():
            raise self.host.error(
                call, "NotSpecified", "OperationFailed", f"{path} exists. (0x80070050)", 0x80070050
            )
        if not call.get("Differencing") or not parent.is_file():
            raise self.host.error(
                call, "ObjectNotFound", "ObjectNotFound", f"{parent} (0x80070002)", 0x80070002
            )
        head = parent.read_bytes()[:16]
        if not head.startswith(VHDX) or b"damaged" in head:
            raise self.host.error(
                call, "NotSpecified", "OperationFailed", "(0xC03A0005)", 0xC03A0005
            )
        path.write_bytes(VHDX + json.dumps({"parent": str(parent)}).encode())
        return [Thing("Microsoft.Vhd.PowerShell.VirtualHardDisk", {"Path": str(path)})]

    def dvds(self, call: Call) -> list[Any]:
        self.host.enter(call)
        vm = self.host.target(call)
        return [
            Thing("Microsoft.HyperV.PowerShell.DvdDrive", {"VMId": vm["id"], "Path": path})
            for path in vm["dvds"]
        ]

    def add_dvd(self, call: Call) -> list[Any]:
        self.host.enter(call)
        vm = self.host.target(call)
        path = text(call.get("Path"))
        if not Path(path).is_file():
            raise self.host.error(call, "InvalidArgument", "InvalidParameter", f"no file {path}")
        if vm["state"] != "Off" and vm["generation"] == 1:
            raise self.host.wrong_state(call)
        with self.store.locked():
            self.store.change(vm["id"], dvds=[*vm["dvds"], path])
        return []

    def remove_dvd(self, call: Call) -> list[Any]:
        self.host.enter(call)
        for drive in call.incoming or []:
            vm_id = drive.properties["VMId"]
            with self.store.locked():
                left = [
                    one for one in self.store.get(vm_id)["dvds"] if one != drive.properties["Path"]
                ]
                self.store.change(vm_id, dvds=left)
        return []

    def switches(self, call: Call) -> list[Any]:
        self.host.enter(call)
        kind = Named("Internal", 1)
        return [
            Thing("Microsoft.HyperV.PowerShell.VMSwitch", {"Name": name, "SwitchType": kind})
            for name in self.host.modes.switches
        ]
