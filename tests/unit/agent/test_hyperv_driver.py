"""The Hyper-V driver over the stand-in: bad weather, and what the contract does not ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent import registry
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv import driver as driver_module
from officegrid.agent.drivers.hyperv import make
from officegrid.agent.drivers.hyperv.driver import HyperVDriver
from officegrid.core.errors import UsageError
from officegrid.core.vm import DriverError, HealthLevel, RepairStep, Trouble, VmState, VmStatus
from officegrid.testing.hyperv.cmdlets import VHDX
from officegrid.testing.hyperv.install import StandIn
from officegrid.testing.hyperv.store import alive

Maker = Callable[..., HyperVDriver]


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    standin = StandIn(tmp_path / "hyperv")
    yield standin
    standin.close()


@pytest.fixture
def settings(tmp_path: Path, standin: StandIn) -> VmSettings:
    image, seed = tmp_path / "grid.vhdx", tmp_path / "seed.iso"
    image.write_bytes(VHDX + b" the image")
    seed.write_bytes(b"CD001")
    options = {"powershell": str(standin.program), "disk_margin_mb": 16}
    return VmSettings(
        "Grid Ü", tmp_path / "ours", image, memory_mb=63, cpus=3, cpu_cap_percent=50,
        seed_iso=seed, options=options,
    )  # fmt: skip


@pytest.fixture
def new(settings: VmSettings) -> Iterator[Maker]:
    made: list[HyperVDriver] = []

    def maker(options: dict[str, Any] | None = None, **changes: Any) -> HyperVDriver:
        changed = replace(settings, options={**settings.options, **(options or {})}, **changes)
        made.append(HyperVDriver(changed))
        return made[-1]

    yield maker
    for driver in made:
        driver.close()


@pytest.fixture
def vm(new: Maker) -> HyperVDriver:
    driver = new()
    driver.import_image()
    return driver


def now() -> threading.Event:
    return threading.Event()


def refused(verb: Callable[..., object], *args: object) -> DriverError:
    with pytest.raises(DriverError) as caught:
        verb(*args)
    return caught.value


def until(condition: Callable[[], object], what: str, within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def ours(standin: StandIn) -> dict[str, Any]:
    return standin.named("Grid Ü")


# -- detect -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modes", "sentence", "fix"),
    [
        ({"module": False}, "not enabled", "Turn on"),
        ({"service": ""}, "vmms is not installed", "Turn on"),
        ({"service": "Stopped"}, "vmms is stopped", "Start the service"),
        ({"hypervisor": False}, "hypervisor is not running", "firmware"),
        ({"may": False}, "may not manage", "Hyper-V Administrators"),
        ({"switches": ["LAN"]}, "no virtual switch named 'Default Switch'", "Create it"),
        ({"language_mode": "ConstrainedLanguage"}, "policy", "full language"),
    ],
)
def test_detect_says_what_is_missing(
    new: Maker, standin: StandIn, modes: dict[str, Any], sentence: str, fix: str
) -> None:
    standin.set(**modes)
    health = new().detect()
    assert health.level is HealthLevel.UNUSABLE
    assert sentence in health.sentence
    assert fix in health.fix


def test_detect_names_the_versions(new: Maker, standin: StandIn) -> None:
    standin.set(shell="7")
    health = new({"switch": ""}).detect()
    assert (health.level, health.version) == (HealthLevel.GOOD, "10.0.22631")
    assert "PowerShell 7.4.6" in health.sentence


def test_without_powershell_it_says_that_hyperv_belongs_to_windows(tmp_path: Path) -> None:
    missing = {"powershell": str(tmp_path / "none.exe")}
    driver = registry.load("hyperv", VmSettings("Grid", tmp_path, options=missing))
    health = driver.detect()
    assert health.level is HealthLevel.UNUSABLE
    assert "part of Windows" in health.sentence
    assert driver.state().state is VmState.UNKNOWN
    assert refused(driver.import_image).trouble is Trouble.MISSING


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "lists nothing"])
def test_without_the_right_the_vm_is_unknown_never_absent(
    vm: HyperVDriver, new: Maker, standin: StandIn, silent: bool
) -> None:
    standin.set(may=False, silent_without_right=silent, language="de")
    again = new()
    assert again.state().state is VmState.UNKNOWN
    error = refused(again.import_image)
    assert error.trouble is Trouble.PERMISSION
    assert "Hyper-V Administrators" in error.fix


# -- making -------------------------------------------------------------------------------------


def test_the_vm_is_made_as_a_guest_of_the_desk(
    vm: HyperVDriver, standin: StandIn, settings: VmSettings
) -> None:
    made = ours(standin)
    chosen = made["settings"]
    assert chosen["MemoryStartupBytes"] == 64 * 1024 * 1024, "in steps of 2 MB"
    assert (chosen["StaticMemory"], chosen["ProcessorCount"]) == (True, 3)
    assert (chosen["Maximum"], chosen["RelativeWeight"]) == (50, 10)
    assert (chosen["AutomaticStartAction"], chosen["AutomaticStopAction"]) == ("Nothing", "TurnOff")
    assert (chosen["CheckpointType"], chosen["AutomaticCheckpointsEnabled"]) == ("Disabled", False)
    assert (made["generation"], made["switch"]) == (1, "Default Switch")
    assert made["dvds"] == [str(settings.seed_iso)]
    assert str(settings.folder) in made["notes"]
    disk = Path(made["disks"][0])
    assert disk.is_relative_to(settings.folder)
    assert str(settings.image) in disk.read_text(), "a child of the image"
    assert settings.image is not None
    assert settings.image.read_bytes() == VHDX + b" the image"


def test_generation_2_with_secure_boot_and_no_network(new: Maker, standin: StandIn) -> None:
    new(
        {"generation": 2, "secure_boot": True, "switch": "", "host_shutdown": "save"}
    ).import_image()
    made = ours(standin)
    assert (made["generation"], made["switch"]) == (2, None)
    assert made["settings"]["EnableSecureBoot"] == "On"
    assert made["settings"]["SecureBootTemplate"] == "MicrosoftUEFICertificateAuthority"
    assert made["settings"]["AutomaticStopAction"] == "Save"


def test_images_that_are_none(new: Maker, tmp_path: Path, standin: StandIn) -> None:
    other = tmp_path / "grid.ova"
    other.write_bytes(b"something else")
    assert "not a VHDX" in refused(new(image=other).import_image).what
    damaged = tmp_path / "damaged.vhdx"
    damaged.write_bytes(VHDX + b"damaged")
    assert refused(new(image=damaged).import_image).trouble is Trouble.IMAGE
    assert refused(new(image=None).import_image).trouble is Trouble.IMAGE
    assert ours(standin) == {}
    assert not (tmp_path / "ours" / "hyperv").exists()


def test_a_switch_that_is_not_there(new: Maker, standin: StandIn) -> None:
    driver = new({"switch": "Nowhere"})
    error = refused(driver.import_image)
    assert error.trouble is Trouble.FAILED
    assert "no switch Nowhere" in error.why
    assert driver.state().state is VmState.ABSENT


def test_an_import_that_was_cut_off_is_recognised_and_cleared(new: Maker, standin: StandIn) -> None:
    standin.set(faults=[{"cmdlet": "New-VM", "calls": [1], "kind": "lost"}])
    first = new({"keep_session": False})
    refused(first.import_image)
    # New-VM was done, its notes were never written; the driver itself cleared up.
    assert (standin.calls("New-VM"), ours(standin)) == (1, {})
    standin.set(faults=[
        {"cmdlet": "New-VM", "calls": [1], "kind": "lost"},
        {"cmdlet": "Get-VM", "calls": [2], "kind": "die"},
    ])  # fmt: skip
    refused(first.import_image)
    assert ours(standin)["notes"] == "", "the agent died before it could clear up"
    standin.set(faults=[])
    again = new()
    assert again.state().state is VmState.OFF, "it lies in our folder: it is ours"
    again.repair(RepairStep.REIMPORT)
    again.start(now())
    assert again.state().state is VmState.RUNNING


def test_a_renamed_vm_is_still_ours(vm: HyperVDriver, new: Maker, standin: StandIn) -> None:
    store, made = standin.store, ours(standin)
    store.change(made["id"], name="Renamed by somebody")
    again = new()
    assert again.state().state is VmState.OFF
    again.delete()
    assert store.vms() == {}


def test_changed_settings_reach_the_vm_at_its_next_cold_boot(
    vm: HyperVDriver, new: Maker, standin: StandIn, settings: VmSettings
) -> None:
    standin.set(faults=[])
    vm.start(now())
    assert standin.calls("Set-VM") == 0, "nothing has changed"
    vm.save()
    bigger = new(memory_mb=128, seed_iso=None)
    bigger.start(now())
    assert ours(standin)["settings"]["MemoryStartupBytes"] == 64 * 2**20, "it was restored"
    bigger.stop()
    bigger.start(now())
    made = ours(standin)
    assert (made["settings"]["MemoryStartupBytes"], made["dvds"]) == (128 * 2**20, [])
    bigger.stop()
    standin.set(faults=[])
    bigger.start(now())
    assert standin.calls("Set-VM") == 0, "it has them now"


# -- starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [False, True], ids=["cold", "saved"])
def test_too_little_memory_is_not_the_saved_states_fault(
    vm: HyperVDriver, standin: StandIn, saved: bool
) -> None:
    if saved:
        vm.start(now())
        vm.save()
    standin.set(
        language="de",
        faults=[{"cmdlet": "Start-VM", "kind": "fail_inside", "status": 0x8007000E}],
    )
    error = refused(vm.start, now())
    assert error.trouble is Trouble.MEMORY
    assert "memory_mb" in error.fix
    assert "konnte nicht gestartet werden" in error.why, "Hyper-V's own words"
    assert vm.state().state is (VmState.SAVED if saved else VmState.OFF)


@pytest.mark.parametrize(
    ("fault", "trouble"),
    [
        ({"id": "OutOfMemory"}, Trouble.MEMORY),
        ({"hresult": 0x800705AA}, Trouble.MEMORY),
        ({"message": "Kein Platz. (0x80070070)"}, Trouble.DISK_FULL),
        ({"id": "AccessDenied", "category": "PermissionDenied"}, Trouble.PERMISSION),
        ({"message": "Zugriff verweigert (0x80070005)"}, Trouble.PERMISSION),
        ({"message": "(0xC0351000)"}, Trouble.NO_VIRTUALIZATION),
        ({"message": "(0xC03A000E)"}, Trouble.IMAGE),
        ({"message": "something else (0x80004005)"}, Trouble.FAILED),
    ],
)
def test_codes_decide_not_words(
    vm: HyperVDriver, standin: StandIn, fault: dict[str, Any], trouble: Trouble
) -> None:
    standin.set(faults=[{"cmdlet": "Start-VM", **fault}])
    error = refused(vm.start, now())
    assert error.trouble is trouble
    assert str(fault.get("message", ""))[:8] in error.why
    assert vm.state().state is VmState.OFF


def test_a_missing_seed_disk_is_told(vm: HyperVDriver, settings: VmSettings) -> None:
    assert settings.seed_iso is not None
    settings.seed_iso.unlink()
    error = refused(vm.start, now())
    assert f"no file {settings.seed_iso}" in error.why
    settings.seed_iso.write_bytes(b"CD001 again")
    vm.start(now())
    assert vm.state().state is VmState.RUNNING


def test_a_busy_vm_is_tried_again(vm: HyperVDriver, standin: StandIn) -> None:
    fault = {"cmdlet": "Start-VM", "calls": [1, 2], "hresult": 0x80070020}
    standin.set(faults=[fault])
    vm.start(now())
    assert standin.calls("Start-VM") == 3
    assert vm.state().state is VmState.RUNNING


def test_a_start_over_which_powershell_dies_has_started_nevertheless(
    vm: HyperVDriver, standin: StandIn
) -> None:
    standin.set(faults=[{"cmdlet": "Start-VM", "calls": [1], "kind": "lost"}])
    vm.start(now())
    assert vm.state().state is VmState.RUNNING


def test_a_slow_cold_boot_is_given_up_and_a_slow_restore_is_not(
    vm: HyperVDriver, standin: StandIn
) -> None:
    standin.set(delays_s={"Start-VM": 6.0})
    cancel = threading.Event()
    timer = threading.Timer(0.5, cancel.set)
    timer.start()
    error = refused(vm.start, cancel)
    timer.join()
    assert error.trouble is Trouble.CANCELLED
    assert vm.state().state is VmState.OFF
    standin.set(delays_s={})
    vm.start(now())
    until(lambda: standin.progress(ours(standin)["id"]) > 10, "the guest counts")
    vm.save()
    before = standin.progress(ours(standin)["id"])
    standin.set(delays_s={"Start-VM": 1.5})
    cancel = threading.Event()
    timer = threading.Timer(0.5, cancel.set)
    timer.start()
    vm.start(cancel)
    timer.join()
    assert vm.state().state is VmState.RUNNING
    assert standin.progress(ours(standin)["id"]) >= before


def test_without_room_for_the_memory_nothing_is_started(vm: HyperVDriver, new: Maker) -> None:
    error = refused(new({"disk_margin_mb": 10**9}).start, now())
    assert error.trouble is Trouble.DISK_FULL
    assert "MB are needed" in error.why
    assert vm.state().state is VmState.OFF


# -- pausing ------------------------------------------------------------------------------------


def test_pause_uses_the_powershell_that_is_open(vm: HyperVDriver, standin: StandIn) -> None:
    vm.start(now())
    standin.set(start_s=5.0, faults=[])
    began = time.monotonic()
    vm.pause()
    assert time.monotonic() - began < 3.0, "no PowerShell was started"
    assert (standin.calls("session"), standin.calls("one-shot")) == (0, 0)
    assert vm.state().state is VmState.PAUSED


def test_an_agent_that_finds_its_vm_running_opens_powershell_ahead(
    vm: HyperVDriver, new: Maker, standin: StandIn
) -> None:
    vm.start(now())
    standin.set(faults=[])
    again = new()
    assert again.state().state is VmState.RUNNING
    until(lambda: standin.calls("session") == 2, "one for looking, one for verbs")
    again.pause()
    assert (standin.calls("session"), standin.calls("one-shot")) == (2, 0)


def test_a_powershell_that_hangs_does_not_keep_the_vm_running(
    vm: HyperVDriver, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_QUICK_PAUSE_S", 0.5)
    vm.start(now())
    standin.set(faults=[{"cmdlet": "Suspend-VM", "calls": [1], "kind": "hang"}])
    began = time.monotonic()
    vm.pause()
    assert time.monotonic() - began < 8
    assert vm.state().state is VmState.PAUSED


def test_pause_gives_up_in_its_own_time(vm: HyperVDriver, new: Maker, standin: StandIn) -> None:
    vm.start(now())
    standin.set(faults=[{"cmdlet": "Suspend-VM", "kind": "hang"}])
    impatient = new({"pause_timeout_s": 1.0})
    began = time.monotonic()
    assert refused(impatient.pause).trouble is Trouble.TIMEOUT
    assert time.monotonic() - began < 8


# -- looking ------------------------------------------------------------------------------------


def test_while_nothing_changes_powershell_is_not_asked(
    vm: HyperVDriver, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only this Hyper-V's workers: other tests run theirs on this machine at the same time.
    every = driver_module.worker_pids
    known = {made["id"]: made for made in standin.store.vms().values()}

    def of_this_one() -> frozenset[int]:
        pids = {int(standin.store.get(vm_id).get("pid", 0)) for vm_id in known}
        return frozenset(every() & pids)

    monkeypatch.setattr(driver_module, "worker_pids", of_this_one)
    for _ in range(2):  # only the first look tells where its files lie
        assert vm.state().state is VmState.OFF
    standin.set(faults=[])
    for _ in range(20):
        assert vm.state().state is VmState.OFF
    assert standin.calls("Get-VM") == 0
    vm_id = ours(standin)["id"]
    started = standin.run(f"Start-VM -VM (Get-VM -Id '{vm_id}')")
    assert started.returncode == 0, started.stderr
    assert vm.state().state is VmState.RUNNING, "somebody else's start is seen at once"


def test_while_the_vm_is_down_no_powershell_is_kept(
    vm: HyperVDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.start(now())
    vm.save()
    monkeypatch.setattr(driver_module, "_REST_S", 0.0)
    assert vm.state().state is VmState.SAVED
    assert [shell._session for shell in vm._vm._shells.values()] == [None, None]


def test_the_worker_process_is_found_by_its_command_line_too(
    vm: HyperVDriver, standin: StandIn
) -> None:
    vm.start(now())
    by_hyperv = vm.state().pids
    standin.set(sees_process_ids=False)
    vm.pause()
    assert vm.state().pids == by_hyperv == (ours(standin)["pid"],)


def test_state_answers_during_a_long_save(vm: HyperVDriver, standin: StandIn) -> None:
    vm.start(now())
    standin.set(delays_s={"Save-VM": 2.0})
    seen: list[VmStatus] = []
    saver = threading.Thread(target=vm.save)
    saver.start()
    try:
        until(lambda: (seen.append(vm.state()), seen[-1].state is VmState.SAVING)[1], "saving")
        assert seen[-1].pids == (ours(standin)["pid"],)
    finally:
        saver.join()
    assert (vm.state().state, vm.state().pids) == (VmState.SAVED, ())


@pytest.mark.parametrize("state", ["Resuming", "Starting"])
def test_states_on_the_way_hold_memory(
    vm: HyperVDriver, new: Maker, standin: StandIn, state: str
) -> None:
    vm.start(now())
    standin.set_state(ours(standin)["id"], state)
    status = new().state()
    assert (status.state, status.pids) == (VmState.STARTING, (ours(standin)["pid"],))


# -- bad weather --------------------------------------------------------------------------------


def test_a_vm_paused_for_a_full_disk_is_broken_and_repaired(
    vm: HyperVDriver, standin: StandIn
) -> None:
    vm.start(now())
    standin.fill_disk_under(ours(standin)["id"])
    status = vm.state()
    assert status.state is VmState.BROKEN
    assert "disk is full" in status.detail
    vm.repair(RepairStep.EMERGENCY_STOP)
    assert vm.state().state is VmState.OFF


def test_a_vm_whose_files_are_gone_is_broken_and_made_anew(
    vm: HyperVDriver, standin: StandIn
) -> None:
    standin.store.config(ours(standin)).unlink()
    status = vm.state()
    assert status.state is VmState.BROKEN
    assert "cannot be read" in status.detail
    vm.repair(RepairStep.REIMPORT)
    vm.start(now())
    assert vm.state().state is VmState.RUNNING


def test_a_vm_that_no_verb_stops_has_its_process_ended(
    vm: HyperVDriver, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("officegrid.agent.drivers.hyperv.stopping._PROCESS_END_S", 1.0)
    vm.start(now())
    made = ours(standin)
    standin.set_state(made["id"], "Stopping")
    assert vm.state().state is VmState.STOPPING
    assert refused(vm.stop).trouble is Trouble.STUCK
    assert alive(made["pid"])
    vm.repair(RepairStep.EMERGENCY_STOP)
    assert not alive(made["pid"])
    assert vm.state().state is VmState.OFF


@pytest.mark.parametrize("cmdlet", ["Save-VM", "Stop-VM", "Suspend-VM", "Resume-VM"])
def test_a_cmdlet_that_reports_success_and_does_nothing(
    vm: HyperVDriver,
    new: Maker,
    standin: StandIn,
    cmdlet: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("officegrid.agent.drivers.hyperv.stopping._PROCESS_END_S", 1.0)
    monkeypatch.setattr(driver_module, "_RETRY_S", 1.0)
    vm.start(now())
    if cmdlet == "Resume-VM":
        vm.pause()
    standin.set(faults=[{"cmdlet": cmdlet, "kind": "silent"}])
    again = new({"pause_timeout_s": 1.5, "save_timeout_s": 2.0})
    verbs = {"Save-VM": again.save, "Stop-VM": again.stop, "Suspend-VM": again.pause}
    error = refused(verbs.get(cmdlet, again.resume))
    assert error.trouble is Trouble.STUCK
    assert error.why


def test_a_state_that_nobody_knows_is_unknown(vm: HyperVDriver, standin: StandIn) -> None:
    vm.start(now())
    standin.set_state(ours(standin)["id"], "Dreaming")
    status = vm._vm.look()
    assert status.state is VmState.UNKNOWN
    assert "Dreaming" in status.sentence


@pytest.mark.parametrize(
    "options",
    [
        {"swich": "x"}, {"generation": 3}, {"generation": 1.5}, {"switch": 5},
        {"secure_boot": "yes"}, {"host_shutdown": "hibernate"}, {"pause_timeout_s": -1},
    ],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        make(VmSettings("Grid", tmp_path, options=options))
