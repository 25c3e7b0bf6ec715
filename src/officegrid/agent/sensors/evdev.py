"""Input straight from the kernel: any event of a keyboard or pointer at this PC is input now.

Works for every desktop and the text console alike, but only for who may read /dev/input (root,
or the group `input`), and knows neither whose session it is nor what is on the screen. The
contents of the events are thrown away; only the time of the last one is kept.

Sources: Linux, include/uapi/linux/input.h (struct input_event), input-event-codes.h, and
Documentation/ABI/testing/sysfs-class-input for the capability files.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from officegrid.agent.sensors.base import SensorError

RESCAN_S = 5.0
EVENT = struct.Struct("@llHHi")
EV_KEY, EV_REL, EV_ABS = 1, 2, 3
_JOYSTICK_BUTTONS = range(0x120, 0x140)
_PROP_ACCELEROMETER = 6
_MOST_EVENTS = 64
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)


@dataclass(slots=True)
class _Device:
    descriptor: int
    kinds: frozenset[int]


class Evdev:
    """All input devices of this PC, kept open; new ones are found within seconds."""

    name = "input devices"

    def __init__(
        self,
        devices: Path = Path("/dev/input"),
        sysfs: Path = Path("/sys/class/input"),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._sysfs, self._clock = devices, sysfs, clock
        self._open: dict[str, _Device] = {}
        self._unreadable = 0
        self._scanned_at_s = float("-inf")
        self._folder_changed_ns: int | None = None
        """Of the folder as it was scanned; None: scan it anew, whatever its time."""
        self._last_input_s: float | None = None

    def idle_s(self) -> float:
        """Seconds since the last event, or since the devices were opened, whichever is shorter.
        Raises SensorError where there is no device that can be read, or one that cannot."""
        now_s = self._clock()
        if now_s - self._scanned_at_s >= RESCAN_S:
            self._scan(now_s)
        for name, device in list(self._open.items()):
            if self._moved(name, device):
                self._last_input_s = now_s
        if self._unreadable:
            raise SensorError(f"{self._unreadable} input devices may not be read by this account")
        if not self._open or self._last_input_s is None:
            raise SensorError(f"no keyboard or mouse in {self._folder}")
        return max(0.0, now_s - self._last_input_s)

    def close(self) -> None:
        """Close the devices."""
        for name in list(self._open):
            self._drop(name)

    def _scan(self, now_s: float) -> None:
        self._scanned_at_s = now_s
        try:
            changed_ns = self._folder.stat().st_mtime_ns
            names = {path.name for path in self._folder.glob("event*")}
        except OSError:
            changed_ns, names = -1, set()
        if changed_ns == self._folder_changed_ns and not self._unreadable:
            return
        self._folder_changed_ns, self._unreadable = changed_ns, 0
        for name in set(self._open) - names:
            self._drop(name)
        for name in names - set(self._open):
            kinds = input_kinds(self._sysfs / name / "device")
            if not kinds:
                continue
            try:
                descriptor = os.open(self._folder / name, _READ)
            except FileNotFoundError:
                continue
            except OSError:
                # One keyboard that cannot be heard makes the others' silence worthless.
                self._unreadable += 1
                continue
            self._open[name] = _Device(descriptor, kinds)
            self._last_input_s = now_s  # plugged in by somebody, or not heard until now

    def _moved(self, name: str, device: _Device) -> bool:
        moved = False
        while True:
            try:
                data = os.read(device.descriptor, EVENT.size * _MOST_EVENTS)
            except BlockingIOError:
                return moved
            except OSError:  # unplugged
                data = b""
            if not data:
                self._drop(name)
                # A successor of the same name may have been there at the last scan already.
                self._folder_changed_ns = None
                return True
            kinds = {kind for _, _, kind, _, _ in EVENT.iter_unpack(_whole(data))}
            moved = moved or not kinds.isdisjoint(device.kinds)

    def _drop(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.close(self._open.pop(name).descriptor)


def input_kinds(device: Path) -> frozenset[int]:
    """Which kinds of events of a device are somebody's input; empty: none ever is (a lid switch,
    an accelerometer, a loudspeaker). A device without capability files counts in full."""
    if not (device / "capabilities").is_dir():
        return frozenset((EV_KEY, EV_REL, EV_ABS))
    if _PROP_ACCELEROMETER in _bits(device / "properties"):
        return frozenset()
    keys = _bits(device / "capabilities" / "key")
    found: set[int] = set()
    if keys:
        found.add(EV_KEY)
    if _bits(device / "capabilities" / "rel"):
        found.add(EV_REL)
    # A worn joystick drifts for ever; its buttons do not.
    if _bits(device / "capabilities" / "abs") and not keys.intersection(_JOYSTICK_BUTTONS):
        found.add(EV_ABS)
    return frozenset(found)


def _bits(path: Path) -> frozenset[int]:
    """The set bits of a capability file: hexadecimal words of a long, the highest first."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    size = struct.calcsize("l") * 8
    found: set[int] = set()
    for index, word in enumerate(reversed(words)):
        with contextlib.suppress(ValueError):
            value = int(word, 16)
            found |= {index * size + bit for bit in range(size) if value >> bit & 1}
    return frozenset(found)


def _whole(data: bytes) -> bytes:
    return data[: len(data) // EVENT.size * EVENT.size]
