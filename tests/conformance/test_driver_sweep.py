"""Leftover VMs of ours go, running or not; whatever bears no mark of ours stays as it is."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from private_libvirt import PrivateLibvirt
from test_driver_hyperv import HyperVHarness
from test_driver_libvirt import LibvirtHarness
from test_driver_virtualbox import VirtualBoxHarness

from officegrid.agent import host_id
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv.driver import HyperVDriver
from officegrid.agent.drivers.libvirt import make as make_libvirt
from officegrid.agent.drivers.libvirt import sweep as libvirt_sweep
from officegrid.agent.drivers.libvirt.domain import Places, domain_uuid
from officegrid.agent.drivers.libvirt.options import parse_options
from officegrid.agent.drivers.qemu import make as make_qemu
from officegrid.agent.drivers.virtualbox import make as make_virtualbox
from officegrid.agent.drivers.virtualbox.manage import ipc_id
from officegrid.agent.drivers.virtualbox.record import RECORD
from officegrid.agent.drivers.virtualbox.vm import OWNER_KEY
from officegrid.core.vm import Trouble, VmState
from officegrid.testing.driver_harness import is_, refusal, starts
from parts import need
from vm.ticker import make_image

OLD = "Old Machine"


@pytest.fixture(scope="module")
def libvirt() -> Iterator[PrivateLibvirt]:
    private = PrivateLibvirt()
    yield private
    private.close()


@pytest.mark.parametrize("running", [False, True])
def test_virtualbox(tmp_path: Path, running: bool) -> None:
    harness = VirtualBoxHarness(tmp_path)
    try:
        harness.take_name()  # a person's own VM, in the agent's registry, and running
        ours: Any = harness.make()
        settings = dataclasses.replace(ours._vm.settings, name="Grid 2")
        old = make_virtualbox(dataclasses.replace(settings, name=OLD))
        old.import_image()
        if running:
            old.start(threading.Event())
        (harness.agent / RECORD).unlink()
        driver: Any = make_virtualbox(settings)
        driver.import_image()
        before = harness.foreign_things()
        assert driver.sweep("Grid 2") == [f"The leftover VM {OLD!r} was removed from VirtualBox."]
        assert harness.foreign_things() == before
        is_(driver, VmState.OFF)
        assert not list(harness.agent.glob(f"machines/{OLD}/**/*"))
        assert driver.sweep("Grid 2") == []
        driver.start(threading.Event())
        driver.delete()
    finally:
        harness.close()


@pytest.mark.parametrize("mark", ["with its VM", "of an earlier release"])
def test_virtualbox_leaves_a_clone_alone(tmp_path: Path, mark: str) -> None:
    harness = VirtualBoxHarness(tmp_path)
    try:
        driver: Any = harness.make()
        driver.import_image()
        at = {"home": harness.home, "ipc": ipc_id(harness.agent)}
        said = harness._by_person("getextradata", harness.uuid, OWNER_KEY, **at)
        owner = said.removeprefix("Value: ").strip()
        assert owner == f"{ipc_id(harness.agent)} {harness.uuid}"
        if mark == "of an earlier release":
            owner = ipc_id(harness.agent)
            harness._by_person("setextradata", harness.uuid, OWNER_KEY, owner, **at)
        words = ("--name", "Copy", "--register", "--basefolder", str(harness.theirs))
        harness._by_person("clonevm", harness.uuid, *words, **at)
        # VirtualBox copies the extra data with the settings.
        harness._by_person("setextradata", "Copy", OWNER_KEY, owner, **at)
        harness._by_person("startvm", "Copy", "--type", "headless", **at)
        before = harness.foreign_things()
        for record_is_there in (True, False):
            if not record_is_there:
                driver.delete()  # the record with it; only the clone bears the mark now
            assert harness.make().sweep(driver._vm.settings.name) == []  # type: ignore[attr-defined]
            assert harness.foreign_things() == before
        assert "Copy" in harness._by_person("list", "vms", **at)
        # Its own VM of an earlier release is still known by its folder, without the record.
        driver.import_image()
        if mark == "of an earlier release":
            harness._by_person("setextradata", harness.uuid, OWNER_KEY, owner, **at)
        (harness.agent / RECORD).unlink()
        old = f"The leftover VM {driver._vm.settings.name!r} was removed from VirtualBox."
        other: Any = make_virtualbox(dataclasses.replace(driver._vm.settings, name="Other"))
        assert other.sweep("Other") == [old]
        assert harness.foreign_things() == before
    finally:
        harness.close()


@pytest.mark.parametrize("running", [False, True])
def test_hyperv(tmp_path: Path, running: bool) -> None:
    harness = HyperVHarness(tmp_path)
    try:
        harness.take_name()
        options = {"powershell": str(harness.standin.program), "disk_margin_mb": 16}
        settings = VmSettings("Grid 2", harness.ours, harness.image, 64, options=options)
        old = HyperVDriver(dataclasses.replace(settings, name=OLD))
        driver = HyperVDriver(settings)
        harness.drivers += [old, driver]
        old.import_image()
        if running:
            old.start(threading.Event())
        (harness.ours / "machine.json").unlink()
        fresh = HyperVDriver(settings)
        harness.drivers.append(fresh)
        assert fresh.sweep("Grid 2") == [f"The leftover VM {OLD!r} was removed from Hyper-V."]
        fresh.import_image()
        before = harness.foreign_things()
        assert fresh.sweep("Grid 2") == []
        assert harness.foreign_things() == before
        is_(fresh, VmState.OFF)
        names = {vm["name"] for vm in harness.standin.store.vms().values()}
        assert names == {"TheirVm", "GridMachine", "Grid 2"}
    finally:
        harness.close()


@pytest.mark.parametrize("mark", ["with its VM", "of an earlier release"])
def test_hyperv_leaves_a_clone_alone(tmp_path: Path, mark: str) -> None:
    harness = HyperVHarness(tmp_path)
    try:
        driver = harness.make()
        driver.import_image()
        store = harness.standin.store
        ours, name = harness.our_id(), driver._vm.settings.name
        notes = store.get(ours)["notes"]
        assert notes.lower() == f"{driver._vm.mark} {ours}".lower()
        if mark == "of an earlier release":
            notes = driver._vm.mark
            store.change(ours, notes=notes)
        copy = harness.standin.make_vm("Copy", harness.theirs / "copy", running=True)
        store.change(copy, notes=notes)  # Import-VM -Copy -GenerateNewId keeps them
        before = harness.foreign_things()
        assert driver.sweep(name) == []
        assert harness.foreign_things() == before
        (harness.ours / "machine.json").unlink()
        other = HyperVDriver(dataclasses.replace(driver._vm.settings, name="Other"))
        harness.drivers.append(other)
        left = f"The leftover VM {name!r} was removed from Hyper-V."
        assert other.sweep("Other") == [left], "ours is still known"
        assert harness.foreign_things() == before
        # A copy that has our name, when ours is gone: never taken for ours.
        store.change(copy, name="Other")
        is_(other, VmState.ABSENT)
        refusal(other.import_image, Trouble.NAME_TAKEN)
    finally:
        harness.close()


@pytest.mark.parametrize("state", ["off", "running", "saved"])
def test_libvirt(libvirt: PrivateLibvirt, state: str) -> None:
    harness = LibvirtHarness(libvirt)
    try:
        harness.take_name()
        settings = dataclasses.replace(harness.settings, name="Grid 2")
        elsewhere = harness.place / "another-agent"
        elsewhere.mkdir()
        # Of our make, but another agent's: its folder is not ours.
        neighbour = make_libvirt(dataclasses.replace(settings, name="N", folder=elsewhere))
        neighbour.import_image()
        old_settings = dataclasses.replace(settings, name=OLD)
        old, driver = make_libvirt(old_settings), make_libvirt(settings)
        old.import_image()
        if state != "off":
            old.start(threading.Event())
        if state == "saved":
            old.save()
        driver.import_image()
        any_driver: Any = driver
        harness.uuid = domain_uuid(old_settings)
        before, files = harness.foreign_things()  # type: ignore[misc]
        assert any_driver.sweep("Grid 2") == [f"The leftover VM {OLD!r} was removed from libvirt."]
        after, files_after = harness.foreign_things()  # type: ignore[misc]
        assert after == before
        gone = Places.of(old_settings, parse_options(settings.options)).all()
        assert not [path for path in gone if path.exists()]
        assert files_after == {name: data for name, data in files.items() if Path(name) not in gone}
        assert any_driver.disk_bytes() > 0
        assert any_driver.sweep("Grid 2") == []
        is_(driver, VmState.OFF)
        is_(old, VmState.ABSENT)
        driver.delete()
        neighbour.delete()
        harness.uuid = domain_uuid(harness.settings)
    finally:
        harness.close()


@pytest.mark.parametrize("mark", ["with its VM", "of an earlier release"])
def test_libvirt_leaves_a_clone_alone(libvirt: PrivateLibvirt, mark: str) -> None:
    """Made as virt-clone does: all of the description but name, UUID, MAC address and disk."""
    harness = LibvirtHarness(libvirt)
    copy = str(uuid.uuid4())
    try:
        driver: Any = harness.make()
        driver.import_image()
        xml = libvirt.virsh("dumpxml", harness.uuid)
        description = harness.place / "description.xml"
        if mark == "of an earlier release":
            old = re.sub(r"\s*<officegrid:uuid>[^<]*</officegrid:uuid>", "", xml)
            assert old != xml
            xml = old
            description.write_text(xml)
            libvirt.virsh("define", str(description))
        disk = harness.places.folder / f"{harness.places.stem}-clone.qcow2"
        shutil.copyfile(harness.places.overlay, disk)
        disk.chmod(0o666)
        xml = xml.replace(str(harness.places.overlay), str(disk))
        xml = xml.replace(f"<uuid>{harness.uuid}</uuid>", f"<uuid>{copy}</uuid>", 1)
        xml = re.sub("<name>[^<]*</name>", "<name>Copy</name>", xml, count=1)
        for own in (harness.places.console, harness.places.ready):
            xml = xml.replace(str(own), f"{own}-clone")
        xml = re.sub(r"\s*<mac address=[^>]*>", "", xml)
        description.write_text(xml)
        libvirt.virsh("define", str(description))
        libvirt.virsh("start", "Copy", "--paused")
        assert driver.sweep(driver.settings.name) == []
        assert libvirt.virsh("domstate", copy) == "paused"
        other: Any = make_libvirt(dataclasses.replace(harness.settings, name="Other"))
        left = f"The leftover VM {driver.settings.name!r} was removed from libvirt."
        assert other.sweep("Other") == [left], "ours is still known"
        assert libvirt.virsh("domstate", copy) == "paused"
        assert disk.exists()
        is_(driver, VmState.ABSENT)
        # Nor is it taken for the VM of the PC that this one was copied from.
        named: Any = make_libvirt(dataclasses.replace(harness.settings, name="Copy"))
        refusal(named.import_image, Trouble.NAME_TAKEN)
        assert libvirt.virsh("domstate", copy) == "paused"
    finally:
        if copy in libvirt.virsh("list", "--all", "--uuid").split():
            libvirt.virsh("destroy", copy)
            libvirt.virsh("undefine", copy)
        harness.close()


def test_libvirt_counts_and_removes_all_that_lies_outside(
    libvirt: PrivateLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = LibvirtHarness(libvirt)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(host_id, "system_id", lambda: "f0" * 16)
            former: Any = harness.make()
            former.import_image()
            # The image's copy, where it cannot be linked; it was made for the PC of before.
            base = libvirt_sweep.base_of(former._places)
            base.write_bytes(bytes(3 * 2**20))
            assert former.disk_bytes() >= 3 * 2**20
            linked = harness.place / "image-in-the-store"
            linked.hardlink_to(base)
            without_base = former.disk_bytes()
            assert 0 < without_base < 3 * 2**20, "a link takes no room of its own"
            linked.unlink()
        driver: Any = harness.make()
        driver.import_image()
        assert not base.exists()
        starts(driver, harness)
        before = driver.disk_bytes()
        driver.save()
        if libvirt.saves != libvirt_sweep._saves(driver._options):
            monkeypatch.setattr(libvirt_sweep, "SYSTEM_SAVES", libvirt.saves)
        saved = harness.saved_file().stat().st_blocks * 512
        assert saved > 2**20
        assert driver.disk_bytes() >= saved + before // 2
        driver.stop()
        assert driver.disk_bytes() < saved
    finally:
        harness.close()


@pytest.mark.parametrize("running", [False, True])
def test_qemu(tmp_path: Path, running: bool) -> None:
    need("qemu-system-x86_64", "qemu-img")
    folder = tmp_path / "vm"
    folder.mkdir(mode=0o700)
    (folder / "notes.txt").write_text("not the driver's")
    image = make_image(tmp_path / "image.qcow2")
    options = {"accelerator": "tcg", "code_cache_mb": 32}
    old = make_qemu(VmSettings(OLD, folder, image, 64, options=options))
    old.import_image()
    pids = []
    if running:
        old.start(threading.Event())
        pids = list(old.state().pids)
        assert pids
    driver: Any = make_qemu(VmSettings("Grid 2", folder, image, 64, options=options))
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert driver.sweep("Grid 2") == [f"The leftover VM {OLD!r} was removed from {folder}."]
    is_(old, VmState.ABSENT)
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == ["notes.txt"]
    assert hashlib.sha256(image.read_bytes()).hexdigest() == digest
    driver.import_image()
    assert driver.sweep("Grid 2") == []
    is_(driver, VmState.OFF)
    driver.delete()


def test_libvirt_takes_an_image_that_only_the_agent_can_reach(libvirt: PrivateLibvirt) -> None:
    harness = LibvirtHarness(libvirt)
    try:
        store = harness.settings.folder / "images"
        store.mkdir(mode=0o700)
        image = make_image(store / "image.qcow2")
        image.chmod(0o400)
        driver = harness.make(image=image)
        driver.import_image()
        starts(driver, harness)
        driver.save()
        starts(driver, harness)
        driver.delete()
        assert harness.leftovers() == []
        assert [path.name for path in harness.places.folder.iterdir()] == ["theirs.txt"]
        assert image.exists()
    finally:
        harness.close()
