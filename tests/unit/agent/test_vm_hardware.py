"""Which computer a VM is to its guest: the same on this PC for ever, another one elsewhere."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from officegrid.agent import host_id
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.libvirt import domain
from officegrid.agent.drivers.libvirt.options import LibvirtOptions
from officegrid.agent.drivers.qemu import arguments
from officegrid.agent.drivers.qemu.options import QemuOptions

HERE, THERE = "1" * 31 + "a", "2" * 31 + "b"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    host_id.system_id.cache_clear()
    yield
    host_id.system_id.cache_clear()


@pytest.fixture
def settings(tmp_path: Path) -> VmSettings:
    folder = tmp_path / "vm"
    folder.mkdir()
    return VmSettings("GridMachine", folder)


def on_pc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system_id: str) -> None:
    """From now on the system of this PC says that it is this one."""
    file = tmp_path / "machine-id"
    file.write_text(f"{system_id}\n")
    monkeypatch.setattr(host_id, "MACHINE_ID", file)
    host_id.system_id.cache_clear()


def test_the_ids_of_systems_are_read_in_their_forms() -> None:
    plain = "0123456789abcdef0123456789abcdef"
    assert host_id.clean(f"{plain}\n") == plain
    assert host_id.clean("{01234567-89AB-CDEF-0123-456789ABCDEF}") == plain
    for nothing in ("", "uninitialized\n", "0" * 32, "f" * 32, plain[:-1], f"{plain}0"):
        assert host_id.clean(nothing) == ""
    listing = (
        "+-o J314sAP  <class IOPlatformExpertDevice, id 0x100000227, registered>\n"
        "    {\n"
        '      "IOPlatformSerialNumber" = "XXXXXXXXXX"\n'
        '      "IOPlatformUUID" = "01234567-89AB-CDEF-0123-456789ABCDEF"\n'
        "    }\n"
    )
    assert host_id.clean(host_id.platform_uuid(listing)) == plain
    assert host_id.platform_uuid("no such line") == ""


def test_a_system_without_an_id_gets_one_that_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: VmSettings
) -> None:
    on_pc(monkeypatch, tmp_path, "uninitialized")
    made = host_id.host_id(settings.folder)
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert host_id.host_id(settings.folder) == made
    kept = tmp_path / host_id.FALLBACK_FILE
    assert kept.stat().st_mode & 0o777 == 0o600
    assert list(settings.folder.iterdir()) == [], "the VM's own folder stays the driver's"
    kept.unlink()
    assert host_id.host_id(settings.folder) != made


def test_an_id_that_cannot_be_kept_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_pc(monkeypatch, tmp_path, "")
    assert host_id.host_id(tmp_path / "missing" / "vm") == ""


def _hardware(settings: VmSettings) -> tuple[str, str]:
    """UUID and MAC address on QEMU's command line."""
    words = arguments.shape(settings, QemuOptions(), "tcg")
    card = next(word for word in words if word.startswith("virtio-net-pci"))
    mac = re.search(r"mac=([0-9a-f:]{17})", card)
    assert mac
    return words[words.index("-uuid") + 1], mac[1]


def test_a_vm_is_the_same_computer_here_and_another_one_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: VmSettings
) -> None:
    on_pc(monkeypatch, tmp_path, HERE)
    ours = _hardware(settings)
    saved_shape = arguments.digest(settings, QemuOptions(), "tcg")
    assert _hardware(settings) == ours
    assert str(uuid.UUID(ours[0])) == ours[0]
    assert ours[1].startswith("52:54:00:")
    others = [_hardware(VmSettings("Grid 2", settings.folder))]
    others.append(_hardware(VmSettings("GridMachine", tmp_path / "copy")))
    on_pc(monkeypatch, tmp_path, THERE)
    others.append(_hardware(settings))
    assert arguments.digest(settings, QemuOptions(), "tcg") != saved_shape, (
        "a state saved on the other PC must not go on here"
    )
    for part in range(2):
        assert len({one[part] for one in [ours, *others]}) == 4
    assert HERE not in " ".join(ours), "the PC's own id stays on the PC"


def test_a_libvirt_domain_is_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: VmSettings
) -> None:
    on_pc(monkeypatch, tmp_path, HERE)
    ours = domain.domain_uuid(settings), domain.mac_address(settings)
    assert ours[0] == _hardware(settings)[0]
    xml = domain.domain_xml(settings, LibvirtOptions(), "tcg")
    assert f"<uuid>{ours[0]}</uuid>" in xml
    assert ours[1] in xml
    on_pc(monkeypatch, tmp_path, THERE)
    assert domain.domain_uuid(settings) != ours[0]
    assert domain.mac_address(settings) != ours[1]
    assert domain.is_ours(xml, settings), "made here, when this PC was another one"
    assert not domain.is_ours(xml, VmSettings("GridMachine", tmp_path / "copy"))
    assert not domain.is_ours(xml.replace("urn:officegrid", "urn:somebody"), settings)
    assert not domain.is_ours("<domain><name>GridMachine</name></domain>", settings)
    assert not domain.is_ours("not xml", settings)


def test_a_copy_of_our_domain_is_not_ours(settings: VmSettings) -> None:
    """virt-clone gives a copy its own name, UUID and disk; the metadata it keeps."""
    xml = domain.domain_xml(settings, LibvirtOptions(), "tcg")
    ours, its = domain.domain_uuid(settings), "5c1a7a52-7e1c-4a5e-9c0a-0b8c4a9f1c11"
    copy = xml.replace(f"<uuid>{ours}</uuid>", f"<uuid>{its}</uuid>")
    copy = copy.replace("<name>GridMachine<", "<name>GridMachine-clone<")
    copy = copy.replace(f"officegrid-{ours}.qcow2", f"officegrid-{ours}-clone.qcow2")
    assert copy != xml
    assert not domain.is_ours(copy, settings)
    old_mark = re.compile("<officegrid:uuid>[^<]*</officegrid:uuid>")
    assert domain.is_ours(old_mark.sub("", xml), settings), "of an earlier release"
    assert not domain.is_ours(old_mark.sub("", copy), settings)
    disk = str(domain.Places.of(settings, LibvirtOptions()).overlay)
    elsewhere = old_mark.sub("", xml).replace(disk, f"/elsewhere/{Path(disk).name}")
    assert not domain.is_ours(elsewhere, settings)
