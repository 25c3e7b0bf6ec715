"""Leftover VMs of ours go, running or not; whatever bears no mark of ours stays as it is."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from private_libvirt import PrivateLibvirt
from test_driver_hyperv import HyperVHarness
from test_driver_libvirt import LibvirtHarness
from test_driver_virtualbox import VirtualBoxHarness

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv.driver import HyperVDriver
from officegrid.agent.drivers.libvirt import make as make_libvirt
from officegrid.agent.drivers.libvirt.domain import Places, domain_uuid
from officegrid.agent.drivers.libvirt.options import parse_options
from officegrid.agent.drivers.qemu import make as make_qemu
from officegrid.agent.drivers.virtualbox import make as make_virtualbox
from officegrid.agent.drivers.virtualbox.record import RECORD
from officegrid.core.vm import VmState
from officegrid.testing.driver_harness import is_, starts
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
