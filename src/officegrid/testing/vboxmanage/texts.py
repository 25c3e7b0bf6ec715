"""Words and formats of VBoxManage, by version and language.

Recorded from 7.1.8; where 6.1 and 7.0 differ the documentation and the sources say how
(VBoxManageInfo.cpp: 7.0 added `encryption`, 7.1 `platformArchitecture`; since 7.0 quotes and
backslashes in values are escaped consistently).
"""

from __future__ import annotations

import sys
from typing import Any

from officegrid.testing.vboxmanage.modes import Modes

PROGRESS = "0%...10%...20%...30%...40%...50%...60%...70%...80%...90%...100%"
_GERMAN = {
    "Could not find a registered machine named '{0}'":
        "Es konnte keine registrierte Maschine mit dem Namen '{0}' gefunden werden",
    "The machine '{0}' is already locked by a session (or being locked or unlocked)":
        "Die Maschine '{0}' ist bereits durch eine Sitzung gesperrt",
    "The machine '{0}' is already locked for a session (or being unlocked)":
        "Die Maschine '{0}' ist bereits für eine Sitzung gesperrt",
    "Machine '{0}' is not currently running.": "Maschine '{0}' läuft gerade nicht.",
    "Already paused": "Bereits angehalten",
    "The VM session was closed before any attempt to power it on":
        "Die VM-Sitzung wurde vor dem Einschalten geschlossen",
    'VM "{0}" has been successfully started.': 'Die VM "{0}" wurde erfolgreich gestartet.',
    'Waiting for VM "{0}" to power on...': 'Warten auf das Einschalten der VM "{0}"...',
    "Snapshot taken. UUID: {0}": "Sicherungspunkt erstellt. UUID: {0}",
    "Successfully imported the appliance.": "Die Appliance wurde erfolgreich importiert.",
}  # fmt: skip
_INFO = """\
name={name}
encryption="disabled"
groups="/"
platformArchitecture="x86"
ostype="{ostype}"
UUID="{uuid}"
CfgFile={CfgFile}
SnapFldr={SnapFldr}
LogFldr={LogFldr}
hardwareuuid="{uuid}"
memory={memory}
pagefusion="off"
vram=8
cpuexecutioncap={cpuexecutioncap}
cpu-profile="host"
chipset="piix3"
firmware="BIOS"
cpus={cpus}
hpet="off"
pae="off"
longmode="on"
triplefaultreset="off"
apic="on"
x2apic="on"
nested-hw-virt="off"
hwvirtex="on"
nestedpaging="on"
largepages="off"
vtxvpid="on"
vtxux="on"
virtvmsavevmload="on"
cpuid-portability-level=0
bootmenu="messageandmenu"
boot1="floppy"
boot2="dvd"
boot3="disk"
boot4="none"
acpi="on"
ioapic="on"
biosapic="apic"
biossystemtimeoffset=0
NvramFile={NvramFile}
rtcuseutc="on"
iommu="none"
paravirtprovider="default"
effparavirtprovider="kvm"
VMState="{state}"
VMStateChangeTime="{changed}"
"""
_INFO_DEVICES = """\
graphicscontroller="vboxvga"
monitorcount=1
accelerate3d="off"
teleporterenabled="off"
teleporterport=0
teleporteraddress=""
teleporterpassword=""
tracing-enabled="off"
tracing-allow-vm-access="off"
tracing-config=""
autostart-enabled="off"
autostart-delay=0
defaultfrontend=""
vmprocpriority="{priority}"
"""
_INFO_NIC = """\
natnet1="nat"
macaddress1="{mac}"
cableconnected1="{cable}"
nic1="{nic1}"
nictype1="82540EM"
nicspeed1="0"
mtu="0"
sockSnd="64"
sockRcv="64"
tcpWndSnd="64"
tcpWndRcv="64"
"""
_INFO_REST = """\
hidpointing="ps2mouse"
hidkeyboard="ps2kbd"
uart1="off"
uart2="off"
uart3="off"
uart4="off"
lpt1="off"
lpt2="off"
audio="{audio}"
audio_out="off"
audio_in="off"
clipboard="disabled"
clipboard_file_transfers="off"
draganddrop="disabled"
"""
_RUNNING_FRONT = 'SessionName="headless"\nVideoMode="720,400,0"@0,0 1\n'
_RUNNING_BACK = """\
GuestOSType="Debian_64"
GuestAdditionsRunLevel=0
"""
_SINCE_7_0 = ("encryption=", "iommu=", "clipboard_file_transfers=")
_SINCE_7_1 = ("platformArchitecture=",)


class VerbFailedError(Exception):
    """A sub-command ends with this exit code; its words are on stderr already."""

    def __init__(self, exit_code: int = 1) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Writer:
    """stdout and stderr of one call, in its language and line ends."""

    def __init__(self, modes: Modes) -> None:
        self.modes = modes
        self.end = "\r\n" if modes.crlf else "\n"
        self.name = "VBoxManage.exe" if modes.crlf else "VBoxManage"

    def say(self, text: str, *values: str) -> str:
        known = _GERMAN.get(text) if self.modes.language == "de" else None
        return (known or text).format(*values) if values else (known or text)

    def out(self, text: str) -> None:
        self._write(sys.stdout, text)

    def err(self, text: str) -> None:
        self._write(sys.stderr, text)

    def _write(self, stream: Any, text: str) -> None:
        data = (text.rstrip("\n") + "\n").replace("\n", self.end).encode()
        stream.buffer.write(data)
        stream.buffer.flush()

    def progress(self) -> None:
        self.err(PROGRESS)

    def error(
        self,
        text: str,
        *values: str,
        code: tuple[str, int] | None = None,
        component: str = "MachineWrap, interface IMachine, callee nsISupports",
        context: str = "",
    ) -> None:
        """An error block as VirtualBox's glue prints it."""
        start = f"{self.name}: error: "
        lines = [start + line for line in self.say(text, *values).split("\n")]
        if code is not None:
            name, number = code
            lines.append(f"{start}Details: code {name} ({number:#010x}), component {component}")
        if context:
            lines.append(f"{start}Context: {context}")
        self.err("\n".join(lines))

    def bare_error(self, context: str) -> None:
        """What every call says while VBoxSVC keeps a session without a process."""
        what = "Code NS_ERROR_FAILURE (0x80004005) - Operation failed (extended info not available)"
        self.error(what, context=context)


def machine_readable(modes: Modes, settings: dict[str, Any], session: dict[str, Any]) -> str:
    """`showvminfo --machinereadable` of one accessible VM."""
    state = session["state"]
    live = state in ("running", "paused", "saving")
    quoted = {
        key: _quoted(modes, str(settings[key]))
        for key in ("name", "CfgFile", "SnapFldr", "LogFldr", "NvramFile")
    }
    values = {**settings, **quoted, "state": state, "changed": session["changed"]}
    text = _INFO.format(**values)
    if settings.get("state_file"):
        text += f"VMStateFile={_quoted(modes, settings['state_file'])}\n"
    text += _INFO_DEVICES.format(**values) + _storage(modes, settings)
    text += _INFO_NIC.format(**values)
    text += "".join(f'nic{number}="none"\n' for number in range(2, 9))
    text += _INFO_REST.format(**values)
    if live:
        text += _RUNNING_FRONT
    text += f'vrde="{settings["vrde"]}"\nusb="{settings["usb"]}"\nehci="off"\nxhci="off"\n'
    if live:
        text += 'VRDEActiveConnection="off"\nVRDEClients==0\n'
    text += snapshot_lines(modes, settings) + "GuestMemoryBalloon=0\n"
    if live:
        text += _RUNNING_BACK
    hidden: tuple[str, ...] = _SINCE_7_0 + _SINCE_7_1 if modes.is_old else ()
    if not modes.is_old and modes.number < (7, 1, 0):
        hidden = _SINCE_7_1
    return "".join(line for line in text.splitlines(True) if not line.startswith(hidden))


def snapshot_lines(modes: Modes, settings: dict[str, Any], parent: str = "", at: str = "") -> str:
    """The snapshots below `parent`, depth first: SnapshotName, SnapshotName-1, SnapshotName-1-1."""
    text = ""
    children = [one for one in settings.get("snapshots", []) if one["parent"] == parent]
    for number, one in enumerate(children, 1):
        here = f"{at}-{number}" if parent else ""
        name = _quoted(modes, one["name"])
        text += f'SnapshotName{here}={name}\nSnapshotUUID{here}="{one["uuid"]}"\n'
        if one["uuid"] == settings["current_snapshot"]:
            text += f'CurrentSnapshotName={name}\nCurrentSnapshotUUID="{one["uuid"]}"\n'
            text += f'CurrentSnapshotNode="SnapshotName{here}"\n'
        text += snapshot_lines(modes, settings, one["uuid"], here)
    return text


def _quoted(modes: Modes, value: str) -> str:
    if not modes.is_old:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def _storage(modes: Modes, settings: dict[str, Any]) -> str:
    text = ""
    controllers = settings["controllers"]
    for index, one in enumerate(controllers):
        text += f'storagecontrollername{index}="{one["name"]}"\n'
        text += f'storagecontrollertype{index}="{one["type"]}"\n'
        text += f'storagecontrollerinstance{index}="0"\n'
        text += f'storagecontrollermaxportcount{index}="{one["ports"]}"\n'
        text += f'storagecontrollerportcount{index}="{one["ports"]}"\n'
        text += f'storagecontrollerbootable{index}="on"\n'
    for one in controllers:
        for port in range(one["ports"]):
            for device in range(one["devices"]):
                text += _slot(modes, one, f"{port}-{device}")
    return text


def _slot(modes: Modes, controller: dict[str, Any], slot: str) -> str:
    name, medium = controller["name"], controller["media"].get(slot)
    if medium is None:
        return f'"{name}-{slot}"="none"\n'
    text = f'"{name}-{slot}"={_quoted(modes, medium["path"])}\n'
    if medium["path"] == "emptydrive":
        return text + f'"{name}-IsEjected-{slot}"="off"\n'
    text += f'"{name}-ImageUUID-{slot}"="{medium["uuid"]}"\n'
    if medium["kind"] == "dvddrive":
        text += f'"{name}-tempeject-{slot}"="off"\n"{name}-IsEjected-{slot}"="off"\n'
    return text + f'"{name}-nonrotational-{slot}"="off"\n"{name}-discard-{slot}"="off"\n'
