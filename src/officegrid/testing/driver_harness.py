"""What the driver conformance suite must be given, and what its cases look with.

A driver's own test supplies a `DriverHarness`: how to make the driver, and how to do from outside
what happens to VMs in offices. Where the real thing can run, the harness uses the real thing.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from officegrid.agent.drivers.base import Driver
from officegrid.core.vm import DriverError, Trouble, VmState, VmStatus


class DriverHarness(ABC):
    """One VM of one driver, in a place of its own. Each case gets a new one."""

    boot_s: float = 20.0
    """Deadline: from `start` on a VM that is off until `progress` rises."""
    restore_s: float = 20.0
    """Deadline: from `start` on a saved VM until `progress` rises."""
    settle_s: float = 10.0
    """Deadline: until the driver notices what was done behind its back."""
    still_s: float = 0.4
    """How long a paused VM is watched. At least three ticks of `progress`."""
    some_progress: int = 5
    """So many ticks count as "has been running for a while"; well under `boot_s`."""

    @abstractmethod
    def make(self, *, image: Path | None = None) -> Driver:
        """A new driver object for the same VM, optionally with another image."""

    @abstractmethod
    def progress(self) -> int:
        """A counter that rises, by one every 20 to 200 ms, only while the guest's CPUs run. It
        begins anew at each cold boot and goes on after a restore. 0: nothing counted yet."""

    @abstractmethod
    def kill_vm(self) -> None:
        """Power cut: the VM's process is killed from outside."""

    @abstractmethod
    def foreign_things(self) -> object:
        """A picture of all that is not ours (other VMs, other files, other processes); compared
        with `==`. The harness makes some such things first."""

    def corrupt_saved_state(self) -> None:
        """Damage the saved state so that it cannot be used. Needed if the driver saves."""
        raise NotImplementedError

    def delete_by_hand(self) -> None:
        """Delete the VM, which is off, with the hypervisor's own means. Needed if it imports."""
        raise NotImplementedError

    def take_name(self) -> None:
        """Before `import_image`: somebody else makes a VM of our name. Needed if it imports."""
        raise NotImplementedError

    def leftovers(self) -> list[str]:
        """After `delete`: what is still there of our VM. Needed if it imports."""
        raise NotImplementedError

    def full_disk(self) -> AbstractContextManager[None] | None:
        """While open, there is no room for a saved state. None: cannot be done here."""
        return None

    @abstractmethod
    def close(self) -> None:
        """End every process and remove every file. Called even after a failure."""


# -- looking ----------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Wait for a condition; fails the test with `what` when the deadline has passed."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"Not within {within_s:g} s: {what}")
        time.sleep(0.01)


def is_(driver: Driver, *states: VmState) -> VmStatus:
    """The present status, which must be one of these."""
    status = driver.state()
    assert status.state in states, f"{status.state} ({status.detail}), not {' or '.join(states)}"
    return status


def becomes(driver: Driver, harness: DriverHarness, state: VmState) -> None:
    """The driver notices within `settle_s`."""
    wait_until(lambda: driver.state().state is state, harness.settle_s, f"the state is {state}")


def starts(driver: Driver, harness: DriverHarness) -> int:
    """Start it and see the guest run for a while. Returns the progress seen last."""
    driver.start(threading.Event())
    is_(driver, VmState.RUNNING)
    wait_until(
        lambda: harness.progress() >= harness.some_progress, harness.boot_s, "the guest runs"
    )
    return harness.progress()


def boots_cold(driver: Driver, harness: DriverHarness, before: int) -> None:
    """Start it; its progress, which was at `before`, must begin anew."""
    driver.start(threading.Event())
    wait_until(lambda: 0 < harness.progress() < before, harness.boot_s, "the guest has begun anew")


def goes_on(harness: DriverHarness, before: int) -> None:
    """The progress rises above `before` and never falls below it: the same guest goes on."""
    seen: list[int] = []

    def risen() -> bool:
        seen.append(harness.progress())
        assert not 0 < seen[-1] < before, f"it began anew: {seen[-1]} after {before}"
        return seen[-1] > before

    wait_until(risen, harness.restore_s, f"the guest goes on from {before}")


def stands_still(harness: DriverHarness) -> int:
    """The guest's CPUs do not run now. Returns the progress at which it stands."""
    before = harness.progress()
    time.sleep(harness.still_s)
    assert harness.progress() == before, "the guest ran on"
    return before


def started_or_cancelled(driver: Driver, cancel: threading.Event) -> bool:
    """True: it runs. False: it was CANCELLED; anything else fails the test."""
    try:
        driver.start(cancel)
    except DriverError as error:
        readable(error)
        if error.trouble is not Trouble.CANCELLED:
            pytest.fail(f"{error.trouble}: {error}")
        return False
    is_(driver, VmState.RUNNING)
    return True


def alive(pid: int) -> bool:
    """Is there such a process, other than a zombie?"""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def refusal(verb: Callable[[], None], *troubles: Trouble) -> DriverError:
    """The verb must raise a DriverError, of one of these troubles, that an admin can read."""
    with pytest.raises(DriverError) as caught:
        verb()
    error = caught.value
    readable(error)
    assert not troubles or error.trouble in troubles, f"{error.trouble}: {error}"
    return error


def refused_or_idle(verb: Callable[[], None]) -> None:
    """The verb may refuse, readably, or do nothing."""
    try:
        verb()
    except DriverError as error:
        readable(error)


def readable(error: DriverError) -> None:
    """A sentence, a reason or a remedy, and a code that fits the trouble."""
    assert error.what.endswith("."), error.what
    assert error.why or error.fix, f"neither why nor fix: {error.what}"
    assert error.code == f"driver_{error.trouble}"
