"""Sub-commands import, export and clonevm. Faults of import: disk_full and the common ones."""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

from officegrid.testing.vboxmanage.power import FILE_ERROR, IPRT_ERROR, Call
from officegrid.testing.vboxmanage.store import new_uuid
from officegrid.testing.vboxmanage.texts import PROGRESS, VerbFailedError
from officegrid.testing.vboxmanage.verbs import new_settings, register_new, value_of

_IMPORT = (
    '"RTEXITCODE handleImportAppliance(HandlerArg*)" at line 1447 of file VBoxManageAppliance.cpp'
)
_EXPORT = (
    '"RTEXITCODE handleExportAppliance(HandlerArg*)" at line 2028 of file VBoxManageAppliance.cpp'
)
_APPLIANCE = "ApplianceWrap, interface IAppliance"


def write_ova(path: Path, name: str, *, sata: bool = False, disk_bytes: int = 4096) -> None:
    """A small appliance: a description and a disk, in the order that OVA asks for."""
    controller = "AHCI" if sata else "PIIX4"
    description = f"<Envelope><VirtualSystem id={name!r}/><!-- {controller} --></Envelope>\n"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in (
            (f"{name}.ovf", description.encode()),
            (f"{name}-disk1.vmdk", b"\0" * disk_bytes),
        ):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _read_ova(call: Call, image: str) -> tuple[str, str, bytes]:
    """(name, description, disk); fails as VirtualBox does for a damaged file."""
    try:
        with tarfile.open(image) as archive:
            parts = {one.name: archive.extractfile(one) for one in archive.getmembers()}
            data = {name: file.read() for name, file in parts.items() if file is not None}
        ovf = next(name for name in data if name.endswith(".ovf"))
        disk = next(name for name in data if name.endswith(".vmdk"))
    except (tarfile.TarError, OSError, StopIteration) as error:
        call.writer.error(
            f"Appliance read failed\nError reading '{image}': {error} (VERR_TAR_UNEXPECTED_EOS)",
            code=IPRT_ERROR, component=_APPLIANCE, context=_IMPORT,
        )  # fmt: skip
        raise VerbFailedError from None
    return ovf.removesuffix(".ovf"), data[ovf].decode(), data[disk]


def import_appliance(call: Call, words: list[str]) -> None:
    image = words[0]
    call.common_fault(image)
    writer = call.writer
    inner, description, disk = _read_ova(call, image)
    writer.err(f"{PROGRESS}\nInterpreting {image}...\nOK.")
    writer.out(_plan(call, inner, words))
    if "--dry-run" in words or "-n" in words:
        return
    time.sleep(call.modes.delay_s("import"))
    name = value_of(words, "--vmname", inner)
    default = call.home.folder.parent / "VirtualBox VMs"
    base = Path(value_of(words, "--basefolder", str(default)))
    settings = new_settings(call, name, "Debian (64-bit)", base)
    if call.kind == "disk_full" or Path(settings["CfgFile"]).exists():
        _import_failed(call, settings)
    settings["memory"], settings["audio"] = 64, "default"
    folder = Path(settings["CfgFile"]).parent
    folder.mkdir(parents=True, exist_ok=True)
    disk_path = folder / f"{inner}-disk1.vmdk"
    disk_path.write_bytes(disk)
    medium = {"path": str(disk_path), "kind": "hdd", "uuid": new_uuid()}
    sata = {"name": "SATA", "type": "IntelAhci", "ports": 1, "devices": 1}
    ide = {"name": "IDE", "type": "PIIX4", "ports": 2, "devices": 2}
    chosen: dict[str, Any] = sata if "AHCI" in description else ide
    settings["controllers"] = [{**chosen, "media": {"0-0": medium}}]
    register_new(call, settings, _IMPORT, callee=False)
    writer.err(PROGRESS)
    writer.out(writer.say("Successfully imported the appliance."))


def _import_failed(call: Call, settings: dict[str, Any]) -> None:
    why = f"Machine settings file '{settings['CfgFile']}' already exists"
    component = "MachineWrap, interface IMachine"
    if call.kind == "disk_full":
        why, component = "Could not create the disk image (VERR_DISK_FULL)", _APPLIANCE
    call.writer.err("0%...VBOX_E_FILE_ERROR")
    call.writer.error(
        f"Appliance import failed\n{why}", code=FILE_ERROR, component=component, context=_IMPORT
    )
    raise VerbFailedError


def _plan(call: Call, inner: str, words: list[str]) -> str:
    home = call.home.folder.parent / "VirtualBox VMs"
    suggested = inner
    with call.home.locked():
        number = 0
        while call.home.find(suggested) is not None:
            number += 1
            suggested = f"{inner} {number}"
    name = f' 1: Suggested VM name "{suggested}"\n    (change with "--vsys 0 --vmname <name>")'
    if "--vmname" in words:
        name = f' 1: VM name specified with --vmname: "{value_of(words, "--vmname")}"'
    base = (
        f' 4: Suggested VM base folder "{home}"\n    (change with "--vsys 0 --basefolder <path>")'
    )
    if "--basefolder" in words:
        chosen = value_of(words, "--basefolder")
        base = f' 4: VM base folder specified with --basefolder: "{chosen}"'
    return f"""\
Virtual system 0:
 0: Suggested OS type: "Debian_64"
    (change with "--vsys 0 --ostype <type>"; use "list ostypes" to list all possible values)
{name}
 2: Suggested VM group "/"
    (change with "--vsys 0 --group <group>")
 3: Suggested VM settings file name "{home}/{suggested}/{suggested}.vbox"
    (change with "--vsys 0 --settingsfile <filename>")
{base}
 5: Number of CPUs: 1
    (change with "--vsys 0 --cpus <n>")
 6: Guest memory: 64 MB
    (change with "--vsys 0 --memory <MB>")
 7: Sound card (appliance expects "", can change on import)
    (disable with "--vsys 0 --unit 7 --ignore")
 8: Network adapter: orig NAT, config 3, extra slot=0;type=NAT
 9: CD-ROM
    (disable with "--vsys 0 --unit 9 --ignore")
10: IDE controller, type PIIX4
    (disable with "--vsys 0 --unit 10 --ignore")
11: IDE controller, type PIIX4
    (disable with "--vsys 0 --unit 11 --ignore")"""


def export_appliance(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _EXPORT)
    path = Path(value_of(words, "-o") or value_of(words, "--output"))
    if path.exists():
        call.writer.err("0%...VBOX_E_IPRT_ERROR")
        text = f"Appliance write failed\nFailed to open '{path}' for writing (VERR_ALREADY_EXISTS)"
        call.writer.error(text, code=IPRT_ERROR, component=_APPLIANCE, context=_EXPORT)
        raise VerbFailedError
    with call.home.locked():
        name = call.home.settings(uuid)["name"]
    write_ova(path, name)
    call.writer.progress()
    call.writer.out("Successfully exported 1 machine(s).")


def clonevm(call: Call, words: list[str]) -> None:
    uuid = call.find(words[0], _IMPORT)
    with call.home.locked():
        old = call.home.settings(uuid)
    name = value_of(words, "--name")
    default = call.home.folder.parent / "VirtualBox VMs"
    base = Path(value_of(words, "--basefolder", str(default)))
    fresh = new_settings(call, name, old["ostype"], base)
    keep = ("memory", "cpus", "nic1", "vrde", "usb", "audio")
    register_new(call, {**fresh, **{key: old[key] for key in keep}}, _IMPORT)
    folder = Path(fresh["CfgFile"]).parent
    for one in old["controllers"]:
        for medium in one["media"].values():
            if medium["kind"] == "hdd":
                shutil.copy(medium["path"], folder)
    call.writer.progress()
    call.writer.out(f'Machine has been successfully cloned as "{name}"')
