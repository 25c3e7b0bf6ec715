"""The driver contract on a real libvirt with real QEMU guests; its words; what is its own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from private_libvirt import PrivateLibvirt, end_session

from officegrid.agent import host_id
from officegrid.agent.drivers.base import Driver, VmSettings
from officegrid.agent.drivers.command import Finished
from officegrid.agent.drivers.libvirt import make, virsh
from officegrid.agent.drivers.libvirt.domain import Places, domain_uuid, domain_xml
from officegrid.agent.drivers.libvirt.options import parse_options
from officegrid.agent.drivers.libvirt.virsh import Domain, failure, parse_look
from officegrid.core.errors import UsageError
from officegrid.core.vm import HealthLevel, RepairStep, Trouble, VmState
from officegrid.testing.driver_conformance import DriverConformance
from officegrid.testing.driver_harness import DriverHarness, is_, refusal, wait_until
from parts import need
from vm.counter_guest import counter_guest, ticks
from vm.ticker import last_tick, make_image

NAME = "Grid Machine"


@pytest.fixture(scope="module")
def libvirt() -> Iterator[PrivateLibvirt]:
    """The daemons, with a VM of somebody else that runs all the time."""
    private = PrivateLibvirt()
    try:
        xml = private.folder / "theirs.xml"
        xml.write_text(
            "<domain type='qemu'><name>Theirs</name><memory unit='MiB'>32</memory>"
            "<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
        )
        private.virsh("define", str(xml))
        private.virsh("start", "Theirs", "--paused")
        yield private
        private.virsh("destroy", "Theirs")
    finally:
        private.close()


class LibvirtHarness(DriverHarness):
    boot_s = restore_s = 40.0
    settle_s = 20.0

    def __init__(self, libvirt: PrivateLibvirt) -> None:
        self.libvirt = libvirt
        self.place = libvirt.folder / f"vm-{uuid.uuid4().hex[:8]}"
        self.place.mkdir(mode=0o711)
        folder = self.place / "ours"
        folder.mkdir(mode=0o700)
        disks = self.place / "disks"
        disks.mkdir()
        disks.chmod(0o777)
        (disks / "theirs.txt").write_text("kept")
        self.settings = VmSettings(
            NAME, folder, make_image(self.place / "image.qcow2"), memory_mb=32,
            options={
                "uri": libvirt.uri, "accelerator": "tcg", "disk_folder": str(disks),
                # The tests themselves are to get the CPU that a worker must leave to others.
                "cpu_shares": 1024,
            },
        )  # fmt: skip
        self.uuid = domain_uuid(self.settings)
        self.places = Places.of(self.settings, parse_options(self.settings.options))

    def make(self, *, image: Path | None = None) -> Driver:
        return make(dataclasses.replace(self.settings, image=image or self.settings.image))

    def progress(self) -> int:
        return last_tick(self.places.console)

    def kill_vm(self) -> None:
        (pid,) = self.make().state().pids
        os.kill(pid, signal.SIGKILL)

    def foreign_things(self) -> object:
        uuids = set(self.libvirt.virsh("list", "--all", "--uuid").split()) - {self.uuid}
        domains = {
            one: (
                self.libvirt.virsh("domstate", one, "--reason"),
                self.libvirt.virsh("dumpxml", one, "--inactive"),
            )
            for one in sorted(uuids)
        }
        ours = set(self.places.all())
        files = [*self.places.folder.iterdir(), self.settings.image]
        return domains, {str(path): path.read_bytes() for path in files if path not in ours}

    def saved_file(self) -> Path:
        return self.libvirt.saves / f"{NAME}.save"

    def corrupt_saved_state(self) -> None:
        os.truncate(self.saved_file(), self.saved_file().stat().st_size // 2)

    def delete_by_hand(self) -> None:
        self.libvirt.virsh("undefine", NAME, "--managed-save")

    def take_name(self) -> None:
        xml = self.place / "taken.xml"
        xml.write_text(
            f"<domain type='qemu'><name>{NAME}</name><memory unit='MiB'>32</memory>"
            "<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
        )
        self.libvirt.virsh("define", str(xml))

    def leftovers(self) -> list[str]:
        known = self.libvirt.virsh("list", "--all", "--uuid").split()
        files = [path.name for path in self.places.all() if path.exists()]
        return (
            files
            + [one for one in known if one == self.uuid]
            + (["saved state"] if self.saved_file().exists() else [])
        )

    def full_disk(self) -> AbstractContextManager[None] | None:
        return self.libvirt.full_disk() if os.geteuid() == 0 else None

    def close(self) -> None:
        self.make().delete()
        if NAME in self.libvirt.virsh("list", "--all", "--name").splitlines():
            self.libvirt.virsh("undefine", NAME)
        shutil.rmtree(self.place)


@pytest.fixture
def harness(libvirt: PrivateLibvirt) -> Iterator[LibvirtHarness]:
    made = LibvirtHarness(libvirt)
    yield made
    made.close()


class TestLibvirt(DriverConformance):
    @pytest.fixture
    def harness(self, libvirt: PrivateLibvirt) -> Iterator[LibvirtHarness]:
        made = LibvirtHarness(libvirt)
        yield made
        made.close()


# -- what is its own ----------------------------------------------------------------------------


@pytest.fixture
def driver(harness: LibvirtHarness) -> Driver:
    made = harness.make()
    made.import_image()
    return made


def start(driver: Driver) -> None:
    driver.start(threading.Event())


@pytest.mark.parametrize("damage", ["header", "length"])
def test_every_damage_that_libvirt_notices_is_one_of_the_saved_state(
    harness: LibvirtHarness, driver: Driver, damage: str
) -> None:
    start(driver)
    driver.save()
    with harness.saved_file().open("r+b") as file:
        if damage == "header":
            file.write(bytes(3000))
        else:
            file.truncate(20_000)
    error = refusal(lambda: start(driver), Trouble.SAVED_STATE)
    assert "cookie" in error.why or "magic" in error.why, "libvirt's own words are missing"
    is_(driver, VmState.SAVED)


def test_settings_that_changed_count_at_the_next_cold_boot(
    harness: LibvirtHarness, driver: Driver
) -> None:
    bigger = make(dataclasses.replace(harness.settings, memory_mb=48))
    start(bigger)
    assert "<memory unit='KiB'>49152</memory>" in harness.libvirt.virsh("dumpxml", harness.uuid)


def test_a_domain_from_before_this_pc_became_another_one_is_replaced(
    harness: LibvirtHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PC's disk was copied: libvirt still has the domain of the PC it was copied from."""
    with monkeypatch.context() as patch:
        patch.setattr(host_id, "system_id", lambda: "f0" * 16)
        former = harness.make()
        before = domain_uuid(harness.settings)
        former.import_image()
        start(former)
        former.save()
    assert before != harness.uuid
    driver = harness.make()
    is_(driver, VmState.ABSENT)
    driver.import_image()
    is_(driver, VmState.OFF)
    known = harness.libvirt.virsh("list", "--all", "--uuid").split()
    assert harness.uuid in known
    assert before not in known
    assert not list(harness.places.folder.glob(f"*{before}*"))
    assert (harness.places.folder / "theirs.txt").read_text() == "kept"


def test_the_seed_is_attached_while_it_is_there(harness: LibvirtHarness) -> None:
    seed = harness.place / "seed.iso"
    seed.write_bytes(b"CD001" * 1000)
    driver = make(dataclasses.replace(harness.settings, seed_iso=seed))
    driver.import_image()
    assert harness.places.seed.read_bytes() == seed.read_bytes()
    start(driver)
    assert str(harness.places.seed) in harness.libvirt.virsh("dumpxml", harness.uuid)
    driver.stop()
    seed.unlink()  # the join code on it has been used up
    start(driver)
    is_(driver, VmState.RUNNING)
    assert not harness.places.seed.exists()
    assert "seed" not in harness.libvirt.virsh("dumpxml", harness.uuid)


def test_ready_is_what_the_guest_says_since_its_boot(
    harness: LibvirtHarness, driver: Driver
) -> None:
    start(driver)
    assert driver.state().ready is False
    with harness.places.ready.open("ab") as port:
        port.write(b"ready\n")
    assert driver.state().ready is True
    driver.save()
    start(driver)
    assert driver.state().ready is True, "it went on; it will not say it again"
    driver.stop()
    start(driver)
    assert driver.state().ready is False


def test_a_linux_kernel_is_booted_directly(harness: LibvirtHarness) -> None:
    guest = counter_guest()
    boot = harness.libvirt.folder / "boot"
    boot.mkdir(exist_ok=True)
    for file in (guest.kernel, guest.initrd):
        shutil.copyfile(file, boot / file.name)
    options = {
        **harness.settings.options, "append": guest.append,
        "kernel": str(boot / guest.kernel.name), "initrd": str(boot / guest.initrd.name),
    }  # fmt: skip
    driver = make(dataclasses.replace(harness.settings, memory_mb=96, options=options))
    driver.import_image()
    start(driver)
    wait_until(lambda: ticks(harness.places.console) > 3, 60, "the kernel has booted")
    driver.save()
    before = ticks(harness.places.console)
    start(driver)
    wait_until(lambda: ticks(harness.places.console) > before, 30, "the kernel goes on")


def test_a_libvirt_that_hangs_means_unknown(
    harness: LibvirtHarness, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = harness.libvirt.daemon_pid()
    monkeypatch.setattr(virsh, "LOOK_TIMEOUT_S", 0.5)
    os.kill(daemon, signal.SIGSTOP)
    try:
        status = is_(driver, VmState.UNKNOWN)
        assert "within 0.5 s" in status.detail
        refusal(lambda: start(driver), Trouble.TIMEOUT)
        refusal(driver.stop, Trouble.TIMEOUT)
    finally:
        os.kill(daemon, signal.SIGCONT)
    wait_until(lambda: driver.state().state is VmState.OFF, 20, "it answers again")


@pytest.fixture
def hanging(harness: LibvirtHarness) -> Iterator[tuple[Driver, Path]]:
    """A driver whose virsh hangs while the file exists, and that file."""
    flag, wrapper = harness.place / "hangs", harness.place / "virsh"
    wrapper.write_text(f'#!/bin/sh\n[ -e {flag} ] && exec sleep 600\nexec virsh "$@"\n')
    wrapper.chmod(0o755)
    options = {**harness.settings.options, "virsh": str(wrapper)}
    driver = make(dataclasses.replace(harness.settings, options=options))
    driver.import_image()
    start(driver)
    wait_until(lambda: harness.progress() > 3, 40, "the guest runs")
    yield driver, flag
    flag.unlink(missing_ok=True)


def test_a_libvirt_that_hangs_does_not_keep_the_cpu(
    harness: LibvirtHarness, hanging: tuple[Driver, Path]
) -> None:
    driver, flag = hanging
    flag.touch()
    began = time.monotonic()
    driver.pause()
    assert time.monotonic() - began < 4
    before = harness.progress()
    time.sleep(0.3)
    assert harness.progress() == before, "the guest runs on"
    began = time.monotonic()
    assert is_(driver, VmState.PAUSED).pids
    driver.pause()
    assert time.monotonic() - began < 1, "it does not ask libvirt"
    flag.unlink()
    driver.resume()
    wait_until(lambda: harness.progress() > before, 20, "the guest goes on")
    is_(driver, VmState.RUNNING)
    flag.touch()
    driver.pause()
    flag.unlink()
    driver.save()
    is_(driver, VmState.SAVED)
    start(driver)
    flag.touch()
    driver.pause()
    flag.unlink()
    began = time.monotonic()
    driver.stop()
    assert time.monotonic() - began < 10
    is_(driver, VmState.OFF)


def test_an_emergency_stop_needs_no_libvirt(
    hanging: tuple[Driver, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virsh, "LOOK_TIMEOUT_S", 1.0)
    driver, flag = hanging
    (pid,) = driver.state().pids
    flag.touch()
    status = is_(driver, VmState.UNKNOWN)
    assert status.pids == (pid,), "its memory still counts as ours"
    began = time.monotonic()
    # libvirt still says nothing: whether all is well again is not known.
    refusal(lambda: driver.repair(RepairStep.EMERGENCY_STOP), Trouble.STUCK)
    assert time.monotonic() - began < 8
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    flag.unlink()
    wait_until(lambda: driver.state().state is VmState.OFF, 20, "libvirt has noticed")


def test_a_save_that_takes_too_long_is_given_up(harness: LibvirtHarness, driver: Driver) -> None:
    # libvirt goes on when its client has been ended, unless it is told to give up.
    wrapper, calls = harness.place / "virsh", harness.place / "calls"
    wrapper.write_text(
        f'#!/bin/sh\necho "$*" >>{calls}\n'
        'case "$*" in *managedsave*--running) exec sleep 30;;\n'
        '*) exec virsh "$@";; esac\n'
    )
    wrapper.chmod(0o755)
    options = {**harness.settings.options, "virsh": str(wrapper), "save_timeout_s": 1}
    slow = make(dataclasses.replace(harness.settings, options=options))
    start(driver)
    began = time.monotonic()
    refusal(slow.save, Trouble.TIMEOUT)
    assert time.monotonic() - began < 6
    assert calls.read_text().splitlines()[-1].endswith(f"domjobabort {harness.uuid}")
    assert slow.state().state in (VmState.RUNNING, VmState.PAUSED)


def test_what_holds_secrets_is_for_us_and_qemu_only(harness: LibvirtHarness) -> None:
    seed = harness.place / "seed.iso"
    seed.write_bytes(b"CD001" * 1000)
    driver = make(dataclasses.replace(harness.settings, seed_iso=seed))
    before = os.umask(0o022)
    try:
        driver.import_image()
        start(driver)
    finally:
        os.umask(before)
    for path in (harness.places.seed, harness.places.overlay):
        assert path.stat().st_mode & 0o777 == 0o600, path.name
        if os.geteuid() == 0:
            (pid,) = driver.state().pids
            assert path.stat().st_uid == psutil.Process(pid).uids().real, "QEMU can read it"
    wait_until(lambda: harness.progress() > 3, 40, "the guest runs")
    driver.save()
    start(driver)
    driver.stop()
    assert {path.stat().st_mode & 0o777 for path in (harness.places.seed, harness.places.overlay)} \
        == {0o600}  # fmt: skip


def test_too_little_room_refuses_a_start(harness: LibvirtHarness, driver: Driver) -> None:
    options = {**harness.settings.options, "disk_margin_mb": 2**30}
    greedy = make(dataclasses.replace(harness.settings, options=options))
    assert "disk_margin_mb" in refusal(lambda: start(greedy), Trouble.DISK_FULL).fix
    start(driver)
    driver.save()
    refusal(lambda: start(greedy), Trouble.DISK_FULL)
    is_(driver, VmState.SAVED)


def test_a_guest_cannot_fill_the_disk_by_its_console(harness: LibvirtHarness) -> None:
    # mov dx, 0x3f8; again: out dx, al; jmp again
    image = harness.place / "flood.raw"
    sector = bytes.fromhex("baf803eeebfd").ljust(510, b"\0") + b"\x55\xaa"
    image.write_bytes(sector.ljust(2**20, b"\0"))
    driver = harness.make(image=image)
    driver.import_image()
    start(driver)
    old = harness.places.console.with_name(harness.places.console.name + ".0")
    wait_until(lambda: old.exists() or harness.places.console.stat().st_size > 2**20, 40, "much")
    wait_until(old.exists, 40, "it is turned over")
    driver.delete()
    assert harness.leftovers() == []


def test_no_libvirt_and_no_virsh_are_told_apart(tmp_path: Path) -> None:
    nobody = f"qemu+unix:///system?socket={tmp_path}/nobody"
    driver = make(VmSettings("x", tmp_path, options={"uri": nobody}))
    health = driver.detect()
    assert health.level is HealthLevel.UNUSABLE
    assert "Failed to connect socket" in health.sentence
    assert "systemctl start libvirtd" in health.fix
    assert "nobody" in is_(driver, VmState.UNKNOWN).detail
    refusal(lambda: start(driver), Trouble.FAILED)
    without_virsh = make(VmSettings("x", tmp_path, options={"virsh": "/nonexistent/virsh"}))
    assert "libvirt-clients" in without_virsh.detect().fix
    refusal(lambda: start(without_virsh), Trouble.MISSING)
    is_(without_virsh, VmState.UNKNOWN)


def test_an_image_that_is_none(harness: LibvirtHarness) -> None:
    text = harness.place / "image.qcow2.txt"
    text.write_bytes(b"QFI\xfb but not a qcow2")
    refusal(harness.make(image=text).import_image, Trouble.IMAGE)
    assert harness.leftovers() == []


@pytest.mark.parametrize(
    ("said", "saved", "state"),
    [
        ("running (booted)", "no", VmState.RUNNING),
        ("running (restored)", "no", VmState.RUNNING),
        ("idle", "no", VmState.RUNNING),
        ("paused (user)", "no", VmState.PAUSED),
        ("paused (I/O error)", "no", VmState.PAUSED),
        ("paused (saving)", "no", VmState.SAVING),
        ("paused (starting up)", "no", VmState.STARTING),
        ("in shutdown", "no", VmState.STOPPING),
        ("shut off (saved)", "yes", VmState.SAVED),
        ("shut off (failed)", "yes", VmState.SAVED),
        ("shut off (saved)", "no", VmState.OFF),
        ("shut off (crashed)", "no", VmState.OFF),
        ("crashed (panicked)", "no", VmState.BROKEN),
        ("pmsuspended", "no", VmState.BROKEN),
        ("no state", "no", VmState.UNKNOWN),
        ("angehalten", "no", VmState.UNKNOWN),
    ],
)
def test_the_words_of_libvirt(said: str, saved: str, state: VmState) -> None:
    text = f"{said}\n\nId:             -\nName:           x\nManaged save:   {saved}\n"
    assert parse_look(text) == Domain(state, said)


@pytest.mark.parametrize(
    ("stderr", "trouble"),
    [
        ("error: failed to get domain 'x'", Trouble.GONE),
        ("error: Failed to save domain 'x' state\nerror: operation failed: … No space left on "
         "device", Trouble.DISK_FULL),
        ("error: operation failed: domain 'x' already exists with uuid 1", Trouble.NAME_TAKEN),
        ("error: authentication unavailable: no polkit agent available", Trouble.PERMISSION),
        ("error: cannot set up guest memory 'pc.ram': Cannot allocate memory", Trouble.MEMORY),
        ('error: qemu-system: Failed to get "write" lock', Trouble.LOCKED),
        ("error: Timed out during operation: cannot acquire state change lock", Trouble.LOCKED),
        ("error: Cannot access storage file '/x.qcow2': No such file", Trouble.IMAGE),
        ("error: Could not access KVM kernel module", Trouble.NO_VIRTUALIZATION),
        ("error: internal error: something new", Trouble.FAILED),
        ("", Trouble.FAILED),
    ],
)  # fmt: skip
def test_the_errors_of_libvirt(stderr: str, trouble: Trouble) -> None:
    error = failure("It does not work.", Finished(("virsh",), 1, "", stderr, 0.1))
    assert error.trouble is trouble
    assert error.why


def test_a_session_has_no_control_groups_and_the_system_has(tmp_path: Path) -> None:
    session = {"uri": "qemu:///session"}
    system = {"uri": "qemu:///system"}

    def xml(options: dict[str, object], **changes: int) -> str:
        settings = VmSettings("a & b", tmp_path, options=options, **changes)  # type: ignore[arg-type]
        return domain_xml(settings, parse_options(options), "kvm")

    assert "cputune" not in xml(session)
    assert "<shares>20</shares>" in xml(system)
    assert "quota" not in xml(system)
    assert "<quota>25000</quota>" in xml(system, cpu_cap_percent=25)
    assert "a &amp; b" in xml(session)
    assert "host-passthrough" not in xml(session)
    assert not make(VmSettings("x", tmp_path, options=session)).capabilities().cpu_cap
    assert make(VmSettings("x", tmp_path, options=system)).capabilities().cpu_cap


NOBODY = 65534


@pytest.fixture
def session_of_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Driver options for qemu:///session of an ordinary user, for tests that run as root."""
    if os.geteuid() != 0:
        pytest.skip("all the other tests use a session already")
    need("virsh", "libvirtd", "setpriv")
    place = Path(tempfile.mkdtemp(prefix="ogs-", dir="/tmp"))
    place.chmod(0o711)
    for name in ("run", "home", "disks", "xml"):
        (place / name).mkdir()
        os.chown(place / name, NOBODY, NOBODY)
    home = f"HOME={place}/home XDG_RUNTIME_DIR={place}/run"
    for name in ("virsh", "qemu-img"):
        (place / name).write_text(
            f"#!/bin/sh\nexec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
            f' env {home} {name} "$@"\n'
        )
        (place / name).chmod(0o755)

    @contextmanager
    def readable_folder() -> Iterator[str]:
        yield str(place / "xml")

    # The driver is the user elsewhere; here virsh is, and must read what the driver writes.
    monkeypatch.setattr(tempfile, "TemporaryDirectory", readable_folder)
    yield {
        "uri": "qemu:///session", "accelerator": "tcg", "disk_folder": str(place / "disks"),
        "virsh": str(place / "virsh"), "image_tool": str(place / "qemu-img"),
    }  # fmt: skip
    end_session(place / "run")
    shutil.rmtree(place)


def test_a_session_of_an_ordinary_user(session_of_nobody: dict[str, str], tmp_path: Path) -> None:
    image = make_image(Path(session_of_nobody["disk_folder"]).parent / "image.qcow2")
    settings = VmSettings(NAME, tmp_path, image, memory_mb=32, options=session_of_nobody)
    console = Places.of(settings, parse_options(session_of_nobody)).console
    driver = make(settings)
    try:
        assert driver.detect().level is HealthLevel.DEGRADED
        driver.import_image()
        start(driver)
        wait_until(lambda: last_tick(console) > 3, 30, "the guest runs")
        (pid,) = driver.state().pids
        threads = psutil.Process(pid).threads()
        assert {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in threads} == {19}
        assert psutil.Process(pid).uids().real == NOBODY
        driver.pause()
        driver.save()
        before = last_tick(console)
        is_(driver, VmState.SAVED)
        start(driver)
        wait_until(lambda: last_tick(console) > before, 30, "the guest goes on")
        driver.stop()
        is_(driver, VmState.OFF)
    finally:
        driver.delete()
    is_(driver, VmState.ABSENT)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"url": "x"}, "there are accelerator"), ({"uri": 5}, "text"), ({"initrd": "x"}, "kernel"),
     ({"accelerator": "hvf"}, "auto, kvm, tcg"), ({"cpu_shares": 1}, "2 to 10000")],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=next(iter(options))) as caught:
        make(VmSettings("x", tmp_path, options=options))
    assert word in caught.value.why
