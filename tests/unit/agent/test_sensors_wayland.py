"""The Wayland client against a small compositor that speaks the documented wire format. No real
compositor was asked: none that offers ext-idle-notify-v1 runs without a graphics stack."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from desktops import wait_until
from officegrid.agent.sensors import wayland
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.bus import AbsentError
from officegrid.agent.sensors.desktop import Desktop
from officegrid.agent.sensors.wayland import RETRY_S, WaylandIdle, wayland_socket


class Compositor:
    """Answers sync, lists globals, and sends idled or resumed when told to. Holds the client to
    the protocol: new ids come without gaps, a callback's id is not used before it was freed."""

    def __init__(self, path: Path, seats: int = 1, notifier: bool = True) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.globals = [(9, "wl_compositor")] + [(20 + n, "wl_seat") for n in range(seats)]
        if notifier:
            self.globals.append((40, "ext_idle_notifier_v1"))
        self.watches: list[tuple[int, int]] = []
        self.faults: list[str] = []
        self.objects: dict[int, str] = {}
        self.highest = 1
        self.mute = False
        self.client: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, target: int, opcode: int, body: bytes = b"") -> None:
        assert self.client is not None
        self.client.sendall(struct.pack("=II", target, (8 + len(body)) << 16 | opcode) + body)

    def tell(self, event: str, which: int = 0) -> None:
        self.send(self.watches[which][0], {"idled": 0, "resumed": 1}[event])

    def close(self) -> None:
        for end in (self.listener, self.client):
            if end is not None:
                with contextlib.suppress(OSError):  # not connected any more
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _serve(self) -> None:
        while True:
            try:
                self.client, _ = self.listener.accept()
            except OSError:
                return
            self.objects, self.watches = {1: "wl_display"}, []
            with self.client.makefile("rb") as stream, contextlib.suppress(OSError):
                while head := stream.read(8):
                    target, word = struct.unpack("=II", head)
                    self._request(target, word & 0xFFFF, stream.read((word >> 16) - 8))

    def _new(self, number: int, interface: str) -> None:
        if number in self.objects or number > self.highest + 1:
            self.faults.append(f"{interface} as {number}")
        self.objects[number] = interface
        self.highest = max(self.highest, number)

    def _request(self, target: int, opcode: int, body: bytes) -> None:
        kind = self.objects.get(target, "")
        if kind == "wl_display" and opcode == 0:
            (callback,) = struct.unpack("=I", body)
            self._new(callback, "wl_callback")
            if not self.mute:
                del self.objects[callback]
                self.send(callback, 0, struct.pack("=I", 77))
                self.send(1, 1, struct.pack("=I", callback))
        elif kind == "wl_display" and opcode == 1:
            (registry,) = struct.unpack("=I", body)
            self._new(registry, "wl_registry")
            for name, interface in self.globals:
                text = interface.encode() + b"\0"
                text = struct.pack("=I", len(text)) + text + bytes(-len(text) % 4)
                self.send(registry, 0, struct.pack("=I", name) + text + struct.pack("=I", 2))
        elif kind == "wl_registry" and opcode == 0:
            name, length = struct.unpack_from("=II", body)
            interface = body[8 : 8 + length - 1].decode()
            version, number = struct.unpack_from("=II", body, len(body) - 8)
            if (name, interface) not in self.globals or version != 1:
                self.faults.append(f"bind {name} {interface} {version}")
            self._new(number, interface)
        elif kind == "ext_idle_notifier_v1" and opcode == 1:
            watch, timeout_ms, seat = struct.unpack("=III", body)
            if self.objects.get(seat) != "wl_seat":
                self.faults.append(f"seat {seat}")
            self._new(watch, "ext_idle_notification_v1")
            self.watches.append((watch, timeout_ms))
        else:
            self.faults.append(f"{kind} {target} {opcode}")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "wayland-0"


@pytest.fixture
def compositor(path: Path) -> Iterator[Compositor]:
    found = Compositor(path)
    yield found
    found.close()
    assert found.faults == []


@pytest.fixture
def sensor(path: Path, clock: Clock) -> Iterator[WaylandIdle]:
    found = WaylandIdle(path, clock=clock)
    yield found
    found.close()


def test_idle_after_a_second_and_back_at_once(
    compositor: Compositor, sensor: WaylandIdle, clock: Clock
) -> None:
    assert sensor.idle_s() == 0.0
    assert compositor.watches[0][1] == 1000
    clock.now_s += 50
    assert sensor.idle_s() == 0.0  # a second without input has not been reported
    for _ in range(3):
        compositor.tell("idled")
        wait_until(lambda: sensor.idle_s() == 1.0)
        clock.now_s += 30
        assert sensor.idle_s() == 31.0
        compositor.tell("resumed")
        wait_until(lambda: sensor.idle_s() == 0.0)


def test_every_seat_must_be_idle(path: Path, sensor: WaylandIdle, clock: Clock) -> None:
    compositor = Compositor(path, seats=2)
    assert sensor.idle_s() == 0.0
    compositor.tell("idled", 0)
    clock.now_s += 10
    assert sensor.idle_s() == 0.0
    compositor.tell("idled", 1)
    wait_until(lambda: sensor.idle_s() == 1.0)
    compositor.close()
    assert compositor.faults == []


def test_a_mute_compositor_is_not_an_idle_user(
    compositor: Compositor, sensor: WaylandIdle, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wayland, "ANSWER_S", 0.3)
    sensor.idle_s()
    compositor.tell("idled")
    wait_until(lambda: sensor.idle_s() > 0)
    compositor.mute = True
    clock.now_s += 600
    with pytest.raises(SensorError, match="does not answer"):
        sensor.idle_s()


def test_a_compositor_that_dies_and_comes_back(
    compositor: Compositor, sensor: WaylandIdle, clock: Clock, path: Path
) -> None:
    assert sensor.idle_s() == 0.0
    compositor.close()
    clock.now_s += 2
    with pytest.raises(SensorError, match="gone"):
        sensor.idle_s()
    path.unlink()
    again = Compositor(path)
    with pytest.raises(SensorError, match="gone"):
        sensor.idle_s()
    clock.now_s += RETRY_S
    assert sensor.idle_s() == 0.0
    again.close()
    assert again.faults == []


def test_a_compositor_without_the_protocol_and_none_at_all(
    path: Path, tmp_path: Path, clock: Clock
) -> None:
    compositor = Compositor(path, notifier=False)
    sensor = WaylandIdle(path, clock=clock)
    with pytest.raises(AbsentError, match="ext-idle-notify-v1"):
        sensor.idle_s()
    compositor.close()
    with pytest.raises(SensorError, match="gone"):
        WaylandIdle(tmp_path / "none", clock=clock).idle_s()


@pytest.mark.parametrize(
    "noise",
    [b"\0" * 64, b"\xff" * 64, struct.pack("=II", 2, 3 << 16)],
    ids=["zeroes", "ones", "too short"],
)
def test_nonsense_is_an_error(
    compositor: Compositor, sensor: WaylandIdle, noise: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wayland, "ANSWER_S", 0.3)
    monkeypatch.setattr(wayland, "ALIVE_EVERY_S", 0.0)
    sensor.idle_s()
    assert compositor.client is not None
    compositor.client.sendall(noise)

    def ask() -> None:
        for _ in range(3):
            sensor.idle_s()

    with pytest.raises(SensorError):
        ask()


def test_a_desktop_with_it_needs_nothing_else(
    compositor: Compositor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever watches a video is not idle there, so presentations are known too."""
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={path}.none")
    desktop = Desktop({"WAYLAND_DISPLAY": str(path)})
    seen = desktop.read()
    assert (seen.idle_s, seen.presenting, seen.why) == (0.0, False, "")
    assert desktop.source == "Wayland"
    desktop.close()


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/5")
    assert wayland_socket("wayland-1") == Path("/run/user/5/wayland-1")
    assert wayland_socket("/x/y") == Path("/x/y")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(SensorError, match="XDG_RUNTIME_DIR"):
        wayland_socket("wayland-1")
