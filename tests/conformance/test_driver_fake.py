"""The driver contract on the fake driver, and the faults that it can be told to have."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.core.vm import DriverError, RepairStep, Trouble, VmState
from officegrid.testing.driver_conformance import DriverConformance
from officegrid.testing.driver_harness import DriverHarness
from officegrid.testing.fake_driver import FakeDriver, FakeTimes
from officegrid.testing.fake_plan import Plan, VirtualClock


class FakeHarness(DriverHarness):
    boot_s = restore_s = settle_s = 5.0
    still_s = 0.1

    def __init__(self, folder: Path) -> None:
        self.world = folder / "world"
        self.image = folder / "image"
        self.image.write_bytes(b"an image")
        self.folder = folder / "ours"
        self.folder.mkdir()
        self.plan = Plan()
        other = self.make_for("TheirVm", folder / "theirs")
        other.import_image()
        other.start(threading.Event())

    def make_for(self, name: str, folder: Path, image: Path | None = None) -> FakeDriver:
        settings = VmSettings(name=name, folder=folder, image=image or self.image)
        times = FakeTimes(start_s=0.01, restore_s=0.05, save_s=0.01)
        return FakeDriver(settings, self.plan, times=times, world=self.world)

    def make(self, *, image: Path | None = None) -> FakeDriver:
        return self.make_for("GridMachine", self.folder, image)

    def progress(self) -> int:
        return self.make().progress() // 20

    def kill_vm(self) -> None:
        self.make().power_cut()

    def foreign_things(self) -> object:
        files = sorted(self.world.glob("*"))
        ours = [] if self.taken() else sorted(self.world.glob("GridMachine.*"))
        return {path.name: path.read_bytes() for path in files if path not in ours}

    def taken(self) -> bool:
        file = self.world / "GridMachine.vm.json"
        return file.exists() and str(self.folder) not in file.read_text()

    def corrupt_saved_state(self) -> None:
        self.make().corrupt_saved_state()

    def delete_by_hand(self) -> None:
        self.make().delete_by_hand()

    def take_name(self) -> None:
        self.make_for("GridMachine", self.folder.parent / "theirs").import_image()

    def leftovers(self) -> list[str]:
        return [path.name for path in self.world.glob("GridMachine.*")]

    def full_disk(self) -> AbstractContextManager[None]:
        @contextmanager
        def full() -> Iterator[None]:
            self.plan.fail("save", Trouble.DISK_FULL)
            yield

        return full()

    def close(self) -> None:
        return None


class TestFake(DriverConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[FakeHarness]:
        harness = FakeHarness(tmp_path)
        yield harness
        harness.close()


# -- the faults it can be told to have ----------------------------------------------------------


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def plan() -> Plan:
    return Plan()


@pytest.fixture
def vm(tmp_path: Path, plan: Plan, clock: VirtualClock) -> FakeDriver:
    image = tmp_path / "image"
    image.write_bytes(b"an image")
    times = FakeTimes(start_s=2.0, restore_s=3.0, save_s=4.0, ready_s=25.0)
    settings = VmSettings("GridMachine", tmp_path, image, options={"pids": [os.getpid()]})
    driver = FakeDriver(settings, plan, clock=clock, times=times)
    driver.import_image()
    return driver


def trouble(verb, *args: object) -> Trouble:  # type: ignore[no-untyped-def]
    with pytest.raises(DriverError) as caught:
        verb(*args)
    return caught.value.trouble


def now() -> threading.Event:
    return threading.Event()


def test_verbs_take_their_time_on_the_virtual_clock(vm: FakeDriver, clock: VirtualClock) -> None:
    vm.start(now())
    assert clock.now() == 2.0
    assert vm.state().ready is False
    clock.advance(25.0)
    assert vm.state().ready is True
    assert vm.progress() == 25_000
    assert vm.state().pids == (os.getpid(),)
    vm.save()
    assert clock.now() == 31.0
    clock.advance(1000.0)
    assert (vm.progress(), vm.state().pids) == (25_000, ())
    vm.start(now())
    assert (clock.now(), vm.boots) == (1034.0, 1)
    assert vm.calls[0] == (0.0, "import_image")
    assert [verb for _, verb in vm.calls] == ["import_image", "start", "save", "start"]


def test_only_the_planned_call_goes_wrong(vm: FakeDriver, plan: Plan) -> None:
    plan.fail("start", Trouble.MEMORY, call=2, times=2)
    vm.start(now())
    vm.stop()
    assert trouble(vm.start, now()) is Trouble.MEMORY
    assert trouble(vm.start, now()) is Trouble.MEMORY
    assert vm.state().state is VmState.OFF
    vm.start(now())
    assert vm.state().state is VmState.RUNNING
    assert plan.calls("start") == 4


def test_without_a_number_the_next_call_is_meant(vm: FakeDriver, plan: Plan) -> None:
    vm.start(now())
    plan.fail("save", Trouble.DISK_FULL)
    assert trouble(vm.save) is Trouble.DISK_FULL
    assert vm.state().state is VmState.RUNNING
    vm.save()
    assert vm.state().state is VmState.SAVED


def test_a_hanging_start_ends_when_cancelled(
    vm: FakeDriver, plan: Plan, clock: VirtualClock
) -> None:
    plan.hang("start")
    cancel = now()
    seen: list[VmState] = []

    def after_a_minute(at_s: float) -> None:
        seen.append(vm.state().state)
        if at_s >= 60.0:
            cancel.set()

    clock.on_wait = after_a_minute
    assert trouble(vm.start, cancel) is Trouble.CANCELLED
    assert set(seen) == {VmState.STARTING}
    assert 60.0 <= clock.now() < 61.0
    assert vm.state().state is VmState.OFF


def test_a_hanging_save_times_out_or_is_released(
    vm: FakeDriver, plan: Plan, clock: VirtualClock
) -> None:
    vm.start(now())
    plan.hang("save", seconds=90.0)
    assert trouble(vm.save) is Trouble.TIMEOUT
    assert clock.now() >= 92.0
    plan.hang("save")
    vm.release()
    assert trouble(vm.save) is Trouble.TIMEOUT
    assert clock.now() < 100.0


def test_slow_success_and_success_without_effect(
    vm: FakeDriver, plan: Plan, clock: VirtualClock
) -> None:
    plan.slow("start", 300.0)
    vm.start(now())
    assert (clock.now(), vm.state().state) == (302.0, VmState.RUNNING)
    plan.no_effect("pause").no_effect("save").no_effect("stop")
    vm.pause()
    vm.save()
    vm.stop()
    assert vm.state().state is VmState.RUNNING
    before = vm.progress()
    clock.advance(1.0)
    assert vm.progress() == before + 1000


def test_lies_and_silence(vm: FakeDriver, plan: Plan) -> None:
    plan.unknown(2).lie(VmState.SAVED, call=3)
    assert [vm.state().state for _ in range(4)] == [
        VmState.UNKNOWN, VmState.UNKNOWN, VmState.SAVED, VmState.OFF,
    ]  # fmt: skip


def test_dying_in_the_middle(vm: FakeDriver, plan: Plan) -> None:
    plan.die("start").die("save").die("start", call=4)
    assert trouble(vm.start, now()) is Trouble.FAILED
    assert vm.state().state is VmState.OFF
    vm.start(now())
    assert trouble(vm.save) is Trouble.FAILED
    assert vm.state().state is VmState.OFF
    vm.start(now())
    vm.save()
    assert trouble(vm.start, now()) is Trouble.FAILED
    assert vm.state().state is VmState.SAVED, "a restore that fails keeps the saved state"


def test_a_power_cut_in_the_middle_of_a_save_is_seen(vm: FakeDriver, clock: VirtualClock) -> None:
    vm.start(now())
    clock.on_wait = lambda _: vm.power_cut()
    assert trouble(vm.save) is Trouble.FAILED
    assert vm.state().state is VmState.OFF


def test_a_saved_state_that_is_lost(vm: FakeDriver, plan: Plan) -> None:
    vm.start(now())
    plan.lose_saved_state()
    vm.save()
    assert vm.state().state is VmState.OFF
    vm.start(now())
    assert vm.boots == 2


def test_the_repair_ladder_helps_from_the_planned_rung_on(vm: FakeDriver, plan: Plan) -> None:
    vm.start(now())
    plan.fail("stop", Trouble.STUCK, leaves=VmState.BROKEN, cured_by=RepairStep.RESTART_SERVICE)
    assert trouble(vm.stop) is Trouble.STUCK
    assert trouble(vm.repair, RepairStep.RETRY) is Trouble.STUCK
    assert trouble(vm.repair, RepairStep.EMERGENCY_STOP) is Trouble.STUCK
    assert vm.state().state is VmState.BROKEN
    assert trouble(vm.start, now()) is Trouble.STUCK
    vm.repair(RepairStep.RESTART_SERVICE)
    assert vm.state().state is VmState.OFF
    vm.start(now())


def test_a_verb_that_does_not_exist_cannot_be_planned(plan: Plan) -> None:
    with pytest.raises(ValueError, match="suspend"):
        plan.fail("suspend", Trouble.FAILED)


# -- the suite itself finds drivers that break their promises -------------------------------------

BROKEN: dict[str, tuple[str, Callable[[Plan], object], dict[str, object]]] = {
    "pause does nothing": (
        "test_pause_stops_it_at_once_and_resume_goes_on",
        lambda plan: plan.no_effect("pause", times=99), {},
    ),
    "resume does nothing": (
        "test_pause_stops_it_at_once_and_resume_goes_on",
        lambda plan: plan.no_effect("resume", times=99), {},
    ),
    "stop does nothing": (
        "test_stop_ends_the_process_and_keeps_nothing",
        lambda plan: plan.no_effect("stop", times=99), {"paused": False},
    ),
    "save loses the state": (
        "test_save_frees_the_process_and_start_goes_on",
        lambda plan: plan.lose_saved_state(times=99), {"paused": False},
    ),
    "a saved state is only paused": (
        "test_save_frees_the_process_and_start_goes_on",
        lambda plan: plan.no_effect("save", times=99), {"paused": True},
    ),
    "discard does nothing": (
        "test_a_saved_state_that_is_thrown_away_is_gone",
        lambda plan: plan.no_effect("discard", times=99), {"verb": "discard"},
    ),
    "a damaged state is some other failure": (
        "test_a_damaged_saved_state_is_told_and_stays_until_discard",
        lambda plan: plan.fail("start", Trouble.FAILED, call=2), {},
    ),
    "a full disk is some other failure": (
        "test_a_full_disk_leaves_no_half_saved_state",
        lambda plan: plan.fail("save", Trouble.FAILED), {},
    ),
    "a cancelled restore fails": (
        "test_a_restore_that_is_cancelled_loses_nothing",
        lambda plan: plan.fail("start", Trouble.FAILED, call=2), {"after_s": 0.0},
    ),
    "a cancelled restore loses the state": (
        "test_a_restore_that_is_cancelled_loses_nothing",
        lambda plan: plan.fail("start", Trouble.CANCELLED, call=2, leaves=VmState.OFF),
        {"after_s": 0.0},
    ),
    "state cannot tell": (
        "test_start_runs_the_guest_and_names_its_processes",
        lambda plan: plan.unknown(999), {},
    ),
    "the vm is denied while it is there": (
        "test_state_answers_while_verbs_are_at_work",
        lambda plan: plan.lie(VmState.ABSENT, call=3), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_the_suite_finds_it(tmp_path: Path, fault: str) -> None:
    case, break_it, arguments = BROKEN[fault]
    harness = FakeHarness(tmp_path)
    harness.boot_s = harness.restore_s = harness.settle_s = 1.0
    driver = harness.make()
    driver.import_image()
    harness.plan = Plan()
    driver.plan = harness.plan
    break_it(harness.plan)
    with pytest.raises((AssertionError, pytest.fail.Exception, DriverError)):
        getattr(DriverConformance(), case)(harness, driver, **arguments)


@pytest.mark.parametrize("fault", BROKEN)
def test_and_finds_nothing_in_a_driver_that_keeps_them(tmp_path: Path, fault: str) -> None:
    case, _, arguments = BROKEN[fault]
    harness = FakeHarness(tmp_path)
    driver = harness.make()
    driver.import_image()
    getattr(DriverConformance(), case)(harness, driver, **arguments)
