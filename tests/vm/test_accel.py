"""The accelerator is chosen by a real probe, by what was learnt, and never by a device file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from officegrid.agent.drivers.qemu import acceleration
from officegrid.agent.drivers.qemu.acceleration import (
    FORGET_AFTER_S,
    Learnt,
    choose,
    cpu_flags,
    kvm_obstacle,
)
from officegrid.core.vm import DriverError, HealthLevel, RepairStep, Trouble, VmState
from officegrid.testing.driver_harness import wait_until
from vm.conftest import MakeTicker
from vm.ticker import last_tick

VERSION = "QEMU emulator version 7.2.22"
# /proc/cpuinfo, shortened: an Intel desktop, an AMD desktop, the inside of a cloud VM, a Pi.
INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme msr vmx ssse3\nbugs\t: x\n"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme msr svm\n\nprocessor\t: 1\n"
CLOUD = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme msr hypervisor vmx_fake\n"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32\n"


def never_an_obstacle(_: str) -> str:
    return ""


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("text", "usable"), [(INTEL, True), (AMD, True), (CLOUD, False),
                                              (ARM, False), ("", False)])  # fmt: skip
def test_the_processor_must_say_that_it_can(
    tmp_path: Path, device: Path, text: str, usable: bool
) -> None:
    reason = kvm_obstacle(device, written(tmp_path, text), api=lambda _: 12)
    assert (reason == "") is usable
    assert usable or "neither vmx nor svm" in reason


def test_flags_are_whole_words() -> None:
    assert cpu_flags(INTEL) == {"fpu", "vme", "msr", "vmx", "ssse3"}
    assert cpu_flags(ARM) == frozenset()


def test_without_the_device_it_says_so(tmp_path: Path) -> None:
    reason = kvm_obstacle(tmp_path / "kvm", written(tmp_path, INTEL), api=lambda _: 12)
    assert reason.startswith(f"There is no {tmp_path / 'kvm'}")


def test_a_file_that_is_no_kvm_device_is_not_taken_for_one(tmp_path: Path, device: Path) -> None:
    # The real question to the kernel, which answers that this is no such device.
    assert "cannot be used" in kvm_obstacle(device, written(tmp_path, INTEL))


def test_another_interface_version_is_refused(tmp_path: Path, device: Path) -> None:
    assert "version 11" in kvm_obstacle(device, written(tmp_path, INTEL), api=lambda _: 11)


def test_auto_takes_what_works_and_says_why(tmp_path: Path) -> None:
    learnt = Learnt(tmp_path / "learnt.json")
    assert choose("auto", VERSION, learnt, find_obstacle=never_an_obstacle).hardware
    slow = choose("auto", VERSION, learnt, find_obstacle=lambda _: "It is raining.")
    assert slow.name == "tcg"
    assert "It is raining." in slow.sentence
    assert choose("tcg", VERSION, learnt, find_obstacle=never_an_obstacle).name == "tcg"


def test_what_is_asked_for_by_name_is_not_replaced(tmp_path: Path) -> None:
    learnt = Learnt(tmp_path / "learnt.json")
    learnt.remember("kvm", VERSION, "It crawled.")
    with pytest.raises(DriverError) as caught:
        choose("kvm", VERSION, learnt, find_obstacle=lambda _: "It is raining.")
    assert caught.value.trouble is Trouble.NO_VIRTUALIZATION
    assert caught.value.why == "It is raining."
    assert choose("kvm", VERSION, learnt, find_obstacle=never_an_obstacle).name == "kvm"


def test_a_failure_is_remembered_for_a_week_and_for_one_version(tmp_path: Path) -> None:
    now = [1_000_000.0]
    name = acceleration.preferred()
    path = tmp_path / "learnt.json"
    Learnt(path, lambda: now[0]).remember(name, VERSION, "It crawled.")
    learnt = Learnt(path, lambda: now[0])
    slow = choose("auto", VERSION, learnt, find_obstacle=never_an_obstacle)
    assert slow.name == "tcg"
    assert "It crawled." in slow.sentence
    assert choose("auto", "another", learnt, find_obstacle=never_an_obstacle).hardware
    now[0] += FORGET_AFTER_S - 1
    assert learnt.failure(name, VERSION) == "It crawled."
    now[0] += 2
    assert learnt.failure(name, VERSION) == ""
    now[0] = 5.0  # the clock was set back
    assert learnt.failure(name, VERSION) == ""


@pytest.mark.parametrize("text", ["", "[]", '{"kvm": 3}', '{"kvm": {"qemu_version": 1}}', "\xff"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, text: str) -> None:
    path = tmp_path / "learnt.json"
    path.write_text(text, encoding="latin-1")
    assert Learnt(path).failure("kvm", VERSION) == ""


# --- with real QEMU processes


def test_auto_starts_with_what_this_machine_can_do(ticker: MakeTicker) -> None:
    driver = ticker(accelerator="auto")
    health = driver.detect()
    driver.import_image()
    driver.start(threading.Event())
    wait_until(lambda: last_tick(driver.files.console) > 3, 20, "the guest ticks")
    if reason := kvm_obstacle():
        assert health.level is HealthLevel.DEGRADED
        assert reason in health.sentence
        assert "-accel" in _command_line(driver)
        assert "tcg,thread=multi,tb-size=32" in _command_line(driver)
    else:
        assert health.level is HealthLevel.GOOD
        assert "kvm" in _command_line(driver)


def _command_line(driver: object) -> list[str]:
    import psutil

    return psutil.Process(driver.state().pids[0]).cmdline()  # type: ignore[attr-defined]


def test_kvm_by_name_on_a_machine_without_is_an_error(ticker: MakeTicker) -> None:
    if not (reason := kvm_obstacle()):
        pytest.skip("KVM works here")
    driver = ticker(accelerator="kvm")
    assert driver.detect().level is HealthLevel.UNUSABLE
    driver.import_image()
    with pytest.raises(DriverError) as caught:
        driver.start(threading.Event())
    assert caught.value.trouble is Trouble.NO_VIRTUALIZATION
    assert caught.value.why == reason
    assert driver.state().state is VmState.OFF


def test_an_accelerator_that_qemu_cannot_use_is_given_up_within_the_start(
    ticker: MakeTicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No Linux has hvf, so QEMU ends at once; the probe is made to believe in it.
    monkeypatch.setattr(acceleration, "preferred", lambda: "hvf")
    driver = ticker(accelerator="auto", find_obstacle=never_an_obstacle)
    driver.import_image()
    driver.start(threading.Event())
    assert driver.state().state is VmState.RUNNING
    wait_until(lambda: last_tick(driver.files.console) > 3, 20, "the guest ticks")
    driver.stop()
    again = ticker(accelerator="auto", find_obstacle=never_an_obstacle)
    health = again.detect()
    assert health.level is HealthLevel.DEGRADED
    assert "because hvf failed here before: QEMU said:" in health.sentence


def test_by_name_it_is_not_given_up_but_told(
    ticker: MakeTicker,
) -> None:
    driver = ticker(accelerator="hvf", find_obstacle=never_an_obstacle)
    driver.import_image()
    with pytest.raises(DriverError) as caught:
        driver.start(threading.Event())
    assert caught.value.trouble is Trouble.NO_VIRTUALIZATION
    assert driver.state().state is VmState.OFF
    assert driver.state().pids == ()


def test_a_guest_that_does_not_come_up_in_time_is_started_without(ticker: MakeTicker) -> None:
    if not Path("/dev/kvm").exists():
        pytest.skip("there is no /dev/kvm to try")
    # The ticking guest never says that it is ready; with qemu64 it starts even where /dev/kvm
    # is not backed by hardware.
    slow = {"accelerator": "auto", "cpu_model": "qemu64", "boot_deadline_s": 1.0}
    driver = ticker(find_obstacle=never_an_obstacle, **slow)
    driver.import_image()
    driver.start(threading.Event())
    assert "kvm" in _command_line(driver)
    # Time in which it was paused does not count.
    driver.pause()
    assert driver.state().state is VmState.PAUSED
    threading.Event().wait(1.1)
    driver.resume()
    assert driver.state().state is VmState.RUNNING
    wait_until(lambda: driver.state().state is VmState.BROKEN, 10, "its deadline passes")
    assert "has not come up within 1 s with kvm" in driver.state().detail
    driver = ticker(find_obstacle=never_an_obstacle, **slow)  # also seen by a new agent
    assert driver.state().state is VmState.BROKEN
    driver.repair(RepairStep.EMERGENCY_STOP)
    assert driver.state().state is VmState.OFF
    driver.start(threading.Event())
    assert "tcg,thread=multi,tb-size=32" in _command_line(driver)
    threading.Event().wait(1.2)
    assert driver.state().state is VmState.RUNNING, "emulation has no deadline: nothing is left"
