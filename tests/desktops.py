"""Real parts of a Linux desktop for tests: X servers, message buses, services on them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parts import need, without

SYSTEM_PYTHON = "/usr/bin/python3"
MOCK = "org.freedesktop.DBus.Mock"


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return as soon as the condition holds; fail when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


class XServer:
    """An X server without a screen; its idle time survives clients that leave."""

    def __init__(self, *options: str) -> None:
        need("Xvfb", "xdotool")
        read, write = os.pipe()
        self.process = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", "640x480x24", "-nolisten", "tcp",
             "-noreset", *options],
            pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(write)
        try:
            said = b""
            while not said.endswith(b"\n"):  # it ends when the other end is closed before
                ready, _, _ = select.select([read], [], [], 20)
                assert ready, "Xvfb did not start"
                said += os.read(read, 16)
            self.display = ":" + said.decode().strip()
        finally:
            os.close(read)

    def do(self, *words: str) -> None:
        """Type or move with xdotool."""
        subprocess.run(
            ["xdotool", *words], env={**os.environ, "DISPLAY": self.display}, check=True, timeout=20
        )

    def kill(self) -> None:
        """As a crash does it: the socket stays behind."""
        self.process.kill()
        self.process.wait()


@contextmanager
def x_server(*options: str) -> Iterator[XServer]:
    server = XServer(*options)
    try:
        yield server
    finally:
        server.kill()
        number = server.display[1:]
        for left in (Path(f"/tmp/.X11-unix/X{number}"), Path(f"/tmp/.X{number}-lock")):
            left.unlink(missing_ok=True)


@contextmanager
def message_bus(folder: Path) -> Iterator[str]:
    """A private bus; gives its address."""
    need("dbus-daemon")
    address = f"unix:path={folder}/bus"
    with subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", f"--address={address}", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline(), "dbus-daemon did not start"
            yield address
        finally:
            daemon.kill()


@contextmanager
def mock_service(address: str, *arguments: str, system: bool = False) -> Iterator[None]:
    """python-dbusmock on that bus: the name, path and interface, or --template."""
    found = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import dbusmock"], check=False, capture_output=True
    )
    if found.returncode != 0:
        without("python3-dbusmock is not installed")
    kind = "SYSTEM" if system else "SESSION"
    command = [SYSTEM_PYTHON, "-m", "dbusmock", f"--{kind.lower()}", *arguments]
    env = {**os.environ, f"DBUS_{kind}_BUS_ADDRESS": address}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as service:
        try:
            yield
        finally:
            service.kill()


def call_mock(bus: Any, service: str, path: str, method: str, signature: str, *body: Any) -> None:
    """One of the mock's own methods, waited for until the service is up."""
    from officegrid.agent.sensors.base import SensorError

    deadline_s = time.monotonic() + 20
    while True:
        try:
            bus.call(service, path, MOCK, method, signature, body)
            return
        except SensorError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def burner() -> subprocess.Popen[bytes]:
    """A process that keeps one core busy."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])
