"""Sub-commands that look or change settings: list, showvminfo, createvm, modifyvm and so on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from officegrid.testing.vboxmanage.power import FILE_ERROR, LOCKED, NOT_FOUND, Call
from officegrid.testing.vboxmanage.store import RESTING, new_uuid, now_text
from officegrid.testing.vboxmanage.texts import VerbFailedError, machine_readable

_INFO_FIND = (
    '"FindMachine(Bstr(VMNameOrUuid).raw(), machine.asOutParam())" at line 3218 of file '
    "VBoxManageInfo.cpp"
)
_MISC_FIND = (
    '"FindMachine(Bstr(VMName).raw(), machine.asOutParam())" at line 228 of file VBoxManageMisc.cpp'
)
_MODIFY_LOCK = (
    '"LockMachine(a->session, LockType_Write)" at line 850 of file VBoxManageModifyVM.cpp'
)
_CREATE = (
    '"CreateMachine(bstrSettingsFile.raw(), bstrName.raw(), platformArch, '
    "ComSafeArrayAsInParam(groups), bstrOsTypeId.raw(), createFlags.raw(), bstrCipher.raw(), "
    'bstrPasswordId.raw(), Bstr(strPassword).raw(), machine.asOutParam())" at line 428 of file '
    "VBoxManageMisc.cpp"
)
_PLAIN = "MachineWrap, interface IMachine, callee nsISupports"
_OPTIONS = {
    "--memory": "memory", "--cpus": "cpus", "--cpuexecutioncap": "cpuexecutioncap",
    "--vm-process-priority": "priority", "--nic1": "nic1", "--vrde": "vrde", "--usb": "usb",
    "--audio": "audio", "--natlocalhostreachable1": "natlocalhostreachable1",
    "--vm-execution-engine": "engine", "--nic2": "nic2",
}  # fmt: skip
_NEW_SPELLINGS = {"--cpu-execution-cap": "cpuexecutioncap", "--audio-driver": "audio"}
_ONLY_NEW = ("--natlocalhostreachable1", "--vm-execution-engine")


def value_of(words: list[str], option: str, default: str = "") -> str:
    return words[words.index(option) + 1] if option in words else default


def list_things(call: Call, words: list[str]) -> None:
    what, out = words[0], call.writer.out
    if what in ("vms", "runningvms"):
        with call.home.locked():
            for uuid in call.home.machines():
                name = call.home.settings(uuid).get("name", "<inaccessible>")
                live = call.home.state(uuid) in ("running", "paused")
                if what == "vms" or live:
                    out(f'"{name}" {{{uuid}}}')
    elif what == "hostinfo":
        out(_host_info(call))
    elif what == "extpacks":
        packs = call.modes.extension_packs
        out(f"Extension Packs: {len(packs)}")
        for number, pack in enumerate(packs):
            out(f"Pack no.{number:2d}:   {pack}\nVersion:        7.1.8\nUsable:         true\n")
    else:
        call.writer.error(f"Unknown list {what!r}.")
        raise VerbFailedError(2)


def _host_info(call: Call) -> str:
    yes = "yes" if call.modes.hardware else "no"
    cores = os.cpu_count() or 1
    lines = [
        "Host Information:",
        "",
        f"Host time: {now_text()}Z",
        f"Processor online count: {cores}",
        f"Processor count: {cores}",
        f"Processor online core count: {cores}",
        f"Processor core count: {cores}",
        f"Processor supports HW virtualization: {yes}",
        "Processor supports PAE: yes",
        "Processor supports long mode: yes",
        f"Processor supports nested paging: {yes}",
        f"Processor supports unrestricted guest: {yes}",
        "Processor supports nested HW virtualization: no",
        "Processor supports virt. vmsave/vmload: no",
    ]
    for number in range(cores):
        lines += [
            f"Processor#{number} speed: 2600 MHz",
            f"Processor#{number} description: Stand-in",
        ]
    lines += [
        "Memory size: 16000 MByte",
        "Memory available: 8000 MByte",
        f"Operating system: {'Windows' if sys.platform == 'win32' else 'Linux'}",
        "Operating system version: 1",
    ]
    return "\n".join(lines)


def showvminfo(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _INFO_FIND)
    call.common_fault(words[0])
    time.sleep(call.modes.delay_s("showvminfo"))
    with call.home.locked():
        settings, session = call.home.settings(uuid), call.home.session(uuid)
        state = call.home.state(uuid)
    if not settings:
        call.writer.out(f'name="<inaccessible>"\nUUID="{uuid}"')
        return
    changed = session.get("changed") or settings["changed"]
    text = machine_readable(call.modes, settings, {"state": state, "changed": changed})
    call.writer.out(text)


def new_settings(call: Call, name: str, ostype: str, base: Path) -> dict[str, Any]:
    folder = base / name
    uuid = new_uuid()
    return {
        "name": name, "uuid": uuid, "ostype": ostype, "CfgFile": str(folder / f"{name}.vbox"),
        "SnapFldr": str(folder / "Snapshots"), "LogFldr": str(folder / "Logs"),
        "NvramFile": str(folder / f"{name}.nvram"), "memory": 128, "cpus": 1,
        "cpuexecutioncap": 100, "priority": "default", "nic1": "nat", "vrde": "off", "usb": "off",
        "audio": "default", "cable": "on", "mac": "080027" + uuid[:6].upper(), "controllers": [],
        "extra": {}, "properties": {}, "state_file": "", "aborted": False, "changed": now_text(),
    }  # fmt: skip


def register_new(call: Call, settings: dict[str, Any], context: str, callee: bool = True) -> None:
    """Fails as VirtualBox does if the settings file is there already."""
    if Path(settings["CfgFile"]).exists():
        component = _PLAIN if callee else "MachineWrap, interface IMachine"
        text = f"Machine settings file '{settings['CfgFile']}' already exists"
        call.writer.error(text, code=FILE_ERROR, component=component, context=context)
        raise VerbFailedError
    with call.home.locked():
        call.home.register(settings)


def createvm(call: Call, words: list[str]) -> None:
    name = value_of(words, "--name")
    default = call.home.folder.parent / "VirtualBox VMs"
    base = Path(value_of(words, "--basefolder", str(default)))
    ostype = value_of(words, "--ostype", "Other").replace("_64", " (64-bit)")
    settings = new_settings(call, name, ostype, base)
    register_new(call, settings, _CREATE)
    call.writer.out(
        f"Virtual machine '{name}' is created and registered.\nUUID: {settings['uuid']}\n"
        f"Settings file: '{settings['CfgFile']}'"
    )


def modifyvm(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _INFO_FIND)
    with call.home.locked():
        name = call.home.settings(uuid)["name"]
    call.common_fault(name)
    changes: dict[str, object] = {}
    spellings = {**_OPTIONS, **({} if call.modes.is_old else _NEW_SPELLINGS)}
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option not in spellings or (call.modes.is_old and option in _ONLY_NEW):
            call.writer.error(f"Unknown option: {option}")
            raise VerbFailedError(2)
        changes[spellings[option]] = int(value) if value.isdigit() else value
    if call.locked_by_session(uuid):
        call.writer.error(
            "The machine '{0}' is already locked for a session (or being unlocked)", name,
            code=LOCKED, context=_MODIFY_LOCK,
        )  # fmt: skip
        raise VerbFailedError
    if changes.get("audio") == "none":
        changes["audio"] = "none" if call.modes.is_old else "null"
        if not call.modes.is_old:
            call.writer.err("Warning: --audio is deprecated; use --audio-driver.")
    with call.home.locked():
        call.home.change(uuid, **changes)


def storagectl(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _INFO_FIND)
    name, bus = value_of(words, "--name"), value_of(words, "--add")
    kinds = {"ide": ("PIIX4", 2, 2), "sata": ("IntelAhci", 4, 1)}
    if bus not in kinds:
        call.writer.error(f"Invalid --add argument '{bus}'")
        raise VerbFailedError
    kind, ports, devices = kinds[bus]
    with call.home.locked():
        controllers = call.home.settings(uuid)["controllers"]
        if any(one["type"] == kind for one in controllers) and bus == "ide":
            full = "Too many storage controllers of this type"
            call.writer.error(full, code=LOCKED, component=_PLAIN)
            raise VerbFailedError
        new = {"name": name, "type": kind, "ports": ports, "devices": devices, "media": {}}
        call.home.change(uuid, controllers=[*controllers, new])


def storageattach(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _INFO_FIND)
    medium, kind = value_of(words, "--medium"), value_of(words, "--type", "dvddrive")
    slot = f"{value_of(words, '--port', '0')}-{value_of(words, '--device', '0')}"
    if call.locked_by_session(uuid):
        raise VerbFailedError
    if medium not in ("none", "emptydrive") and not Path(medium).is_file():
        text = f"Could not find file for the medium '{medium}' (VERR_FILE_NOT_FOUND)"
        call.writer.error(text, code=FILE_ERROR, component="MediumWrap, interface IMedium")
        raise VerbFailedError
    with call.home.locked():
        controllers = call.home.settings(uuid)["controllers"]
        chosen = [one for one in controllers if one["name"] == value_of(words, "--storagectl")]
        if not chosen:
            call.writer.error("Could not find a storage controller", code=NOT_FOUND)
            raise VerbFailedError
        chosen[0]["media"][slot] = {"path": medium, "kind": kind, "uuid": new_uuid()}
        if medium == "none":
            del chosen[0]["media"][slot]
        call.home.change(uuid, controllers=controllers)


def extradata(call: Call, words: list[str], *, change: bool) -> None:
    uuid = call.find(words[0], _INFO_FIND)
    with call.home.locked():
        extra = call.home.settings(uuid).get("extra", {})
        if change:
            call.home.change(uuid, extra={**extra, words[1]: words[2]})
            return
    call.writer.out(f"Value: {extra[words[1]]}" if words[1] in extra else "No value set!")


def guestproperty(call: Call, words: list[str]) -> None:
    action, uuid = words[0], call.find(words[1], _INFO_FIND)
    with call.home.locked():
        properties = dict(call.home.settings(uuid)["properties"])
        live = call.home.state(uuid) not in RESTING
        resumes = call.home.session(uuid).get("resumes", 0)
        if action == "set":
            call.home.change(uuid, properties={**properties, words[2]: [words[3], time.time()]})
            return
    if action == "get":
        known = words[2] in properties
        call.writer.out(f"Value: {properties[words[2]][0]}" if known else "No value set!")
    elif action == "wait":
        time.sleep(int(value_of(words, "--timeout", "0")) / 1000)
        call.writer.error("Time out or interruption while waiting for a notification.")
        raise VerbFailedError(2)
    else:
        rows = {key: (value, at, "") for key, (value, at) in properties.items()}
        rows.update(_host_properties(call, resumes) if live else {})
        _enumerate(call, rows, "--old-format" in words or call.modes.is_old)


def _host_properties(call: Call, resumes: int) -> dict[str, tuple[str, float, str]]:
    number = ".".join(str(part) for part in call.modes.number)
    values = {
        "HostGuest/SysprepArgs": "", "HostGuest/SysprepExec": "",
        "HostInfo/VBoxRev": call.modes.version.rpartition("r")[2], "HostInfo/VBoxVer": number,
        "HostInfo/VBoxVerExt": number, "VMInfo/ResetCounter": "0",
        "VMInfo/ResumeCounter": str(resumes),
    }  # fmt: skip
    flags = "TRANSIENT, RDONLYGUEST"
    return {f"/VirtualBox/{key}": (value, time.time(), flags) for key, value in values.items()}


def _enumerate(call: Call, rows: dict[str, tuple[str, float, str]], old: bool) -> None:
    wide = max((len(key) for key in rows), default=0)
    broad = max((len(value) for value, _, _ in rows.values()), default=0) + 2
    for key, (value, at, flags) in sorted(rows.items()):
        if old:
            stamp = int(at * 1e9)
            call.writer.out(f"Name: {key}, value: {value}, timestamp: {stamp}, flags: {flags}")
        else:
            stamp_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
            quoted = f"'{value}'".ljust(broad)
            row = f"{key.ljust(wide)} = {quoted} @ {stamp_text}.{int(at % 1 * 1000):03d}Z {flags}"
            call.writer.out(row.rstrip())


def unregistervm(call: Call, words: list[str]) -> None:
    import shutil

    uuid = call.find(words[0], _MISC_FIND)
    call.common_fault(words[0])
    with call.home.locked():
        settings = call.home.settings(uuid)
    if settings and call.locked_by_session(uuid):
        call.writer.error(
            "Cannot unregister the machine '{0}' while it is locked", settings["name"],
            code=LOCKED,
            context='"Unregister(fDeleteAll ? CleanupMode_DetachAllReturnHardDisksAndVMRemovable '
            ':CleanupMode_DetachAllReturnHardDisksOnly, ComSafeArrayAsOutParam(aMedia))" at line '
            "232 of file VBoxManageMisc.cpp",
        )  # fmt: skip
        raise VerbFailedError
    with call.home.locked():
        call.home.unregister(uuid)
        shutil.rmtree(call.home.vm_folder(uuid), ignore_errors=True)
    if "--delete" in words and settings:
        states = [one["hardware"] for one in settings.get("snapshots", [])]
        for controller in (one for state in [settings, *states] for one in state["controllers"]):
            for medium in controller["media"].values():
                if medium["kind"] == "hdd":
                    Path(medium["path"]).unlink(missing_ok=True)
        shutil.rmtree(Path(settings["CfgFile"]).parent, ignore_errors=True)
        call.writer.progress()
