"""Bad weather for the VirtualBox driver, on the stand-in: each fault gives its trouble, a sentence
for the admin and a safe outcome; and the ladder gets a stuck VM running again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.virtualbox import processes, vm
from officegrid.agent.drivers.virtualbox.driver import VirtualBoxDriver
from officegrid.agent.drivers.virtualbox.manage import ipc_id
from officegrid.agent.drivers.virtualbox.record import VmLock, load_machine
from officegrid.core.vm import DriverError, HealthLevel, RepairStep, Trouble, VmState
from officegrid.testing.vboxmanage.appliance import write_ova
from officegrid.testing.vboxmanage.install import StandIn

LADDER = (
    RepairStep.RETRY, RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE, RepairStep.DISCARD,
    RepairStep.REIMPORT,
)  # fmt: skip


class Desk:
    """One agent's VirtualBox."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.agent = root / "agent"
        self.home = self.agent / "vbox"
        self.standin = StandIn(root / "standin", version="7.1.8r168469")
        self.image = root / "grid.ova"
        write_ova(self.image, "golden")
        self.driver = self.make()

    def make(self, **options: Any) -> VirtualBoxDriver:
        wanted = {
            "vboxmanage": str(self.standin.program), "stuck_after_s": 0.5, "disk_margin_mb": 1,
            "stop_timeout_s": 1.0, **options,
        }  # fmt: skip
        return VirtualBoxDriver(
            VmSettings(
                name="Grid Machine", folder=self.agent, image=self.image, memory_mb=64,
                options=wanted,
            )
        )  # fmt: skip

    @property
    def uuid(self) -> str:
        machine = load_machine(self.agent)
        assert machine is not None
        return machine.uuid

    def fault(self, verb: str, kind: str, **more: Any) -> None:
        self.standin.set(faults=[{"verb": verb, "kind": kind, **more}])

    def by_person(self, *words: str) -> str:
        done = self.standin.run(*words, home=self.home, ipc=ipc_id(self.agent))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        self.driver.start(threading.Event())

    def state(self) -> VmState:
        return self.driver.state().state

    def progress(self) -> int:
        return self.standin.progress(self.home, self.uuid)

    def save_after(self, ticks: int) -> int:
        """Run it for a while, save it; the counter at which it stands."""
        self.start()
        until(lambda: self.progress() > ticks)
        self.driver.save()
        return self.progress()

    def get_stuck(self) -> None:
        """As recorded: SIGTERM to a paused VM leaves VBoxSVC with "stopping" for ever."""
        self.start()
        self.driver.pause()
        self.standin.terminate_vm(self.home, self.uuid)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    try:
        yield desk
    finally:
        desk.standin.close()


@pytest.fixture
def desk(bare: Desk) -> Desk:
    bare.driver.import_image()
    return bare


def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.01)


def refusal(verb: Callable[[], object], trouble: Trouble, *words: str) -> DriverError:
    with pytest.raises(DriverError) as caught:
        verb()
    error = caught.value
    assert error.trouble is trouble, str(error)
    text = str(error)
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    return error


# -- locks and lies ---------------------------------------------------------------------------


def test_a_lock_that_is_still_held_after_a_save_is_waited_for(desk: Desk) -> None:
    desk.standin.set(unlock_delay_s=0.6)
    before = desk.save_after(5)
    desk.start()
    assert desk.state() is VmState.RUNNING
    assert desk.progress() >= before
    assert desk.standin.calls("startvm") > 2, "it was never refused"


@pytest.mark.parametrize("kind", ["locked", "server_exec", "not_ready"])
def test_what_passes_is_tried_again(desk: Desk, kind: str) -> None:
    desk.fault("startvm", kind, calls=[1, 2])
    desk.start()
    assert desk.state() is VmState.RUNNING
    assert desk.standin.calls("startvm") == 3


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [("locked", Trouble.LOCKED), ("server_exec", Trouble.STUCK), ("not_ready", Trouble.PERMISSION)],
)
def test_what_does_not_pass_is_told(
    desk: Desk, kind: str, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("officegrid.agent.drivers.virtualbox.starting.BACKOFF_S", (0.01, 0.02))
    desk.fault("startvm", kind)
    refusal(desk.start, trouble)
    assert desk.state() is VmState.OFF


def test_a_start_that_lies_about_failing_has_started(desk: Desk) -> None:
    desk.fault("startvm", "exit1_success")
    desk.start()
    assert desk.state() is VmState.RUNNING


def test_a_start_that_lies_about_success_has_not_started(desk: Desk) -> None:
    desk.fault("startvm", "exit0_error")
    refusal(desk.start, Trouble.FAILED, "could not be started")
    assert desk.state() is VmState.OFF


def test_discardstate_that_fails_with_exit_0_is_found_out(desk: Desk) -> None:
    desk.save_after(3)
    desk.fault("discardstate", "silent")
    refusal(desk.driver.discard, Trouble.STUCK, "discarded", "reported success")
    assert desk.state() is VmState.SAVED
    desk.standin.set(faults=[])
    desk.driver.discard()
    assert desk.state() is VmState.OFF


def test_a_save_that_lies_about_failing_is_saved(desk: Desk) -> None:
    desk.fault("savestate", "exit1_success")
    desk.save_after(3)
    assert desk.state() is VmState.SAVED


def test_a_hanging_poweroff_ends_in_killing_the_vm_by_its_process(desk: Desk) -> None:
    desk.start()
    pid = desk.standin.vm_pid(desk.home, desk.uuid)
    desk.fault("poweroff", "hang")
    desk.driver.stop()
    assert desk.state() is VmState.OFF
    assert not processes.is_vm_process(pid, desk.uuid)


def test_a_call_that_hangs_is_a_timeout_and_state_is_unknown(desk: Desk) -> None:
    driver = desk.make(poll_timeout_s=0.3)
    desk.fault("showvminfo", "hang")
    status = driver.state()
    assert status.state is VmState.UNKNOWN
    assert "did not answer" in status.detail
    refusal(lambda: driver.start(threading.Event()), Trouble.TIMEOUT)


# -- saved states -----------------------------------------------------------------------------


def test_a_state_of_another_processor_is_told_by_its_cause(desk: Desk) -> None:
    before = desk.save_after(40)
    desk.fault("startvm", "cpuid_mismatch", calls=[1])
    refusal(desk.start, Trouble.SAVED_STATE, "processor", "CPUID_MISMATCH", "Discard")
    assert desk.state() is VmState.SAVED
    desk.driver.discard()
    desk.start()
    until(lambda: 0 < desk.progress() < before)


def test_after_an_upgrade_the_sentence_names_both_versions(desk: Desk) -> None:
    desk.save_after(3)
    path = desk.standin.state_file(desk.home, desk.uuid)
    path.write_bytes(path.read_bytes()[:100])
    desk.standin.set(version="7.1.10r169000")
    refusal(
        lambda: desk.make().start(threading.Event()),
        Trouble.SAVED_STATE, "saved by VirtualBox 7.1.8; 7.1.10 is installed now",
    )  # fmt: skip


def test_died_while_restored_keeps_the_state_since_7_0(desk: Desk) -> None:
    before = desk.save_after(10)
    desk.fault("startvm", "aborted_saved", calls=[1])
    refusal(desk.start, Trouble.SAVED_STATE)
    status = desk.driver.state()
    assert status.state is VmState.SAVED
    assert "aborted-saved" in status.detail
    desk.start()
    until(lambda: desk.progress() > before)


def test_died_while_restored_loses_the_state_on_6_1_and_boots_cold(desk: Desk) -> None:
    desk.standin.set(version="6.1.36r152435")
    desk.driver = desk.make()
    before = desk.save_after(30)
    desk.fault("startvm", "aborted_saved", calls=[1])
    refusal(desk.start, Trouble.SAVED_STATE)
    desk.driver.discard()
    assert desk.state() is VmState.OFF
    desk.start()
    until(lambda: 0 < desk.progress() < before)


def test_saving_for_minutes_is_reported_meanwhile(desk: Desk) -> None:
    desk.start()
    desk.standin.set(delays_s={"savestate": 1.5})
    # The process read its modes when it started: a new one must have the delay.
    desk.driver.stop()
    desk.start()
    saver = threading.Thread(target=desk.driver.save)
    saver.start()
    try:
        other = desk.make()
        until(lambda: other.state().state is VmState.SAVING)
        until(lambda: "for 1 s so far" in other.state().detail)
        assert other.state().pids, "the process that holds the memory is not named"
    finally:
        saver.join(20)
    assert desk.state() is VmState.SAVED


def test_a_save_that_takes_too_long_is_a_timeout_and_can_be_ended(desk: Desk) -> None:
    desk.standin.set(delays_s={"savestate": 30})
    driver = desk.make(save_timeout_s=1.0)
    driver.start(threading.Event())
    refusal(driver.save, Trouble.TIMEOUT)
    driver.repair(RepairStep.EMERGENCY_STOP)
    assert driver.state().state is VmState.OFF


# -- disk -------------------------------------------------------------------------------------


def test_no_start_and_no_save_without_room(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "free_disk_mb", lambda folder: 64)
    refusal(desk.start, Trouble.DISK_FULL, "64 MB are free", "65 MB are needed")
    monkeypatch.undo()
    desk.start()
    monkeypatch.setattr(vm, "free_disk_mb", lambda folder: 10)
    refusal(desk.driver.save, Trouble.DISK_FULL)
    assert desk.state() is VmState.RUNNING


def test_a_disk_that_fills_up_during_the_save_leaves_the_guest_running(desk: Desk) -> None:
    desk.start()
    desk.fault("savestate", "disk_full")
    refusal(desk.driver.save, Trouble.DISK_FULL, "VERR_DISK_FULL")
    assert desk.state() is VmState.RUNNING


def test_paused_by_a_full_disk_is_told_and_goes_on_when_there_is_room(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.start()
    desk.standin.fill_disk_under(desk.home, desk.uuid)
    until(lambda: desk.state() is VmState.PAUSED)
    assert "disk is full" in desk.driver.state().detail
    monkeypatch.setattr(vm, "free_disk_mb", lambda folder: 1)
    refusal(desk.driver.resume, Trouble.DISK_FULL)
    monkeypatch.undo()
    desk.driver.resume()
    assert desk.state() is VmState.RUNNING
    assert "disk" not in desk.driver.state().detail


def test_full_at_once_after_the_start(desk: Desk) -> None:
    desk.standin.set(faults=[{"verb": "startvm", "kind": "disk_full"}])
    refusal(desk.start, Trouble.DISK_FULL)
    assert desk.state() is VmState.PAUSED
    assert "disk is full" in desk.driver.state().detail


# -- why it does not start --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "trouble", "words"),
    [
        ("VERR_VMX_MSR_ALL_VMX_DISABLED", Trouble.NO_VIRTUALIZATION, "firmware"),
        ("VERR_SVM_IN_USE", Trouble.CONFLICT, "Another hypervisor"),
        ("VERR_NEM_VM_CREATE_FAILED", Trouble.CONFLICT, "Hyper-V"),
        ("VERR_VM_DRIVER_NOT_INSTALLED", Trouble.MISSING, "kernel driver"),
        ("VERR_NO_MEMORY", Trouble.MEMORY, "memory"),
    ],
)
def test_the_cause_is_read_from_the_log(
    desk: Desk, status: str, trouble: Trouble, words: str
) -> None:
    desk.fault("startvm", "start_failure", status=status, calls=[1])
    refusal(desk.start, trouble, words, status)
    assert desk.state() is VmState.OFF
    desk.start()
    assert desk.state() is VmState.RUNNING


def test_a_cause_of_the_host_does_not_blame_the_saved_state(desk: Desk) -> None:
    before = desk.save_after(5)
    desk.fault("startvm", "start_failure", status="VERR_NO_MEMORY", calls=[1])
    refusal(desk.start, Trouble.MEMORY)
    assert desk.state() is VmState.SAVED
    desk.start()
    until(lambda: desk.progress() > before)


def test_a_release_that_crashes_is_not_used_unless_allowed(desk: Desk) -> None:
    desk.standin.set(version="7.2.0r170228")
    driver = desk.make()
    assert driver.detect().level is HealthLevel.UNUSABLE
    refusal(lambda: driver.start(threading.Event()), Trouble.VERSION, "crashes while it saves")
    allowed = desk.make(allow_versions=["7.2.0"])
    allowed.start(threading.Event())
    assert allowed.state().state is VmState.RUNNING


# -- health -----------------------------------------------------------------------------------


def test_health_of_a_machine_without_virtualbox(bare: Desk) -> None:
    driver = bare.make(vboxmanage=str(bare.root / "none"))
    health = driver.detect()
    assert health.level is HealthLevel.UNUSABLE
    assert "not installed" in health.sentence
    assert driver.state().state is VmState.UNKNOWN
    refusal(driver.import_image, Trouble.MISSING)


def test_health_tells_driver_slow_mode_hardware_and_extension_pack(desk: Desk) -> None:
    assert desk.driver.detect().level is HealthLevel.GOOD
    desk.standin.set(extension_packs=["Oracle VirtualBox Extension Pack"])
    assert "An Extension Pack is installed (Oracle" in desk.driver.detect().sentence
    desk.standin.set(slow_mode="VT-x is not available", extension_packs=[])
    desk.start()
    health = desk.driver.detect()
    assert health.level is HealthLevel.DEGRADED
    assert "slow mode" in health.sentence
    assert "VT-x is not available" in health.sentence
    desk.standin.set(hardware=False)
    assert "no hardware virtualization" in desk.driver.detect().sentence
    desk.standin.set(driver_warning=True)
    health = desk.driver.detect()
    assert (health.level, health.version) == (HealthLevel.UNUSABLE, "7.1.8")
    assert "vboxdrv" in health.sentence


# -- import -----------------------------------------------------------------------------------


def test_an_image_that_is_cut_is_refused_and_leaves_nothing(bare: Desk) -> None:
    bare.image.write_bytes(bare.image.read_bytes()[:700])
    refusal(bare.driver.import_image, Trouble.IMAGE)
    bare.image.write_bytes(b"<html>404</html>")
    refusal(bare.driver.import_image, Trouble.IMAGE, "not an OVA")
    assert not list((bare.agent / "machines").glob("*/*"))


def test_a_disk_that_fills_up_during_the_import(bare: Desk) -> None:
    bare.fault("import", "disk_full", calls=[1])
    refusal(bare.driver.import_image, Trouble.DISK_FULL)
    bare.driver.import_image()
    assert bare.state() is VmState.OFF


def test_what_an_import_that_was_cut_off_left_is_cleared(bare: Desk) -> None:
    left = bare.agent / "machines" / "Grid Machine"
    left.mkdir(parents=True)
    (left / "Grid Machine.vbox").write_text("{", encoding="utf-8")
    bare.driver.import_image()
    assert bare.state() is VmState.OFF


def test_the_vm_is_fitted_to_the_settings(bare: Desk) -> None:
    write_ova(bare.image, "golden", sata=True)
    seed = bare.root / "seed.iso"
    seed.write_bytes(b"CIDATA")
    settings = VmSettings(
        name="Grid Machine", folder=bare.agent, image=bare.image, memory_mb=96, cpus=2,
        cpu_cap_percent=60, seed_iso=seed,
        options={"vboxmanage": str(bare.standin.program), "disk_margin_mb": 1},
    )  # fmt: skip
    driver = VirtualBoxDriver(settings)
    driver.import_image()
    shown = bare.by_person("showvminfo", bare.uuid, "--machinereadable")
    for line in (
        "memory=96", "cpus=2", "cpuexecutioncap=60", 'nic1="nat"', 'vrde="off"', 'usb="off"',
        'vmprocpriority="low"', f'="{seed}"',
    ):  # fmt: skip
        assert line in shown, line
    changed = bare.standin.calls("modifyvm")
    driver.start(threading.Event())
    assert bare.standin.calls("modifyvm") == changed, "nothing differed, and yet it was changed"
    driver.stop()
    seed.unlink()
    driver.start(threading.Event())
    assert driver.state().state is VmState.RUNNING
    assert '="emptydrive"' in bare.by_person("showvminfo", bare.uuid, "--machinereadable")


def test_a_lost_record_is_found_again_by_our_mark(desk: Desk) -> None:
    (desk.agent / "machine.json").unlink()
    again = desk.make()
    assert again.state().state is VmState.OFF
    again.start(threading.Event())
    assert again.state().state is VmState.RUNNING


def test_an_inaccessible_vm_is_broken_and_imported_anew(desk: Desk) -> None:
    desk.standin.settings_file(desk.home, desk.uuid).unlink()
    until(lambda: desk.state() is VmState.BROKEN)
    desk.driver.repair(RepairStep.REIMPORT)
    desk.start()
    assert desk.state() is VmState.RUNNING


# -- yielding the desk ------------------------------------------------------------------------


def test_pause_does_not_wait_for_a_slow_poll(desk: Desk) -> None:
    desk.start()
    desk.standin.set(delays_s={"showvminfo": 3.0})
    poll = threading.Thread(target=desk.make().state)
    slow = threading.Thread(target=desk.driver.state)
    poll.start()
    slow.start()
    try:
        until(lambda: desk.standin.calls("showvminfo") > 0)
        began_s = time.monotonic()
        desk.driver.pause()
        took_s = time.monotonic() - began_s
        before = desk.progress()
    finally:
        poll.join(10)
        slow.join(10)
    assert took_s < 1.5, f"pause took {took_s:.2f} s"
    assert desk.progress() == before


def test_pause_does_not_wait_for_another_process_either(desk: Desk) -> None:
    desk.start()
    other = VmLock(desk.agent)
    with other.hold(1.0):
        began_s = time.monotonic()
        desk.driver.pause()
        assert time.monotonic() - began_s < 1.5
        with pytest.MonkeyPatch.context() as patch:
            module = "officegrid.agent.drivers.virtualbox.driver"
            patch.setattr(f"{module}._LOCK_WAIT_S", 0.1)
            refusal(desk.driver.save, Trouble.LOCKED, "Two agents")
    assert desk.state() is VmState.PAUSED


def test_the_vms_process_has_the_lowest_priority(desk: Desk) -> None:
    desk.start()
    (pid,) = desk.driver.state().pids
    assert psutil.Process(pid).nice() == 19


def test_a_resting_vm_is_not_asked_about_again_and_again(desk: Desk) -> None:
    desk.state()
    desk.standin.set(faults=[])
    for _ in range(20):
        assert desk.state() is VmState.OFF
    assert desk.standin.calls("showvminfo") == 0
    desk.by_person("startvm", desk.uuid, "--type", "headless")
    until(lambda: desk.state() is VmState.RUNNING)


def test_a_start_that_hangs_can_be_cancelled(desk: Desk) -> None:
    desk.standin.set(delays_s={"startvm": 20})
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    timer.start()
    began_s = time.monotonic()
    try:
        refusal(lambda: desk.driver.start(cancel), Trouble.CANCELLED)
    finally:
        timer.join()
    assert time.monotonic() - began_s < 8
    assert desk.state() is VmState.OFF


# -- the ladder -------------------------------------------------------------------------------


def test_stuck_is_noticed_and_every_verb_says_so(desk: Desk) -> None:
    desk.get_stuck()
    until(lambda: desk.state() is VmState.BROKEN)
    assert "no process" in desk.driver.state().detail
    refusal(desk.driver.stop, Trouble.STUCK, "VBoxSVC")
    refusal(desk.driver.pause, Trouble.STUCK)


def test_the_ladder_gets_a_stuck_vm_running_again(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.get_stuck()
    until(lambda: desk.state() is VmState.BROKEN)
    began_s = time.monotonic()
    tried: list[RepairStep] = []

    def helps(step: RepairStep) -> bool:
        try:
            desk.driver.repair(step)
            desk.start()
        except DriverError as error:
            if error.trouble is not Trouble.STUCK:
                raise
            return False
        return True

    for step in LADDER:
        tried.append(step)
        if helps(step):
            break
    assert tried == [RepairStep.RETRY, RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE]
    assert desk.state() is VmState.RUNNING
    assert time.monotonic() - began_s < 60
    log = capsys.readouterr().err  # where the agent's log goes
    for step in tried:
        assert f"virtualbox.repair step={step} reason=" in log
    assert "virtualbox.repair_did_not_help" in log


def test_vboxsvc_is_not_ended_under_another_vm(desk: Desk) -> None:
    desk.get_stuck()
    desk.by_person("createvm", "--name", "Other", "--register", "--basefolder", str(desk.root))
    desk.by_person("startvm", "Other", "--type", "headless")
    error = refusal(
        lambda: desk.driver.repair(RepairStep.RESTART_SERVICE), Trouble.CONFLICT, "another VM"
    )
    assert "Shut that VM down" in error.fix
    assert '"Other"' in desk.by_person("list", "runningvms")


def test_only_our_own_vboxsvc_is_ended(desk: Desk) -> None:
    desk.standin.run("createvm", "--name", "T", "--register", "--basefolder", str(desk.root / "t"))
    desk.standin.run("startvm", "T", "--type", "headless")
    theirs = desk.standin.service_pid()
    desk.get_stuck()
    desk.driver.repair(RepairStep.RESTART_SERVICE)
    assert psutil.pid_exists(theirs)
    assert '"T"' in desk.standin.run("list", "runningvms").stdout
    assert desk.state() is VmState.OFF
