"""Driver cases: import, delete, and what people do to VMs behind the agent's back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from officegrid.agent.drivers.base import Driver
from officegrid.core.vm import RepairStep, Trouble, VmState
from officegrid.testing.driver_harness import (
    DriverHarness,
    alive,
    becomes,
    is_,
    refusal,
    refused_or_idle,
    starts,
)


class ImageCases:
    """What a driver must do that makes its VM from an image; skipped for the others."""

    @pytest.fixture
    def bare(self, harness: DriverHarness) -> Driver:
        """The driver before its first import, if it imports."""
        driver = harness.make()
        if not driver.capabilities().imports:
            pytest.skip(f"{driver.name} needs no image")
        return driver

    def test_import_makes_it_and_once_is_enough(self, harness: DriverHarness, bare: Driver) -> None:
        is_(bare, VmState.ABSENT)
        bare.import_image()
        is_(bare, VmState.OFF)
        bare.import_image()
        is_(bare, VmState.OFF)
        is_(harness.make(), VmState.OFF)

    def test_detect_before_import_changes_nothing(
        self, harness: DriverHarness, bare: Driver
    ) -> None:
        before = harness.foreign_things()
        bare.detect()
        is_(bare, VmState.ABSENT)
        assert harness.foreign_things() == before

    def test_without_a_vm_each_verb_says_so(self, bare: Driver) -> None:
        refusal(lambda: bare.start(threading.Event()), Trouble.GONE)
        refusal(bare.pause, Trouble.GONE)
        refusal(bare.resume, Trouble.GONE)
        if bare.capabilities().saves:
            refusal(bare.save, Trouble.GONE)
        refused_or_idle(bare.stop)
        refused_or_idle(bare.discard)
        bare.delete()
        is_(bare, VmState.ABSENT)

    def test_a_missing_image_is_told_and_leaves_nothing(
        self, harness: DriverHarness, bare: Driver, tmp_path: Path
    ) -> None:
        before = harness.foreign_things()
        refusal(harness.make(image=tmp_path / "no-such-image").import_image, Trouble.IMAGE)
        is_(bare, VmState.ABSENT)
        assert harness.leftovers() == []
        assert harness.foreign_things() == before
        bare.import_image()
        is_(bare, VmState.OFF)

    def test_a_name_that_is_taken_stays_with_its_owner(
        self, harness: DriverHarness, bare: Driver
    ) -> None:
        harness.take_name()
        before = harness.foreign_things()
        refusal(bare.import_image, Trouble.NAME_TAKEN)
        # Whatever else is asked of us, the other's VM is not started, stopped or deleted.
        refused_or_idle(lambda: bare.start(threading.Event()))
        refused_or_idle(bare.stop)
        refused_or_idle(bare.discard)
        refused_or_idle(bare.delete)
        assert harness.foreign_things() == before

    def test_deleted_by_hand_is_noticed_and_imported_again(
        self, harness: DriverHarness, driver: Driver, bare: Driver
    ) -> None:
        harness.delete_by_hand()
        becomes(driver, harness, VmState.ABSENT)
        refusal(lambda: driver.start(threading.Event()), Trouble.GONE)
        refusal(driver.pause, Trouble.GONE)
        driver.delete()
        driver.import_image()
        is_(driver, VmState.OFF)
        starts(driver, harness)

    @pytest.mark.parametrize("state", ["off", "running", "paused", "saved"])
    def test_delete_leaves_nothing_of_ours_and_all_of_theirs(
        self, harness: DriverHarness, driver: Driver, bare: Driver, state: str
    ) -> None:
        before = harness.foreign_things()
        capabilities = driver.capabilities()
        if (state == "saved" and not capabilities.saves) or (
            state == "paused" and not capabilities.pauses
        ):
            pytest.skip(f"{driver.name} is never {state}")
        if state != "off":
            starts(driver, harness)
        pids = driver.state().pids
        if state == "paused":
            driver.pause()
        if state == "saved":
            driver.save()
        driver.delete()
        is_(driver, VmState.ABSENT)
        assert harness.leftovers() == []
        assert not [pid for pid in pids if alive(pid)]
        assert harness.foreign_things() == before
        driver.delete()
        driver.import_image()
        is_(driver, VmState.OFF)

    def test_the_repair_that_imports_anew(
        self, harness: DriverHarness, driver: Driver, bare: Driver
    ) -> None:
        if RepairStep.REIMPORT not in driver.capabilities().repairs:
            pytest.skip(f"{driver.name} is not imported anew as a repair")
        starts(driver, harness)
        driver.repair(RepairStep.REIMPORT)
        is_(driver, VmState.OFF)
        starts(driver, harness)
