"""Which driver is taken: the one that may hold our VM before any other that can work."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from officegrid.agent import registry
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.registry import Nothing, choose
from officegrid.core.errors import UsageError
from officegrid.core.vm import Health, HealthLevel, VmState, VmStatus
from officegrid.testing.fake_driver import FakeDriver


class Offer:
    """Two drivers for `auto`, whose health and state a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unusable: set[str] = set()
        self.mistaken: set[str] = set()
        self.states: dict[str, VmState] = {}
        names = ("virtualbox", "qemu")
        for name in names:
            module = ModuleType(f"offered_{name}")
            module.make = self._maker(name)  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, module.__name__, module)
            monkeypatch.setitem(registry.MODULES, name, module.__name__)
        monkeypatch.setattr(registry, "AUTO", names)

    def _maker(self, driver_name: str):  # type: ignore[no-untyped-def]
        offer = self

        class Offered(FakeDriver):
            name = driver_name

            def detect(self) -> Health:
                bad = driver_name in offer.unusable
                return Health(HealthLevel.UNUSABLE if bad else HealthLevel.GOOD, "So it is.")

            def state(self) -> VmStatus:
                return VmStatus(offer.states.get(driver_name, VmState.OFF))

        def make(settings: VmSettings) -> FakeDriver:
            if driver_name in offer.mistaken:
                raise UsageError(f"The {driver_name} option is wrong.")
            return Offered(settings)

        return make


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    return Offer(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path) -> VmSettings:
    return VmSettings("GridMachine", tmp_path)


def test_auto_takes_the_first_usable_one(offer: Offer, settings: VmSettings) -> None:
    assert choose("auto", settings).driver.name == "virtualbox"
    offer.unusable = {"virtualbox"}
    assert choose("auto", settings).driver.name == "qemu"


def test_auto_begins_with_the_last_one(offer: Offer, settings: VmSettings) -> None:
    assert choose("auto", settings, "qemu").driver.name == "qemu"


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED, VmState.UNKNOWN])
def test_a_driver_that_may_hold_our_vm_is_kept_though_it_fails_just_now(
    offer: Offer, settings: VmSettings, state: VmState
) -> None:
    offer.unusable, offer.states = {"qemu"}, {"qemu": state}
    choice = choose("auto", settings, "qemu")
    assert choice.driver.name == "qemu"
    assert not choice.usable
    offer.states = {"qemu": VmState.OFF}
    assert choose("auto", settings, "qemu").driver.name == "virtualbox"


def test_wrong_options_are_a_mistake_not_a_missing_hypervisor(
    offer: Offer, settings: VmSettings
) -> None:
    offer.mistaken = {"qemu"}
    assert choose("auto", settings).driver.name == "virtualbox"
    with pytest.raises(UsageError, match="option is wrong"):
        choose("qemu", settings)
    with pytest.raises(UsageError):
        choose("auto", settings, "qemu")
    offer.mistaken = {"qemu", "virtualbox"}
    with pytest.raises(UsageError):
        choose("auto", settings)


def test_without_any_the_choice_can_do_nothing(offer: Offer, settings: VmSettings) -> None:
    offer.unusable = {"qemu", "virtualbox"}
    assert isinstance(choose("auto", settings).driver, Nothing)
