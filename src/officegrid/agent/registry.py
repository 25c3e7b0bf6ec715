"""Which driver handles this machine's worker VM: the one named, or the first that can work here.

`auto` prefers what an office has been given for this purpose: VirtualBox, Hyper-V, QEMU, libvirt,
in this order. `process` (a worker without a VM) gives no isolation and is never picked unasked.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass

from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.core.errors import OfficeGridError, UsageError
from officegrid.core.vm import (
    HOLDS_MEMORY,
    Capabilities,
    DriverError,
    Health,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)

MODULES = {
    "virtualbox": "officegrid.agent.drivers.virtualbox",
    "hyperv": "officegrid.agent.drivers.hyperv",
    "qemu": "officegrid.agent.drivers.qemu",
    "libvirt": "officegrid.agent.drivers.libvirt",
    "process": "officegrid.agent.drivers.process",
}
"""Each has `make(settings: VmSettings) -> Driver`."""

AUTO = ("virtualbox", "hyperv", "qemu", "libvirt")


@dataclass(frozen=True, slots=True)
class Choice:
    """A driver to work with, its health, and a sentence for each one that was refused."""

    driver: Driver
    health: Health
    refused: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.health.level is not HealthLevel.UNUSABLE


def choose(name: str, settings: VmSettings, last: str = "") -> Choice:
    """The driver of that name, or for "auto" the first usable one, beginning with the `last` one:
    a VM of ours may be in it, and then it is kept even if it cannot be used just now. Never raises
    for a machine without a hypervisor: then the choice is a driver that can do nothing and says
    why. Raises UsageError for wrong [vm.options]."""
    refused: list[str] = []
    mistakes: list[UsageError] = []
    auto = sorted(AUTO, key=lambda each: each != last) if name == "auto" else [name]
    for candidate in auto:
        try:
            driver = load(candidate, settings)
            health = driver.detect()
        except UsageError as mistake:
            if candidate == last:
                raise
            mistakes.append(mistake)
            refused.append(f"{candidate}: {_sentence(mistake)}")
            continue
        except Exception as error:  # one broken driver must not hide the others
            refused.append(f"{candidate}: {_sentence(error)}")
            continue
        usable = health.level is not HealthLevel.UNUSABLE
        if usable or name != "auto" or (candidate == last and _may_hold(driver)):
            return Choice(driver, health, tuple(refused))
        refused.append(f"{candidate}: {health.sentence}")
    if len(mistakes) == len(auto):  # options that no driver understands
        raise mistakes[0]
    nothing = Nothing(refused)
    return Choice(nothing, nothing.detect(), tuple(refused))


def _may_hold(driver: Driver) -> bool:
    """May a VM of ours be in memory?"""
    return driver.state().state in HOLDS_MEMORY | {VmState.UNKNOWN, VmState.BROKEN}


def load(name: str, settings: VmSettings) -> Driver:
    """The driver of that name. Raises DriverError (MISSING) when this installation lacks it."""
    try:
        module = importlib.import_module(MODULES[name])
    except ImportError as error:
        raise DriverError(
            Trouble.MISSING,
            f"The driver {name} cannot be loaded.",
            str(error),
            "Install officegrid with its agent extra.",
        ) from None
    driver: Driver = module.make(settings)
    return driver


class Nothing:
    """What an agent has while no hypervisor can be used: it holds no memory and starts nothing."""

    name = "none"

    def __init__(self, refused: list[str]) -> None:
        self._why = " ".join(refused)

    def capabilities(self) -> Capabilities:
        return Capabilities(saves=False, imports=False, pauses=False)

    def detect(self) -> Health:
        return Health(
            HealthLevel.UNUSABLE,
            f"No hypervisor on this PC can be used. {self._why}".strip(),
            "Install VirtualBox, or enable Hyper-V; the agent looks again every few minutes.",
        )

    def state(self) -> VmStatus:
        return VmStatus(VmState.ABSENT, "no hypervisor can be used")

    def import_image(self) -> None:
        raise self._missing()

    def start(self, cancel: threading.Event) -> None:
        raise self._missing()

    def pause(self) -> None:
        """There is nothing."""

    def resume(self) -> None:
        raise self._missing()

    def save(self) -> None:
        raise self._missing()

    def stop(self) -> None:
        """There is nothing."""

    def discard(self) -> None:
        """There is nothing."""

    def delete(self) -> None:
        """There is nothing."""

    def repair(self, step: RepairStep) -> None:
        raise self._missing()

    def _missing(self) -> DriverError:
        health = self.detect()
        return DriverError(Trouble.MISSING, health.sentence, "", health.fix)


def _sentence(error: Exception) -> str:
    if isinstance(error, OfficeGridError):
        return f"{error.what} {error.why}".strip()
    return f"{type(error).__name__}: {error}"
