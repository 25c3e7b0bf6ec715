"""Driver cases: save, restore, discard, and saved states that are damaged, lost or unwanted."""

from __future__ import annotations

import threading
import time

import pytest

from officegrid.agent.drivers.base import Driver
from officegrid.core.vm import RepairStep, Trouble, VmState
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


class SaveCases:
    """What a driver must do that can save; skipped for the others."""

    @pytest.fixture
    def saver(self, driver: Driver) -> Driver:
        """The driver, if it can save."""
        if not driver.capabilities().saves:
            pytest.skip(f"{driver.name} does not save")
        return driver

    @pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
    def test_save_frees_the_process_and_start_goes_on(
        self, harness: DriverHarness, saver: Driver, paused: bool
    ) -> None:
        starts(saver, harness)
        if paused:
            saver.pause()
        pids = saver.state().pids
        saver.save()
        assert is_(saver, VmState.SAVED).pids == ()
        assert not [pid for pid in pids if alive(pid)], "its process still holds memory"
        before = stands_still(harness)
        saver.start(threading.Event())
        is_(saver, VmState.RUNNING)
        goes_on(harness, before)

    def test_saving_again_and_again(self, harness: DriverHarness, saver: Driver) -> None:
        starts(saver, harness)
        for _ in range(3):
            saver.save()
            saver.save()
            is_(saver, VmState.SAVED)
            before = harness.progress()
            saver.start(threading.Event())
            goes_on(harness, before)

    def test_a_new_object_finds_the_saved_vm(self, harness: DriverHarness, saver: Driver) -> None:
        starts(saver, harness)
        saver.save()
        before = harness.progress()
        again = harness.make()
        is_(again, VmState.SAVED)
        again.start(threading.Event())
        goes_on(harness, before)
        is_(saver, VmState.RUNNING)

    @pytest.mark.parametrize("verb", ["discard", "stop"])
    def test_a_saved_state_that_is_thrown_away_is_gone(
        self, harness: DriverHarness, saver: Driver, verb: str
    ) -> None:
        before = starts(saver, harness)
        saver.save()
        getattr(saver, verb)()
        is_(saver, VmState.OFF)
        getattr(saver, verb)()
        is_(saver, VmState.OFF)
        boots_cold(saver, harness, before)

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_wrong_verbs_leave_the_saved_state_alone(
        self, harness: DriverHarness, saver: Driver, verb: str
    ) -> None:
        starts(saver, harness)
        saver.save()
        before = harness.progress()
        refused_or_idle(getattr(saver, verb))
        is_(saver, VmState.SAVED)
        saver.start(threading.Event())
        goes_on(harness, before)

    def test_a_saved_state_serves_once(self, harness: DriverHarness, saver: Driver) -> None:
        # The disk has gone on since: the old memory on the new disk would destroy the guest.
        starts(saver, harness)
        saver.save()
        before = harness.progress()
        saver.start(threading.Event())
        goes_on(harness, before)
        harness.kill_vm()
        becomes(saver, harness, VmState.OFF)
        boots_cold(saver, harness, before)

    def test_stop_after_a_restore_keeps_nothing(
        self, harness: DriverHarness, saver: Driver
    ) -> None:
        before = starts(saver, harness)
        saver.save()
        saver.start(threading.Event())
        saver.stop()
        is_(saver, VmState.OFF)
        boots_cold(saver, harness, before)

    def test_a_damaged_saved_state_is_told_and_stays_until_discard(
        self, harness: DriverHarness, saver: Driver
    ) -> None:
        before = starts(saver, harness)
        saver.save()
        harness.corrupt_saved_state()
        for _ in range(2):
            refusal(lambda: saver.start(threading.Event()), Trouble.SAVED_STATE)
            assert is_(saver, VmState.SAVED).pids == (), "a process was left behind"
        saver.discard()
        is_(saver, VmState.OFF)
        boots_cold(saver, harness, before)

    @pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.5])
    def test_a_restore_that_is_cancelled_loses_nothing(
        self, harness: DriverHarness, saver: Driver, after_s: float
    ) -> None:
        starts(saver, harness)
        saver.save()
        before = harness.progress()
        cancel = threading.Event()
        timer = threading.Timer(after_s, cancel.set)
        began = time.monotonic()
        timer.start()
        try:
            started = started_or_cancelled(saver, cancel)
        finally:
            timer.join()
        if not started:
            is_(saver, VmState.SAVED)
            saver.start(threading.Event())
        assert time.monotonic() - began < harness.settle_s + harness.restore_s
        goes_on(harness, before)

    def test_a_full_disk_leaves_no_half_saved_state(
        self, harness: DriverHarness, saver: Driver
    ) -> None:
        before = starts(saver, harness)
        full = harness.full_disk()
        if full is None:
            pytest.skip("this harness cannot fill the disk")
        with full:
            refusal(saver.save, Trouble.DISK_FULL)
            left = is_(saver, VmState.RUNNING, VmState.PAUSED, VmState.OFF).state
        if left is VmState.OFF:
            boots_cold(saver, harness, before)
        else:
            saver.resume()
            goes_on(harness, before)

    def test_the_repair_that_discards(self, harness: DriverHarness, saver: Driver) -> None:
        if RepairStep.DISCARD not in saver.capabilities().repairs:
            pytest.skip(f"{saver.name} does not discard as a repair")
        before = starts(saver, harness)
        saver.save()
        harness.corrupt_saved_state()
        saver.repair(RepairStep.DISCARD)
        is_(saver, VmState.OFF)
        boots_cold(saver, harness, before)
