"""Driver cases: detect, start, pause, resume, stop, re-attach, power cuts, wrong moments."""

from __future__ import annotations

import threading
import time

import pytest

from officegrid.agent.drivers.base import Driver
from officegrid.core.vm import (
    HOLDS_MEMORY,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)
from officegrid.testing.driver_harness import (
    DriverHarness,
    alive,
    becomes,
    boots_cold,
    goes_on,
    is_,
    refusal,
    refused_or_idle,
    stands_still,
    started_or_cancelled,
    starts,
)


class LifeCases:
    """What each driver must do, whether it saves or not."""

    def test_detect_looks_and_changes_nothing(self, harness: DriverHarness, driver: Driver) -> None:
        before = harness.foreign_things()
        health = driver.detect()
        assert health.level is not HealthLevel.UNUSABLE, f"{health.sentence} {health.fix}"
        assert health.sentence.endswith("."), health.sentence
        assert health.level is HealthLevel.GOOD or health.fix, "worse than good, and no remedy"
        assert driver.detect() == health, "looking twice gives two answers"
        is_(driver, VmState.OFF)
        assert harness.foreign_things() == before

    def test_start_runs_the_guest_and_names_its_processes(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        assert is_(driver, VmState.OFF).pids == ()
        starts(driver, harness)
        status = is_(driver, VmState.RUNNING)
        assert all(alive(pid) for pid in status.pids), f"{status.pids} are not all alive"

    def test_start_of_a_running_vm_does_nothing(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        before = starts(driver, harness)
        driver.start(threading.Event())
        is_(driver, VmState.RUNNING)
        goes_on(harness, before)

    def test_pause_stops_it_at_once_and_resume_goes_on(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        self._needs_pauses(driver)
        starts(driver, harness)
        driver.pause()
        before = stands_still(harness)
        is_(driver, VmState.PAUSED)
        driver.pause()
        assert stands_still(harness) == before, "a second pause made it run"
        is_(driver, VmState.PAUSED)
        driver.resume()
        is_(driver, VmState.RUNNING)
        goes_on(harness, before)
        driver.resume()
        is_(driver, VmState.RUNNING)
        goes_on(harness, harness.progress())

    def test_many_short_pauses_do_not_wear_it_out(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        self._needs_pauses(driver)
        before = starts(driver, harness)
        for _ in range(5):
            driver.pause()
            is_(driver, VmState.PAUSED)
            driver.resume()
            is_(driver, VmState.RUNNING)
        goes_on(harness, before)

    def test_start_of_a_paused_vm_goes_on_or_refuses(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        self._needs_pauses(driver)
        before = starts(driver, harness)
        driver.pause()
        refused_or_idle(lambda: driver.start(threading.Event()))
        if is_(driver, VmState.RUNNING, VmState.PAUSED).state is VmState.PAUSED:
            driver.resume()
        goes_on(harness, before)

    @pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
    def test_stop_ends_the_process_and_keeps_nothing(
        self, harness: DriverHarness, driver: Driver, paused: bool
    ) -> None:
        before = starts(driver, harness)
        if paused:
            self._needs_pauses(driver)
            driver.pause()
        pids = driver.state().pids
        driver.stop()
        assert is_(driver, VmState.OFF).pids == ()
        assert not [pid for pid in pids if alive(pid)], "a process of the VM lives on"
        driver.stop()
        is_(driver, VmState.OFF)
        boots_cold(driver, harness, before)

    @pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
    def test_a_new_object_finds_the_vm_as_it_is(
        self, harness: DriverHarness, driver: Driver, paused: bool
    ) -> None:
        is_(harness.make(), VmState.OFF)
        before = starts(driver, harness)
        if paused:
            self._needs_pauses(driver)
            driver.pause()
            before = harness.progress()
        again = harness.make()
        status = is_(again, VmState.PAUSED if paused else VmState.RUNNING)
        assert status.pids == driver.state().pids
        if paused:
            again.resume()
        goes_on(harness, before)
        again.stop()
        is_(again, VmState.OFF)
        is_(driver, VmState.OFF)

    @pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
    def test_after_a_power_cut_it_is_off_and_starts(
        self, harness: DriverHarness, driver: Driver, paused: bool
    ) -> None:
        before = starts(driver, harness)
        if paused:
            self._needs_pauses(driver)
            driver.pause()
        harness.kill_vm()
        becomes(driver, harness, VmState.OFF)
        assert driver.state().pids == ()
        boots_cold(driver, harness, before)

    @pytest.mark.parametrize("verb", ["pause", "resume", "save", "discard", "stop"])
    def test_wrong_verbs_leave_a_stopped_vm_alone(self, driver: Driver, verb: str) -> None:
        refused_or_idle(getattr(driver, verb))
        is_(driver, VmState.OFF)

    def test_wrong_verbs_leave_a_running_vm_alone(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        before = starts(driver, harness)
        driver.discard()
        driver.resume()
        if driver.capabilities().imports:
            refused_or_idle(driver.import_image)
        is_(driver, VmState.RUNNING)
        goes_on(harness, before)

    def test_what_it_cannot_do_it_says(self, driver: Driver) -> None:
        capabilities = driver.capabilities()
        if not capabilities.saves:
            refusal(driver.save, Trouble.UNSUPPORTED)
        for step in sorted(set(RepairStep) - capabilities.repairs):
            refusal(lambda step=step: driver.repair(step), Trouble.UNSUPPORTED)  # type: ignore[misc]
        is_(driver, VmState.OFF)

    def test_a_start_that_is_cancelled_leaves_it_off_or_running(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        cancel = threading.Event()
        cancel.set()
        began = time.monotonic()
        if started_or_cancelled(driver, cancel):
            driver.stop()
        is_(driver, VmState.OFF)
        assert time.monotonic() - began < harness.settle_s, "it did not end soon"
        starts(driver, harness)

    def test_state_answers_while_verbs_are_at_work(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        over = threading.Event()
        heard: list[VmStatus] = []
        raised: list[BaseException] = []

        def look() -> None:
            try:
                while not over.is_set():
                    heard.append(driver.state())
            except BaseException as error:
                raised.append(error)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            starts(driver, harness)
            if driver.capabilities().pauses:
                driver.pause()
                driver.resume()
            if driver.capabilities().saves:
                driver.save()
                driver.start(threading.Event())
            driver.stop()
        finally:
            over.set()
            watcher.join(30)
        assert not watcher.is_alive(), "state hangs"
        assert not raised, f"state raised {raised[0]!r}"
        assert not [s for s in heard if s.state is VmState.ABSENT], "it was there all the time"
        assert [s for s in heard if s.state in HOLDS_MEMORY], "nobody saw it run"
        is_(driver, VmState.OFF)

    def test_emergency_stop_ends_it(self, harness: DriverHarness, driver: Driver) -> None:
        if RepairStep.EMERGENCY_STOP not in driver.capabilities().repairs:
            pytest.skip(f"{driver.name} has no emergency stop")
        starts(driver, harness)
        pids = driver.state().pids
        driver.repair(RepairStep.EMERGENCY_STOP)
        becomes(driver, harness, VmState.OFF)
        assert not [pid for pid in pids if alive(pid)]
        starts(driver, harness)

    def test_a_whole_life_touches_nothing_that_is_not_ours(
        self, harness: DriverHarness, driver: Driver
    ) -> None:
        before = harness.foreign_things()
        capabilities = driver.capabilities()
        starts(driver, harness)
        if capabilities.pauses:
            driver.pause()
        if capabilities.saves:
            driver.save()
            driver.start(threading.Event())
        driver.stop()
        driver.discard()
        if capabilities.imports:
            driver.delete()
        assert harness.foreign_things() == before

    @staticmethod
    def _needs_pauses(driver: Driver) -> None:
        if not driver.capabilities().pauses:
            pytest.skip(f"{driver.name} does not pause")
