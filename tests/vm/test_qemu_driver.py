"""What only QEMU has: its process, its files, its priority, its saved state; with real QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from acceptance.test_full_disk import small_disk
from officegrid.agent.drivers.qemu import boot, disk, driver, files, saved, status
from officegrid.agent.drivers.qemu import process as processes
from officegrid.agent.drivers.qemu.driver import QemuDriver
from officegrid.agent.drivers.qemu.priority import CpuCap
from officegrid.core.errors import UsageError
from officegrid.core.vm import DriverError, RepairStep, Trouble, VmState
from officegrid.testing.driver_harness import refusal, wait_until
from vm.conftest import MakeTicker
from vm.ticker import boot_sector, last_tick

NEVER = threading.Event()


def ticking(made: QemuDriver, ticks: int = 3) -> int:
    """Import if need be, start, and let it run for a while."""
    made.import_image()
    made.start(NEVER)
    wait_until(lambda: last_tick(made.files.console) >= ticks, 20, "the guest ticks")
    return last_tick(made.files.console)


def process_of(made: QemuDriver) -> psutil.Process:
    return psutil.Process(made.state().pids[0])


# --- options and images


@pytest.mark.parametrize(
    ("options", "named"),
    [({"colour": "red"}, "colour"), ({"accelerator": "warp"}, "accelerator"),
     ({"boot_deadline_s": 0}, "boot_deadline_s"), ({"machine": 3}, "machine"),
     ({"initrd": "x"}, "initrd"), ({"network": "bridge"}, "network"),
     ({"save_timeout_s": 0}, "save_timeout_s"), ({"disk_margin_mb": -1}, "disk_margin_mb"),
     ({"sandbox": "yes"}, "sandbox"), ({"extra": "-S"}, "extra")],
)  # fmt: skip
def test_wrong_options_are_named(
    ticker: MakeTicker, options: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        ticker(**options)


def corrupt_qcow2(path: Path) -> None:
    """An L1 table that points nowhere (qcow2 header: its offset is at byte 40)."""
    with path.open("r+b") as file:
        file.seek(40)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write((2**55 - 2**20).to_bytes(8, "big"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(os.urandom(200_000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [corrupt_qcow2, truncate, overwrite, empty, Path.unlink])
def test_a_damaged_image_is_refused(ticker: MakeTicker, tmp_path: Path, damage: object) -> None:
    image = tmp_path / "damaged.qcow2"
    shutil.copy(tmp_path / "image.qcow2", image)
    damage(image)  # type: ignore[operator]
    made = ticker(image=image)
    refusal(made.import_image, Trouble.IMAGE)
    assert made.state().state is VmState.ABSENT
    assert list(made.files.folder.iterdir()) == []


def test_an_image_that_refers_to_other_files_is_refused(ticker: MakeTicker, tmp_path: Path) -> None:
    # Else whoever writes the image chooses which file of this PC the guest can read.
    part = tmp_path / "part.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"]
    subprocess.run([*words, str(part)], check=True)
    assert "refers to another file" in refusal(
        ticker(image=part).import_image, Trouble.IMAGE
    ).why  # fmt: skip


def test_a_raw_image_is_taken_by_its_name_only(ticker: MakeTicker, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(boot_sector().ljust(2**20, b"\0"))
    ticking(ticker(image=raw))


def test_an_image_that_changed_under_the_vm_is_not_used(ticker: MakeTicker, tmp_path: Path) -> None:
    image = tmp_path / "changing.qcow2"
    shutil.copy(tmp_path / "image.qcow2", image)
    made = ticker(image=image)
    ticking(made)
    made.stop()
    os.utime(image, (1, 1))  # touched or copied: the same bytes, no harm
    made.start(NEVER)
    made.stop()
    with image.open("ab") as file:
        file.write(b"\0")
    refusal(lambda: made.start(NEVER), Trouble.IMAGE)
    image.unlink()
    refusal(lambda: made.start(NEVER), Trouble.IMAGE)
    assert made.state().state is VmState.OFF


# --- the process


def test_it_has_the_lowest_priority_but_stops_with_ordinary_one(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    process = process_of(made)
    if os.geteuid() != 0:
        pytest.skip("only root may raise a priority again")

    def classes() -> set[tuple[int, int]]:
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
        return {
            (os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread))
            for thread in threads
        }  # fmt: skip

    modest = {(os.SCHED_IDLE, 19)}
    assert classes() == modest
    assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    made.pause()
    assert classes() == {(os.SCHED_OTHER, 0)}
    assert process.ionice().ioclass == psutil.IOPRIO_CLASS_BE, "a save would wait for the disk"
    made.resume()
    assert classes() == modest
    assert process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE


def test_it_stops_at_once_beside_busy_programs(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        took_s = []
        for _ in range(5):
            began = time.monotonic()
            made.pause()
            took_s.append(time.monotonic() - began)
            made.resume()
        assert min(took_s) < 1.0, took_s
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_the_cpu_cap_holds(ticker: MakeTicker, tmp_path: Path) -> None:
    # A boot sector that only jumps to itself takes a whole processor.
    image = tmp_path / "busy.raw"
    image.write_bytes(b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa" + bytes(2**20 - 512))
    made = ticker(image=image, cpu_cap_percent=20)
    if reason := CpuCap(made.settings).obstacle():
        assert not made.capabilities().cpu_cap
        assert reason in made.detect().sentence
        pytest.skip(reason)
    made.import_image()
    made.start(NEVER)
    process = process_of(made)
    before, began = process.cpu_times(), time.monotonic()
    threading.Event().wait(3.0)
    after, took_s = process.cpu_times(), time.monotonic() - began
    used = (after.user + after.system - before.user - before.system) / took_s
    assert 0.05 < used < 0.3, used
    groups = list(Path("/sys/fs/cgroup").rglob(f"{made._cap._group.name}"))
    assert groups
    made.stop()
    assert not [group for group in groups if group.exists()]


def test_it_survives_its_agent_and_the_next_agent_finds_it(
    ticker: MakeTicker, tmp_path: Path
) -> None:
    made = ticker()
    made.import_image()
    agent = f"""
        import os, signal, threading
        from pathlib import Path
        from officegrid.agent.drivers.base import VmSettings
        from officegrid.agent.drivers.qemu import make
        options = {{"accelerator": "tcg", "code_cache_mb": 32}}
        folder = Path({str(made.settings.folder)!r})
        made = make(VmSettings("GridMachine", folder, None, 64, 1, options=options))
        made.start(threading.Event())
        os.killpg(0, signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(agent)], check=False, start_new_session=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert made.state().state is VmState.RUNNING
    wait_until(lambda: last_tick(made.files.console) >= 3, 20, "the guest ticks")
    made.save()
    assert made.state().state is VmState.SAVED


def test_an_agent_killed_in_the_middle_of_a_restore_loses_nothing(
    ticker: MakeTicker,
) -> None:
    made = ticker()
    before = ticking(made)
    made.save()
    agent = f"""
        import os, signal, threading
        from pathlib import Path
        from officegrid.agent.drivers.base import VmSettings
        from officegrid.agent.drivers.qemu import make, saved
        saved.read_memory = lambda *_: os.killpg(0, signal.SIGKILL)
        options = {{"accelerator": "tcg", "code_cache_mb": 32}}
        folder = Path({str(made.settings.folder)!r})
        made = make(VmSettings("GridMachine", folder, None, 64, 1, options=options))
        made.start(threading.Event())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(agent)], check=False, start_new_session=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert made.state().state is VmState.STARTING
    made.start(NEVER)
    assert made.state().state is VmState.RUNNING
    wait_until(lambda: last_tick(made.files.console) > before, 20, "the guest goes on")


def test_a_stranger_with_our_pid_is_left_alone(ticker: MakeTicker) -> None:
    made = ticker()
    made.import_image()
    words = [sys.executable, "-c", "import time; time.sleep(60)", "-pidfile", str(made.files.pid)]
    stranger = subprocess.Popen(words)
    try:
        made.files.pid.write_text(f"{stranger.pid}\n")
        assert made.state().state is VmState.OFF
        made.stop()
        made.repair(RepairStep.EMERGENCY_STOP)
        made.delete()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_without_its_pid_file_it_is_still_found(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    pid = made.state().pids[0]
    made.files.pid.unlink()
    made.start(NEVER)
    assert made.state().pids in ((pid,), ())
    made.stop()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_qemu_that_does_not_answer_is_unknown_and_can_be_ended(
    ticker: MakeTicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ORDER_LIMIT_S", 0.3)
    monkeypatch.setattr(driver, "QUIT_LIMIT_S", 0.3)
    monkeypatch.setattr(status, "LOOK_LIMIT_S", 0.3)
    made = ticker()
    ticking(made)
    process = process_of(made)
    process.suspend()
    found = made.state()
    assert found.state is VmState.UNKNOWN
    assert found.pids == (process.pid,), "its memory still counts as ours"
    for verb in (made.pause, made.resume, made.save):
        assert "does not answer" in refusal(verb, Trouble.TIMEOUT).what
    began = time.monotonic()
    made.repair(RepairStep.EMERGENCY_STOP)
    assert time.monotonic() - began < 3
    assert made.state().state is VmState.OFF
    ticking(made)
    process_of(made).suspend()
    made.stop()
    assert made.state().state is VmState.OFF


def test_when_qemu_ends_by_itself_its_words_are_kept(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    process_of(made).send_signal(signal.SIGTERM)
    wait_until(lambda: made.state().state is VmState.OFF, 10, "it is off")
    assert "terminating on signal 15" in made.state().detail


def test_qemu_refusing_its_arguments_is_told_in_its_words(ticker: MakeTicker) -> None:
    made = ticker(extra=["-device", "flux-capacitor"])
    made.import_image()
    assert "flux-capacitor" in refusal(lambda: made.start(NEVER), Trouble.FAILED).why
    assert made.state().state is VmState.OFF


def test_without_qemu_it_says_what_to_install(ticker: MakeTicker) -> None:
    made = ticker(binary="qemu-system-none", image_tool="qemu-img-none")
    assert "apt-get install" in made.detect().fix
    refusal(made.import_image, Trouble.MISSING)


def test_a_second_vm_on_the_same_disk_is_kept_out(ticker: MakeTicker, tmp_path: Path) -> None:
    made = ticker()
    ticking(made)
    thief = ticker(tmp_path / "thief")
    thief.import_image()
    thief.files.overlay.unlink()
    os.link(made.files.overlay, thief.files.overlay)
    refusal(lambda: thief.start(NEVER), Trouble.LOCKED)


@pytest.mark.parametrize("verb", ["stop", "pause", "emergency_stop", "delete"])
def test_a_vm_renamed_in_the_settings_does_not_run_on(ticker: MakeTicker, verb: str) -> None:
    old = ticker()
    ticking(old)
    process = process_of(old)
    renamed = ticker(name="Renamed")
    assert renamed.state().state is VmState.RUNNING
    if verb == "pause":
        renamed.pause()
        assert renamed.state().state is VmState.PAUSED
        refusal(renamed.save, Trouble.NAME_TAKEN)
        assert renamed.state().state is VmState.PAUSED
        return
    if verb == "emergency_stop":
        renamed.repair(RepairStep.EMERGENCY_STOP)
    else:
        getattr(renamed, verb)()
    wait_until(lambda: not processes.is_alive(process), 10, "QEMU is gone")
    refusal(lambda: renamed.start(NEVER), Trouble.NAME_TAKEN)
    refusal(renamed.import_image, Trouble.NAME_TAKEN)
    assert old.state().state is VmState.OFF, "the old name works again"


def test_a_vm_renamed_in_the_settings_keeps_its_saved_state(ticker: MakeTicker) -> None:
    old = ticker()
    ticking(old)
    old.save()
    renamed = ticker(name="Renamed")
    renamed.stop()
    renamed.discard()
    renamed.delete()
    assert old.state().state is VmState.SAVED


def test_long_paths_are_no_trouble(ticker: MakeTicker, tmp_path: Path) -> None:
    made = ticker(tmp_path / ("deep-" * 20) / ("folder, with a comma" * 3))
    before = ticking(made)
    made.save()
    made.start(NEVER)
    wait_until(lambda: last_tick(made.files.console) > before, 20, "the guest goes on")


# --- the saved state


def edit_stamp(made: QemuDriver, **changes: object) -> None:
    stamp = json.loads(made.files.stamp.read_text())
    made.files.stamp.write_text(json.dumps({**stamp, **changes}))


def cut_memory(made: QemuDriver) -> None:
    os.truncate(made.files.memory, made.files.memory.stat().st_size - 1)


def other_version(made: QemuDriver) -> None:
    edit_stamp(made, qemu_version="QEMU emulator version 6.2.0")


def half_a_stamp(made: QemuDriver) -> None:
    os.truncate(made.files.stamp, 40)


def newer_stamp(made: QemuDriver) -> None:
    edit_stamp(made, format=2)


def no_memory(made: QemuDriver) -> None:
    made.files.memory.unlink()


def disk_written(made: QemuDriver) -> None:
    os.utime(made.files.overlay)


@pytest.mark.parametrize(
    "damage", [cut_memory, other_version, half_a_stamp, newer_stamp, no_memory, disk_written]
)
def test_a_saved_state_that_does_not_fit_is_refused(ticker: MakeTicker, damage: object) -> None:
    made = ticker()
    ticking(made)
    made.save()
    damage(made)  # type: ignore[operator]
    for _ in range(2):
        error = refusal(lambda: made.start(NEVER), Trouble.SAVED_STATE)
        assert error.why
        assert made.state().state is VmState.SAVED
    made.discard()
    assert not made.files.memory.exists()
    made.start(NEVER)
    wait_until(lambda: last_tick(made.files.console) > 0, 20, "it boots")


def test_other_settings_do_not_fit_either(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    made.save()
    refusal(lambda: ticker(memory_mb=96).start(NEVER), Trouble.SAVED_STATE)
    refusal(lambda: ticker(machine="pc").start(NEVER), Trouble.SAVED_STATE)
    made.start(NEVER)


def test_a_state_that_qemu_itself_refuses_is_told(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    made.save()
    # All our checks pass, the content is nonsense.
    made.files.memory.write_bytes(b"no migration stream" * 1000)
    crc32, length = saved.check(made.files.memory)
    edit_stamp(made, crc32=crc32, bytes=length)
    assert "QEMU does not take it" in refusal(lambda: made.start(NEVER), Trouble.SAVED_STATE).why
    assert made.state().pids == ()


def test_memory_without_a_stamp_is_no_state(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    made.save()
    made.files.stamp.unlink()
    assert made.state().state is VmState.OFF
    made.start(NEVER)
    assert not made.files.memory.exists()


def test_a_disk_that_fills_up_during_the_save(
    ticker: MakeTicker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.shutil, "disk_usage", _plenty)
    monkeypatch.setattr("officegrid.agent.drivers.qemu.disk.shutil.disk_usage", _plenty)
    folder = tmp_path / "small"
    with small_disk(folder, 2), contextlib.ExitStack() as undo:
        made = ticker(folder)
        undo.callback(made.delete)
        before = ticking(made)
        with (folder / "filler").open("wb") as file:
            # Room for the first pages of memory only.
            left = os.statvfs(folder)
            file.write(bytes(max(0, left.f_bavail * left.f_frsize - 200_000)))
        refusal(made.save, Trouble.DISK_FULL)
        assert not made.files.memory.exists()
        assert not made.files.stamp.exists()
        assert made.state().state is VmState.PAUSED
        (folder / "filler").unlink()
        made.resume()
        wait_until(lambda: last_tick(made.files.console) > before, 20, "it goes on")
        made.save()
        assert made.state().state is VmState.SAVED


def test_too_little_room_refuses_a_start(ticker: MakeTicker) -> None:
    made = ticker()
    ticking(made)
    made.save()
    greedy = ticker(disk_margin_mb=2**30)
    error = refusal(lambda: greedy.start(NEVER), Trouble.DISK_FULL)
    assert "disk_margin_mb" in error.fix
    assert made.state().state is VmState.SAVED, "nothing is lost by it"
    made.stop()
    refusal(lambda: greedy.start(NEVER), Trouble.DISK_FULL)
    assert made.state().state is VmState.OFF
    made.start(NEVER)


def test_a_guest_cannot_fill_the_disk_by_its_console(
    ticker: MakeTicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.trim, "__defaults__", (200,))
    made = ticker()
    ticking(made)
    console = made.files.console
    for _ in range(2):
        # The guest writes 5 bytes at a time, 18 times a second.
        wait_until(lambda: console.stat().st_size > 200, 30, "the guest writes much")
        reached = last_tick(console)
        made.state()
        assert console.stat().st_size < 100
        wait_until(lambda least=reached: last_tick(console) > least, 10, "it goes on")  # type: ignore[misc]
        assert b"\0" not in console.read_bytes(), "QEMU left a hole: it does not append"


def test_what_the_guest_says_when_ready_never_touches_the_disk(ticker: MakeTicker) -> None:
    made = ticker(network="none")
    ticking(made)
    assert made.state().ready is False
    with made._monitor(process_of(made)) as monitor:
        for _ in range(3):  # more than the port keeps; what the guest would have said
            monitor.call("ringbuf-write", timeout_s=5, device="ready", data="x" * 4000)
    assert made.state().ready is True
    assert made.files.ready.stat().st_size < 100
    made.save()
    made.start(NEVER)
    assert made.state().ready is True, "it went on; it will not say it again"
    made.stop()
    made.start(NEVER)
    assert made.state().ready is False


def test_a_save_that_takes_too_long_is_given_up(
    ticker: MakeTicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ticker(save_timeout_s=0.5)
    before = ticking(made)
    with monkeypatch.context() as slow:  # QEMU itself keeps to it: as with a very slow disk
        slow.setattr(saved, "FASTEST_BYTES_S", 20_000)
        began = time.monotonic()
        refusal(made.save, Trouble.TIMEOUT)
        assert time.monotonic() - began < 4
    assert not made.files.memory.exists()
    assert not made.files.stamp.exists()
    assert made.state().state is VmState.PAUSED
    patient = ticker()
    patient.save()
    patient.start(NEVER)
    wait_until(lambda: last_tick(made.files.console) > before, 20, "the guest goes on")


def test_the_image_is_read_at_the_lowest_priority(
    ticker: MakeTicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux has priorities of threads")
    seen: list[tuple[int, int]] = []
    hashed = disk._sha256

    def watched(image: Path) -> str:
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        seen.append((nice, psutil.Process(thread).ionice().ioclass))
        return hashed(image)

    monkeypatch.setattr(disk, "_sha256", watched)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    ticker().import_image()
    assert seen == [(19, psutil.IOPRIO_CLASS_IDLE)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before, "the agent itself stays as it was"


def _plenty(_: object) -> object:
    return type("Usage", (), {"free": 2**40})


def test_a_save_interrupted_after_the_memory_can_be_repeated(ticker: MakeTicker) -> None:
    made = ticker()
    before = ticking(made)
    made.pause()
    # As an agent leaves it that dies between the memory and the end of QEMU.
    with made._monitor(process_of(made)) as monitor:
        saved.write_memory(monitor, made.files.memory, (7, 2), 30.0)
    assert made.state().state is VmState.PAUSED
    made.save()
    assert made.state().state is VmState.SAVED
    made.start(NEVER)
    wait_until(lambda: last_tick(made.files.console) > before, 20, "it goes on")


def test_saving_with_a_qemu_replaced_meanwhile_is_refused(
    ticker: MakeTicker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package was updated: the process is the old version, the next one would be the new.
    made = ticker()
    ticking(made)
    newer = boot.Version("QEMU emulator version 99.0", (99, 0))
    monkeypatch.setattr(driver, "read_version", lambda _: newer)
    assert "another version" in refusal(made.save, Trouble.FAILED).why
    assert made.state().state is VmState.RUNNING


def test_errors_of_the_disk_are_driver_errors(ticker: MakeTicker, tmp_path: Path) -> None:
    made = ticker(tmp_path / "vm")
    made.import_image()
    made.files.running.mkdir()  # cannot be replaced by a file
    try:
        with pytest.raises(DriverError):
            made.start(NEVER)
        assert made.state().state is VmState.OFF
    finally:
        made.files.running.rmdir()
