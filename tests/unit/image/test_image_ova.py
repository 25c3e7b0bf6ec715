"""The appliance: what VirtualBox is told, in the order in which it reads."""

from __future__ import annotations

import hashlib
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

from officegrid.image import ova
from officegrid.testing.vboxmanage.appliance import _read_ova

_OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
_RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
APPLIANCE = ova.Appliance("grid-2026.1", "1.2 <beta>", "debian", 16_000_000_000)


def _items() -> dict[str, ET.Element]:
    tree = ET.fromstring(ova.description(APPLIANCE, "grid-2026.1-disk1.vmdk", 5))
    return {str(item.findtext(f"{_RASD}ResourceType")): item for item in tree.iter(f"{_OVF}Item")}


def test_the_hardware() -> None:
    items = _items()
    assert set(items) == {"3", "4", "5", "10", "15", "17", "20"}, "no sound (35), no USB (23)"
    assert items["3"].findtext(f"{_RASD}VirtualQuantity") == "2"
    assert items["4"].findtext(f"{_RASD}VirtualQuantity") == "2048"
    disk, dvd, sata, ide = items["17"], items["15"], items["20"], items["5"]
    assert disk.findtext(f"{_RASD}Parent") == sata.findtext(f"{_RASD}InstanceID")
    assert dvd.findtext(f"{_RASD}Parent") == ide.findtext(f"{_RASD}InstanceID")
    assert dvd.find(f"{_RASD}HostResource") is None, "the drive for the seed is empty"
    assert items["10"].findtext(f"{_RASD}Connection") == "NAT"
    assert items["10"].find(f"{_RASD}Address") is None, "every import gets its own address"


def test_elements_of_an_item_stand_in_the_order_of_the_schema() -> None:
    for item in _items().values():
        names = [element.tag for element in item]
        assert names == sorted(names)


def test_disk_and_references_fit_together() -> None:
    tree = ET.fromstring(ova.description(APPLIANCE, "x.vmdk", 5))
    file, disk = next(tree.iter(f"{_OVF}File")), next(tree.iter(f"{_OVF}Disk"))
    assert file.get(f"{_OVF}href") == "x.vmdk"
    assert file.get(f"{_OVF}size") == "5"
    assert disk.get(f"{_OVF}fileRef") == file.get(f"{_OVF}id")
    assert disk.get(f"{_OVF}capacity") == "16000000000"
    host = _items()["17"].findtext(f"{_RASD}HostResource")
    assert host == f"/disk/{disk.get(f'{_OVF}diskId')}"


def test_the_archive(tmp_path: Path) -> None:
    disk, first, second = tmp_path / "d", tmp_path / "1.ova", tmp_path / "2.ova"
    disk.write_bytes(b"a disk" * 100_000)
    ova.write(first, APPLIANCE, disk, 1_700_000_000)
    ova.write(second, APPLIANCE, disk, 1_700_000_000)
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        names = archive.getnames()
        assert names == ["grid-2026.1.ovf", "grid-2026.1.mf", "grid-2026.1-disk1.vmdk"]
        contents = {}
        for name in names:
            file = archive.extractfile(name)
            assert file is not None
            contents[name] = file.read()
    lines = contents["grid-2026.1.mf"].decode().splitlines()
    assert lines == [
        f"SHA256({name})= {hashlib.sha256(contents[name]).hexdigest()}"
        for name in (names[0], names[2])
    ]
    assert contents[names[2]] == disk.read_bytes()


def test_the_stand_in_for_virtualbox_reads_it(tmp_path: Path) -> None:
    disk, target = tmp_path / "d", tmp_path / "x.ova"
    disk.write_bytes(b"a disk")
    ova.write(target, APPLIANCE, disk, 1)
    name, text, data = _read_ova(None, str(target))  # type: ignore[arg-type]
    assert (name, data) == ("grid-2026.1", b"a disk")
    assert "AHCI" in text
