"""Input devices and terminals. Devices are FIFOs that carry the kernel's own event format (there
is no input hardware where tests run); terminals are real pseudo-terminals."""

from __future__ import annotations

import os
import pty
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.evdev import RESCAN_S, Evdev, input_kinds
from officegrid.agent.sensors.tty import STEP_S, Terminals
from parts import without

KEY, REL, ABS, SYN, SW = 1, 2, 3, 0, 5
KEYBOARD = {"key": "10000 0 0 0 0 0 1000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe"}
MOUSE = {"key": "1f0000 0 0 0 0", "rel": "943"}
TABLET = {"key": "70000 0 0 0 0", "abs": "3", "rel": "100"}
LID = {"sw": "1"}
JOYSTICK = {"key": "7cdb000000000000 0 0 0 0", "abs": "3003f"}
ACCELEROMETER = {"abs": "7", "properties": "40"}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Devices:
    """A folder like /dev/input with its /sys/class/input."""

    def __init__(self, folder: Path) -> None:
        self.devices, self.sysfs = folder / "input", folder / "sys"
        self.devices.mkdir()
        self.ends: dict[str, int] = {}

    def plug(self, name: str, capabilities: dict[str, str]) -> None:
        about = self.sysfs / name / "device" / "capabilities"
        about.mkdir(parents=True)
        for file in ("key", "rel", "abs", "sw"):
            (about / file).write_text(capabilities.get(file, "0") + "\n")
        (about.parent / "properties").write_text(capabilities.get("properties", "0") + "\n")
        os.mkfifo(self.devices / name)
        self.ends[name] = os.open(self.devices / name, os.O_RDWR | os.O_NONBLOCK)

    def move(self, name: str, *kinds: int) -> None:
        for kind in (*kinds, SYN):
            os.write(self.ends[name], struct.pack("@llHHi", 5, 6, kind, 30, 1))

    def close(self) -> None:
        for end in self.ends.values():
            os.close(end)


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[Devices]:
    found = Devices(tmp_path)
    yield found
    found.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def evdev(devices: Devices, clock: Clock) -> Iterator[Evdev]:
    found = Evdev(devices.devices, devices.sysfs, clock=clock)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("capabilities", "kind"),
    [(KEYBOARD, KEY), (MOUSE, KEY), (MOUSE, REL), (TABLET, ABS), (JOYSTICK, KEY)],
)
def test_any_event_is_input_now(
    devices: Devices, evdev: Evdev, clock: Clock, capabilities: dict[str, str], kind: int
) -> None:
    devices.plug("event0", capabilities)
    assert evdev.idle_s() == 0.0  # not heard until now, so not longer than now
    clock.now_s += 100
    assert evdev.idle_s() == 100.0
    devices.move("event0", kind)
    assert evdev.idle_s() == 0.0
    clock.now_s += 3
    assert evdev.idle_s() == 3.0
    for _ in range(500):
        devices.move("event0", kind)
    assert evdev.idle_s() == 0.0
    clock.now_s += 1
    assert evdev.idle_s() == 1.0  # the burst has been read to its end


@pytest.mark.parametrize(
    ("capabilities", "kind"), [(KEYBOARD, SYN), (KEYBOARD, ABS), (JOYSTICK, ABS), (MOUSE, SW)]
)
def test_what_is_nobodys_hand_is_no_input(
    devices: Devices, evdev: Evdev, clock: Clock, capabilities: dict[str, str], kind: int
) -> None:
    devices.plug("event0", capabilities)
    evdev.idle_s()
    clock.now_s += 50
    devices.move("event0", kind)
    assert evdev.idle_s() == 50.0


@pytest.mark.parametrize("capabilities", [LID, ACCELEROMETER])
def test_a_lid_or_an_accelerometer_is_no_keyboard(
    devices: Devices, evdev: Evdev, capabilities: dict[str, str]
) -> None:
    devices.plug("event0", capabilities)
    assert input_kinds(devices.sysfs / "event0" / "device") == frozenset()
    with pytest.raises(SensorError, match="no keyboard or mouse"):
        evdev.idle_s()


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(SensorError, match="no keyboard or mouse"):
        Evdev(tmp_path / "none", tmp_path / "none").idle_s()


def test_plugging_in_and_pulling_out_is_input(devices: Devices, evdev: Evdev, clock: Clock) -> None:
    devices.plug("event0", KEYBOARD)
    evdev.idle_s()
    clock.now_s += 60
    assert evdev.idle_s() == 60.0
    devices.plug("event1", MOUSE)
    clock.now_s += RESCAN_S
    assert evdev.idle_s() == 0.0
    clock.now_s += 60
    assert evdev.idle_s() == 60.0
    (devices.devices / "event1").unlink()
    clock.now_s += RESCAN_S
    assert evdev.idle_s() == 65.0
    devices.move("event0", KEY)
    assert evdev.idle_s() == 0.0
    (devices.devices / "event0").unlink()
    clock.now_s += RESCAN_S
    with pytest.raises(SensorError, match="no keyboard or mouse"):
        evdev.idle_s()


def test_a_keyboard_that_comes_back_under_its_old_name_is_heard_again(
    devices: Devices, evdev: Evdev, clock: Clock
) -> None:
    """As after sleep: gone and back between two looks at the folder."""
    devices.plug("event0", KEYBOARD)
    devices.plug("event1", MOUSE)
    evdev.idle_s()
    clock.now_s += 60
    assert evdev.idle_s() == 60.0
    (devices.devices / "event0").unlink()
    os.close(devices.ends.pop("event0"))
    os.mkfifo(devices.devices / "event0")
    devices.ends["event0"] = os.open(devices.devices / "event0", os.O_RDWR | os.O_NONBLOCK)
    clock.now_s += RESCAN_S
    assert evdev.idle_s() == 0.0  # the old one is noticed to be dead
    clock.now_s += RESCAN_S
    assert evdev.idle_s() == 0.0  # and the new one is opened
    clock.now_s += 60
    assert evdev.idle_s() == 60.0
    devices.move("event0", KEY)
    assert evdev.idle_s() == 0.0


def test_one_device_that_cannot_be_heard_spoils_the_silence_of_all(
    devices: Devices, evdev: Evdev, clock: Clock
) -> None:
    """Opening a socket as a file fails for root too, like a forbidden device for others."""
    import socket

    devices.plug("event0", KEYBOARD)
    assert evdev.idle_s() == 0.0
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(devices.devices / "event1"))
        clock.now_s += RESCAN_S
        with pytest.raises(SensorError, match="1 input devices may not be read"):
            evdev.idle_s()
    (devices.devices / "event1").unlink()
    clock.now_s += RESCAN_S
    assert evdev.idle_s() >= 0.0


@pytest.fixture
def terminal() -> Iterator[tuple[int, int, str]]:
    master, slave = pty.openpty()
    yield master, slave, os.ttyname(slave).removeprefix("/dev/")
    os.close(master)
    os.close(slave)


def test_typing_on_a_real_terminal_moves_its_time(terminal: tuple[int, int, str]) -> None:
    master, slave, name = terminal
    long_ago = time.time() - 500
    os.utime(f"/dev/{name}", (long_ago, long_ago))
    terminals = Terminals()
    assert terminals.idle_s(name) == pytest.approx(500 - STEP_S, abs=5)
    os.write(slave, b"output is not input\n")
    assert terminals.idle_s(name) > 400
    os.write(master, b"typed\n")
    assert os.read(slave, 100)
    assert terminals.idle_s(name) == 0.0
    assert (name, os.geteuid()) in terminals.all()
    assert name in terminals.of_user(os.geteuid())
    assert name not in terminals.of_user(4_000_000_000)


def test_a_clock_set_back_does_not_make_anybody_idle(terminal: tuple[int, int, str]) -> None:
    terminals = Terminals(wall_clock=lambda: time.time() - 3600)
    assert terminals.idle_s(terminal[2]) == 0.0


@pytest.mark.parametrize("name", ["", "pts/999999", "../etc/passwd", "/etc/passwd"])
def test_a_terminal_that_is_not_there(name: str) -> None:
    if not os.path.isdir("/dev/pts"):
        without("there is no /dev/pts")
    with pytest.raises(SensorError):
        Terminals().idle_s(name)
