"""The domain XML of our VM. Source of the words: libvirt, "Domain XML format" (formatdomain).

The domain's UUID is made from this PC's id, the VM's folder and name, and every command names the
domain by it: a domain of the same name that somebody else has made cannot be touched by mistake.
The guest sees the UUID too, as its computer's: on another PC a copied disk is on other hardware.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as Xml

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.libvirt.options import (
    LibvirtOptions,
    disk_folder,
    is_system,
    parse_options,
)
from officegrid.agent.host_id import vm_uuid

READY_PORT = "grid.ready.0"
NAMESPACE = "urn:officegrid:vm:1"
QUOTA_PERIOD_US = 100_000


def domain_uuid(settings: VmSettings) -> str:
    """The same for this PC and the same name and folder, and for nobody else's."""
    return str(vm_uuid(settings.folder, settings.name))


def is_ours(xml: str, settings: VmSettings) -> bool:
    """Has the agent of this folder made the domain with this description?

    The mark travels with a copy (virt-clone keeps the metadata), so it also holds the UUID that
    the domain was made with. A mark of an earlier release has none: there the disk must be the
    one that the domain's own UUID names in our folder. True for a domain of another UUID than
    ours, too: it is of another name, or from before this PC became another one.
    """
    try:
        root = Xml.fromstring(xml)
    except Xml.ParseError:
        return False
    mark = root.find(f"metadata/{{{NAMESPACE}}}vm")
    if mark is None or mark.findtext(f"{{{NAMESPACE}}}folder") != str(settings.folder):
        return False
    uuid = root.findtext("uuid") or ""
    marked = mark.findtext(f"{{{NAMESPACE}}}uuid")
    if marked is not None:
        return marked == uuid
    folder = disk_folder(parse_options(settings.options), settings.folder).absolute()
    disk = str(Places.named(folder, uuid).overlay)
    return any(source.get("file") == disk for source in root.iterfind("devices/disk/source"))


@dataclass(frozen=True, slots=True)
class Places:
    """Every file of the VM outside libvirt's own folders."""

    folder: Path
    stem: str

    @classmethod
    def of(cls, settings: VmSettings, options: LibvirtOptions) -> Places:
        return cls.named(disk_folder(options, settings.folder).absolute(), domain_uuid(settings))

    @classmethod
    def named(cls, folder: Path, uuid: str) -> Places:
        """Of the domain with this UUID."""
        return cls(folder, f"officegrid-{uuid}")

    @property
    def overlay(self) -> Path:
        return self.folder / f"{self.stem}.qcow2"

    @property
    def seed(self) -> Path:
        return self.folder / f"{self.stem}-seed.iso"

    @property
    def console(self) -> Path:
        return self.folder / f"{self.stem}-console.log"

    @property
    def ready(self) -> Path:
        return self.folder / f"{self.stem}-ready"

    def told_ready(self) -> list[Path]:
        """Where what the guest wrote to its ready port may be."""
        return [self.ready, *_turned_over(self.ready)]

    def all(self) -> list[Path]:
        console = [self.console, *_turned_over(self.console)]
        return [self.overlay, self.seed, *console, *self.told_ready()]


def _turned_over(path: Path) -> list[Path]:
    """virtlogd, which writes for QEMU, turns each file over at 2 MB and keeps three old ones
    (virtlogd.conf: max_size, max_backups)."""
    return [path.with_name(f"{path.name}.{number}") for number in range(3)]


def domain_xml(settings: VmSettings, options: LibvirtOptions, accelerator: str) -> str:
    """The whole domain; `accelerator` is kvm or tcg. The seed is attached if its file exists."""
    places = Places.of(settings, options)
    root = Xml.Element("domain", type="kvm" if accelerator == "kvm" else "qemu")
    _text(root, "name", settings.name)
    _text(root, "uuid", domain_uuid(settings))
    _text(root, "title", "Office Grid worker")
    marker = Xml.SubElement(Xml.SubElement(root, "metadata"), f"{{{NAMESPACE}}}vm")
    _text(marker, f"{{{NAMESPACE}}}folder", str(settings.folder))
    _text(marker, f"{{{NAMESPACE}}}uuid", domain_uuid(settings))
    _text(root, "memory", str(settings.memory_mb), unit="MiB")
    _text(root, "vcpu", str(settings.cpus))
    if is_system(options):
        # A session's libvirt may not use control groups and refuses the element.
        tune = Xml.SubElement(root, "cputune")
        _text(tune, "shares", str(options.cpu_shares))
        if settings.cpu_cap_percent < 100:
            _text(tune, "period", str(QUOTA_PERIOD_US))
            _text(tune, "quota", str(QUOTA_PERIOD_US * settings.cpu_cap_percent // 100))
    _boot(root, options)
    Xml.SubElement(Xml.SubElement(root, "features"), "acpi")
    _processor(root, options, accelerator)
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(root, f"on_{event}", action)
    _devices(root, settings, options, places)
    Xml.register_namespace("officegrid", NAMESPACE)
    return Xml.tostring(root, encoding="unicode")


def _boot(root: Xml.Element, options: LibvirtOptions) -> None:
    system = Xml.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=options.machine)
    if options.kernel:
        _text(system, "kernel", options.kernel)
        if options.initrd:
            _text(system, "initrd", options.initrd)
        _text(system, "cmdline", options.append)
    else:
        Xml.SubElement(system, "boot", dev="hd")


def _processor(root: Xml.Element, options: LibvirtOptions, accelerator: str) -> None:
    if options.cpu_model:
        cpu = Xml.SubElement(root, "cpu", mode="custom", match="exact")
        _text(cpu, "model", options.cpu_model, fallback="forbid")
    else:
        # Not host-passthrough: a saved state must survive an update of the processor's microcode.
        Xml.SubElement(root, "cpu", mode="host-model" if accelerator == "kvm" else "maximum")


def _devices(
    root: Xml.Element, settings: VmSettings, options: LibvirtOptions, places: Places
) -> None:
    devices = Xml.SubElement(root, "devices")
    disk = Xml.SubElement(devices, "disk", type="file", device="disk")
    Xml.SubElement(disk, "driver", name="qemu", type="qcow2", discard="unmap")
    Xml.SubElement(disk, "source", file=str(places.overlay))
    Xml.SubElement(disk, "target", dev="vda", bus="virtio")
    if places.seed.exists():
        seed = Xml.SubElement(devices, "disk", type="file", device="disk")
        Xml.SubElement(seed, "driver", name="qemu", type="raw")
        Xml.SubElement(seed, "source", file=str(places.seed))
        Xml.SubElement(seed, "target", dev="vdb", bus="virtio")
        Xml.SubElement(seed, "readonly")
    if options.network == "user":
        card = Xml.SubElement(devices, "interface", type="user")
        Xml.SubElement(card, "mac", address=mac_address(settings))
        Xml.SubElement(card, "model", type="virtio")
    serial = Xml.SubElement(devices, "serial", type="file")
    Xml.SubElement(serial, "source", path=str(places.console), append="on")
    ready = Xml.SubElement(devices, "channel", type="file")
    Xml.SubElement(ready, "source", path=str(places.ready), append="on")
    Xml.SubElement(ready, "target", type="virtio", name=READY_PORT)
    Xml.SubElement(devices, "memballoon", model="virtio")
    rng = Xml.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")


def mac_address(settings: VmSettings) -> str:
    """The same at every start, different on each PC; in QEMU's range 52:54:00."""
    mark = hashlib.sha256(domain_uuid(settings).encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in mark[:3])


def _text(parent: Xml.Element, tag: str, text: str, **attributes: str) -> None:
    Xml.SubElement(parent, tag, attributes).text = text
