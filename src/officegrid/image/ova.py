"""An appliance for VirtualBox: OVF description, manifest and disk in one tar file.

Formats: DMTF DSP0243 (OVF 1.1) and its virtual hardware items from CIM's resource allocation
settings; an OVA is a tar whose first member is the .ovf, then the .mf, then the disk. There is no
`vbox:Machine` section: it would carry identifiers and a settings version, and without it VirtualBox
makes the machine from the plain items below, with a new identifier and a new network address.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from officegrid.image.ext4 import fixed_uuid

MEMORY_MB = 2048
CPUS = 2
_FRAME = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US"
    xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
    xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References>
    <File ovf:id="file1" ovf:href={disk} ovf:size="{size}"/>
  </References>
  <DiskSection>
    <Info>The worker's disk</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{capacity}"
        ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
        vbox:uuid="{uuid}"/>
  </DiskSection>
  <NetworkSection>
    <Info>One network, to the outside only</Info>
    <Network ovf:name="NAT"><Description>NAT</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id={name}>
    <Info>Office Grid worker</Info>
    <ProductSection>
      <Info>What it is</Info>
      <Product>Office Grid GridMachine</Product>
      <Version>{version}</Version>
    </ProductSection>
    <OperatingSystemSection ovf:id="96">
      <Info>The guest's system</Info>
      <Description>{system}</Description>
      <vbox:OSType ovf:required="false">{system}</vbox:OSType>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{identifier}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType>
      </System>
{items}
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""
_SYSTEMS = {"debian": "Debian_64", "el9": "RedHat_64"}


class Appliance(NamedTuple):
    """What the description says. `disk_bytes`: the disk as the guest sees it."""

    name: str
    version: str
    family: str
    disk_bytes: int


def description(appliance: Appliance, disk: str, size: int) -> str:
    """The OVF document for the disk file `disk`, which has `size` bytes.

    2 CPUs, 2 GB, a SATA disk, an empty DVD drive on IDE for the seed, one network card with NAT;
    no sound, no USB, no display server, no fixed hardware or network address.
    """
    items = [
        _item(1, 3, f"{CPUS} virtual CPUs", VirtualQuantity=CPUS),
        _item(2, 4, f"{MEMORY_MB} MB of memory", AllocationUnits="byte * 2^20",
              VirtualQuantity=MEMORY_MB),
        _item(3, 20, "SATA", ResourceSubType="AHCI", Address=0),
        _item(4, 5, "IDE", ResourceSubType="PIIX4", Address=0),
        _item(5, 17, "Disk", AddressOnParent=0, HostResource="/disk/disk1", Parent=3),
        _item(6, 15, "DVD", AddressOnParent=0, Parent=4, AutomaticAllocation="true"),
        _item(7, 10, "Network card", ResourceSubType="E1000", AutomaticAllocation="true",
              Connection="NAT"),
    ]  # fmt: skip
    return _FRAME.format(
        disk=quoteattr(disk), size=size, capacity=appliance.disk_bytes,
        uuid=fixed_uuid(appliance.name, "disk"), name=quoteattr(appliance.name),
        identifier=escape(appliance.name), version=escape(appliance.version),
        system=_SYSTEMS[appliance.family], items="\n".join(items),
    )  # fmt: skip


def _item(number: int, kind: int, name: str, **fields: object) -> str:
    """A hardware item; its elements in the order of their names, which the schema demands."""
    values = {"ElementName": name, "InstanceID": number, "ResourceType": kind, **fields}
    lines = (
        f"        <rasd:{key}>{escape(str(value))}</rasd:{key}>"
        for key, value in sorted(values.items())
    )
    return "\n".join(["      <Item>", *lines, "      </Item>"])


def write(target: Path, appliance: Appliance, disk: Path, epoch_s: int) -> None:
    """Pack the OVA; equal arguments give equal bytes. Raises OSError."""
    member = f"{appliance.name}-disk1.vmdk"
    with disk.open("rb") as file:
        disk_digest = hashlib.file_digest(file, "sha256").hexdigest()
    text = description(appliance, member, disk.stat().st_size).encode()
    ovf = f"{appliance.name}.ovf"
    manifest = (
        f"SHA256({ovf})= {hashlib.sha256(text).hexdigest()}\nSHA256({member})= {disk_digest}\n"
    ).encode()
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        add = _adder(archive, epoch_s)
        add(ovf, io.BytesIO(text), len(text))
        add(f"{appliance.name}.mf", io.BytesIO(manifest), len(manifest))
        with disk.open("rb") as file:
            add(member, file, disk.stat().st_size)


def _adder(archive: tarfile.TarFile, epoch_s: int) -> Callable[[str, io.BufferedIOBase, int], None]:
    def add(name: str, file: io.BufferedIOBase, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = size, epoch_s, 0o644
        archive.addfile(member, file)

    return add
