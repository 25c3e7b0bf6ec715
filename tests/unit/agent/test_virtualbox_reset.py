"""A reset of the VirtualBox VM goes back to the snapshot taken after the import, in seconds; what
cannot be gone back to is imported in full."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from officegrid.agent.config import AgentConfig, VmConfig
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.virtualbox import ladder, parse
from officegrid.agent.drivers.virtualbox.driver import VirtualBoxDriver
from officegrid.agent.drivers.virtualbox.manage import ipc_id
from officegrid.agent.drivers.virtualbox.record import Machine, load_machine, store_machine
from officegrid.agent.drivers.virtualbox.snapshots import BASE
from officegrid.agent.files import Folders
from officegrid.agent.images.switch import Images
from officegrid.core.imageevents import Held, Outgrown
from officegrid.core.imagelife import Life
from officegrid.core.vm import DriverError, RepairStep, Trouble, VmState
from officegrid.testing.vboxmanage.appliance import write_ova
from officegrid.testing.vboxmanage.install import StandIn
from officegrid.testing.vboxmanage.store import Home

NAME = "Grid Machine"


class Desk:
    """One agent's VirtualBox."""

    version = "7.1.8r168469"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.agent = root / "agent"
        self.home = self.agent / "vbox"
        self.standin = StandIn(root / "standin", version=self.version)
        self.image = root / "grid.ova"
        self.seed = root / "seed.iso"
        self.seed.write_bytes(b"CIDATA")
        write_ova(self.image, "golden")

    def make(self, image: Path | None = None, **settings: Any) -> VirtualBoxDriver:
        options = {
            "vboxmanage": str(self.standin.program), "stuck_after_s": 0.5, "disk_margin_mb": 1,
            "stop_timeout_s": 1.0,
        }  # fmt: skip
        wanted = {"memory_mb": 64, "seed_iso": self.seed, "options": options, **settings}
        return VirtualBoxDriver(
            VmSettings(name=NAME, folder=self.agent, image=image or self.image, **wanted)
        )

    @property
    def record(self) -> Machine:
        machine = load_machine(self.agent)
        assert machine is not None
        return machine

    def person(self, *words: str) -> str:
        """Somebody at the command line of this PC."""
        done = self.standin.run(*words, home=self.home, ipc=ipc_id(self.agent))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def info(self) -> dict[str, str]:
        text = self.person("showvminfo", self.record.uuid, "--machinereadable")
        return parse.machine_readable(text)

    def disk(self) -> Path:
        """The hard disk that the VM writes to."""
        slots = [value for value in self.info().values() if value.endswith(".vmdk")]
        assert len(slots) == 1, slots
        return Path(slots[0])

    def base_disk(self) -> Path:
        return next(path for path in (self.agent / "machines" / NAME).glob("*.vmdk"))

    def count(self) -> None:
        """From here on imports and restores are counted anew."""
        self.standin.set(faults=[])

    @property
    def done(self) -> tuple[int, int]:
        """(imports, restores)"""
        return self.standin.calls("import"), self.standin.calls("snapshot restore")

    def fault(self, verb: str, kind: str) -> None:
        self.standin.set(faults=[{"verb": verb, "kind": kind}])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    try:
        yield desk
    finally:
        desk.standin.close()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def work(driver: VirtualBoxDriver, *, save: bool = False) -> None:
    """The guest boots, and writes to its disk."""
    driver.start(threading.Event())
    if save:
        driver.save()


def test_an_import_leaves_a_snapshot_and_an_untouched_disk_below(desk: Desk) -> None:
    driver = desk.make()
    driver.import_image()
    info, base = desk.info(), desk.base_disk()
    assert info["CurrentSnapshotName"] == BASE
    assert info["CurrentSnapshotUUID"] == desk.record.base
    assert desk.record.image.endswith(digest(desk.image))
    assert desk.disk().parent.name == "Snapshots"
    before, empty = digest(base), desk.disk().read_bytes()
    work(driver)
    assert digest(base) == before
    assert desk.disk().read_bytes() != empty


@pytest.mark.parametrize("state", ["running", "saved"])
def test_a_reset_drops_all_work_and_the_next_import_copies_nothing(desk: Desk, state: str) -> None:
    driver = desk.make()
    driver.import_image()
    uuid, base = desk.record.uuid, digest(desk.base_disk())
    work(driver, save=state == "saved")
    worked_on = desk.disk()
    assert b"a boot" in worked_on.read_bytes()
    desk.count()
    driver.reset()
    assert driver.state().state is VmState.ABSENT
    assert not worked_on.exists()
    driver.import_image()
    assert desk.done == (0, 1)
    assert driver.state().state is VmState.OFF
    assert desk.record.uuid == uuid
    assert b"a boot" not in desk.disk().read_bytes()
    assert digest(desk.base_disk()) == base
    assert not list((desk.agent / "machines").rglob("*.sav"))
    work(driver)
    assert driver.state().state is VmState.RUNNING


def test_what_is_set_aside_is_absent_for_every_verb_and_every_driver(desk: Desk) -> None:
    driver, other = desk.make(), desk.make()
    driver.import_image()
    assert other.state().state is VmState.OFF
    driver.reset()
    for each in (driver, other, desk.make()):
        assert each.state().state is VmState.ABSENT
        with pytest.raises(DriverError) as caught:
            each.start(threading.Event())
        assert caught.value.trouble is Trouble.GONE
        with pytest.raises(DriverError):
            each.pause()
    other.sweep(NAME)
    desk.count()
    other.import_image()
    assert desk.done == (0, 0), "the reset has restored it already"
    assert driver.state().state is VmState.OFF


def test_delete_takes_the_snapshot_and_its_disks_along(desk: Desk) -> None:
    driver = desk.make()
    driver.import_image()
    work(driver, save=True)
    driver.reset()
    driver.delete()
    assert driver.state().state is VmState.ABSENT
    assert not list((desk.agent / "machines").rglob("*"))
    assert desk.person("list", "vms") == ""


def test_settings_of_today_and_the_seed_are_back_after_a_restore(desk: Desk) -> None:
    desk.make().import_image()
    later = desk.make(memory_mb=96, cpus=2)
    desk.seed.unlink()
    work(later)
    later.stop()
    assert str(desk.seed) not in desk.info().values()
    desk.seed.write_bytes(b"CIDATA with a new code")
    later.reset()
    assert desk.info()["memory"] == "64", "the snapshot keeps what was set when it was taken"
    later.import_image()
    info = desk.info()
    assert (info["memory"], info["cpus"]) == ("96", "2")
    assert str(desk.seed) in info.values()
    assert Home(desk.home).settings(desk.record.uuid)["natlocalhostreachable1"] == "off"


def test_the_repair_restores_once_and_imports_in_full_the_next_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = desk.make()
    driver.import_image()
    uuid = desk.record.uuid
    work(driver)
    desk.count()
    driver.repair(RepairStep.REIMPORT)
    assert (driver.state().state, desk.done) == (VmState.OFF, (0, 1))
    assert desk.record.uuid == uuid
    driver.repair(RepairStep.REIMPORT)
    assert (driver.state().state, desk.done) == (VmState.OFF, (1, 1))
    assert desk.record.uuid != uuid
    driver.repair(RepairStep.REIMPORT)
    assert desk.done == (1, 2), "a new import is gone back to again"
    now_s = time.time()
    later_s = now_s + ladder.RESTORE_AGAIN_S + 60
    monkeypatch.setattr(ladder, "time", SimpleNamespace(time=lambda: later_s))
    driver.repair(RepairStep.REIMPORT)
    assert desk.done == (1, 3)


def test_another_image_is_imported(desk: Desk) -> None:
    desk.make().import_image()
    driver = desk.make()
    driver.reset()
    fresh = desk.root / "fresh.ova"
    write_ova(fresh, "fresh", disk_bytes=8192)
    desk.count()
    after = desk.make(image=fresh)
    after.import_image()
    assert desk.done == (1, 0)
    assert desk.base_disk().name == "fresh-disk1.vmdk"
    assert desk.record.image.endswith(digest(fresh))


@pytest.mark.parametrize("same_content", [True, False])
def test_an_image_written_again_is_told_by_its_content(desk: Desk, same_content: bool) -> None:
    driver = desk.make()
    driver.import_image()
    data = desk.image.read_bytes()
    if not same_content:
        data = data.replace(b"<!-- PIIX4 -->", b"<!-- PIIX5 -->")
    desk.image.write_bytes(data)
    os.utime(desk.image, (1, 1))
    desk.count()
    driver.repair(RepairStep.REIMPORT)
    assert desk.done == ((0, 1) if same_content else (1, 0))


@pytest.mark.parametrize("broken", ["restore", "no snapshot", "theirs too", "base disk", "record"])
def test_where_it_cannot_go_back_it_imports(desk: Desk, broken: str) -> None:
    driver = desk.make()
    driver.import_image()
    work(driver)
    driver.stop()
    uuid, home = desk.record.uuid, Home(desk.home)
    desk.count()
    match broken:
        case "restore":
            desk.fault("snapshot restore", "failed")
        case "no snapshot":
            with home.locked():
                home.change(uuid, snapshots=[], current_snapshot="")
        case "theirs too":
            desk.person("snapshot", uuid, "take", "by hand")
        case "base disk":
            desk.base_disk().unlink()
        case "record":
            store_machine(desk.agent, replace(desk.record, image="", base=""))
    driver.reset()
    assert driver.state().state is VmState.ABSENT
    assert not list((desk.agent / "machines").rglob("*")), "then it is deleted"
    driver.import_image()
    assert (driver.state().state, desk.done[0]) == (VmState.OFF, 1)
    assert desk.record.uuid != uuid
    assert b"a boot" not in desk.disk().read_bytes()


def test_a_snapshot_that_cannot_be_taken_spoils_no_import(desk: Desk) -> None:
    desk.fault("snapshot take", "failed")
    driver = desk.make()
    driver.import_image()
    assert driver.state().state is VmState.OFF
    assert desk.record.base == ""
    work(driver)
    desk.count()
    driver.repair(RepairStep.REIMPORT)
    assert desk.done == (1, 0)
    assert desk.record.base == desk.info()["CurrentSnapshotUUID"]


def test_a_crash_in_the_midst_of_a_reset_leaves_no_old_work(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = desk.make()
    driver.import_image()
    work(driver)
    with monkeypatch.context() as patch:
        patch.setattr("officegrid.agent.drivers.virtualbox.snapshots.restore_base", _killed)
        with pytest.raises(KeyboardInterrupt):
            driver.reset()
    assert b"a boot" in desk.disk().read_bytes()
    after = desk.make()
    assert after.state().state is VmState.ABSENT
    desk.count()
    after.import_image()
    assert desk.done == (0, 1)
    assert b"a boot" not in desk.disk().read_bytes()


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_without_its_image_it_stays_set_aside(desk: Desk) -> None:
    driver = desk.make()
    driver.import_image()
    driver.reset()
    away = desk.image.rename(desk.root / "away.ova")
    with pytest.raises(DriverError) as caught:
        driver.import_image()
    assert caught.value.trouble is Trouble.IMAGE
    away.rename(desk.image)
    desk.count()
    driver.import_image()
    assert desk.done == (0, 0)


def test_a_record_of_before_is_read(desk: Desk) -> None:
    desk.agent.mkdir()
    path = desk.agent / "machine.json"
    path.write_text(json.dumps({"uuid": "a", "name": "b", "saved_by": "7.1.8", "new": "x"}))
    assert load_machine(desk.agent) == Machine("a", "b", "7.1.8")
    path.write_text(json.dumps({"name": "b"}))
    assert load_machine(desk.agent) is None


class DeskOfVirtualBox6(Desk):
    version = "6.1.36r152435"


def test_virtualbox_6_1_resets_too(tmp_path: Path) -> None:
    desk = DeskOfVirtualBox6(tmp_path)
    try:
        driver = desk.make()
        driver.import_image()
        work(driver, save=True)
        desk.count()
        driver.repair(RepairStep.REIMPORT)
        assert (driver.state().state, desk.done) == (VmState.OFF, (0, 1))
        work(driver)
    finally:
        desk.standin.close()


# --- the agent's part


class Stub:
    """What of a driver the choice needs: which verb is called."""

    name = "virtualbox"

    def __init__(self) -> None:
        self.called: list[str] = []

    def capabilities(self) -> Any:
        return VirtualBoxDriver.capabilities(self)  # type: ignore[arg-type]

    def state(self) -> Any:
        from officegrid.core.vm import VmStatus

        return VmStatus(VmState.OFF)

    def delete(self) -> None:
        self.called.append("delete")


class StubThatResets(Stub):
    def reset(self) -> None:
        self.called.append("reset")


def held(number: int) -> Held:
    return Held(f"{number}" * 64, number, f"grid-{number}", f"{number}" * 64, "ova", 1)


@pytest.mark.parametrize(
    ("life", "pinned", "called"),
    [
        (Life(current=held(1), made_of=held(1)), False, "reset"),
        (Life(current=held(1), trial=held(2), made_of=held(1)), False, "delete"),
        (Life(current=held(1)), False, "delete"),
        (Life(), True, "reset"),
    ],
    ids=["same image", "new image", "unknown image", "pinned"],
)
def test_the_agent_resets_where_the_image_stays_the_same(
    tmp_path: Path, life: Life, pinned: bool, called: str
) -> None:
    images = Images(
        Folders(tmp_path), None, None, tell=lambda text, once=False: None, hurry=lambda: None  # type: ignore[arg-type]
    )  # fmt: skip
    images._life = life
    image = tmp_path / "own.ova" if pinned else None
    images._config = AgentConfig(vm=VmConfig(image=image))
    images._apply(Outgrown("It is too big."))
    following = images.path() if image is None else image
    for driver, expected in ((StubThatResets(), called), (Stub(), "delete")):
        assert images.make_anew(driver, following)  # type: ignore[arg-type]
        assert driver.called == [expected]
        images._life = life
