"""The guest's program from its start to READY and on, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from guest_kit import GuestFiles, attached, knows_ext4, seed_image

from officegrid.guest import main, seed, upkeep
from officegrid.guest.hardware import find_hardware_id
from officegrid.guest.main import Guest
from officegrid.guest.persona import Persona

SRC = Path(__file__).resolve().parents[3] / "src"
TOLD = {"instance_id": "iid-1", "name": "pc-1-vm", "url": "https://10.0.2.2:8443",
        "code": "og-secret"}  # fmt: skip


class Upkeep(upkeep.Upkeep):
    """Notes that it was begun; its thread would go on after the test."""

    begun: list[tuple[Persona, bool]]

    def begin(self) -> None:
        Upkeep.begun.append((self._persona, self._late))


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestFiles:
    monkeypatch.setattr(seed, "volume", knows_ext4)
    monkeypatch.setattr(upkeep, "Upkeep", Upkeep)
    Upkeep.begun = []
    made = GuestFiles(tmp_path / "root")
    made.put("dev/virtio-ports/grid.ready.0", "")
    return made


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The end at which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield line


def test_a_new_guest_is_ready_with_orders_for_its_worker(
    guest: GuestFiles, systemd: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with attached(guest, seed_image(tmp_path, **TOLD, settings={"slots": 2, "colour": "red"})):
        program = Guest(guest.place)
        program.begin()
    assert systemd.recv(100) == b"READY=1"
    assert guest.read("dev/virtio-ports/grid.ready.0") == "ready\n"
    assert guest.json("run/officegrid/worker/join.json")["kind"] == "join"
    assert "OFFICEGRID_SLOTS=2\n" in guest.read("run/officegrid/worker.env")
    assert Path(guest.place.start_service).exists()
    (who, late) = Upkeep.begun[0]
    assert (who.url, late) == ("https://10.0.2.2:8443", False)
    said = capsys.readouterr().out
    words = re.findall(r"^GRID-(\w+)", said, re.MULTILINE)
    assert words == ["IDENTITY", "TROUBLE", "SEED", "READY", "TIMES"]
    assert "'colour'" in said
    assert "og-secret" not in said
    times = dict(re.findall(r"([a-z+]+)=([0-9.]+)", said))
    assert {"kernel+init", "python", "seed", "identity", "files", "ready"} <= set(times)
    program.tick()
    assert systemd.recv(100) == b"WATCHDOG=1"


def test_without_a_seed_it_is_up_waits_and_then_goes_on(
    guest: GuestFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    now_s = time.monotonic()
    monkeypatch.setattr(main, "uptime_s", lambda: now_s)
    program = Guest(guest.place)
    program.begin()
    assert "GRID-IDENTITY wait: This guest has not joined" in capsys.readouterr().out
    assert guest.read("dev/virtio-ports/grid.ready.0") == "ready\n", "the host need not restart it"
    assert not Path(guest.place.start_service).exists(), "the worker has nothing to do yet"
    for _ in range(100):
        now_s += 0.5
        program.tick()
    assert capsys.readouterr().out == "", "not more often than once a minute"
    now_s += 15
    program.tick()
    assert "GRID-IDENTITY wait" in capsys.readouterr().out
    assert Upkeep.begun == []
    with attached(guest, seed_image(tmp_path, **TOLD)):
        now_s += 4
        program.tick()
        assert Upkeep.begun == []
        now_s += 1
        program.tick()
    assert [late for _, late in Upkeep.begun] == [True]
    assert Path(guest.place.start_service).exists()
    assert guest.json("run/officegrid/worker/join.json")["code"] == "og-secret"


def test_a_seed_that_cannot_be_used_is_told_and_looked_for_again(
    guest: GuestFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with attached(guest, seed_image(tmp_path, name="pc-1-vm")):
        Guest(guest.place).begin()
    said = capsys.readouterr().out
    assert "GRID-TROUBLE The seed disk cannot be used." in said
    assert "GRID-READY" in said


def test_a_guest_that_has_joined_needs_no_seed(
    guest: GuestFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.joined("iid-1", find_hardware_id(guest.place))
    told = {"instance_id": "iid-1", "url": "https://grid.firm:8443", "settings": {"slots": 4}}
    guest.put("var/lib/officegrid-guest/seeded.json", json.dumps(told))
    Guest(guest.place).begin()
    said = capsys.readouterr().out
    assert "GRID-IDENTITY keep" in said
    assert "GRID-TROUBLE" not in said
    assert not Path(guest.place.join).exists()
    assert Upkeep.begun[0][0].url == "https://grid.firm:8443"
    assert "OFFICEGRID_SLOTS=4\n" in guest.read("run/officegrid/worker.env")


def test_a_guest_whose_seed_disk_is_taken_out_behaves_as_before(
    guest: GuestFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"slots": 2, "proxy": "http://proxy.firm:3128", "start": "cron", "slot": 1}
    with attached(guest, seed_image(tmp_path, **TOLD, settings=settings)):
        Guest(guest.place).begin()
    first = guest.read("run/officegrid/worker.env")
    assert "HTTPS_PROXY=http://proxy.firm:3128\n" in first
    guest.joined("iid-1", find_hardware_id(guest.place))
    for name in ("worker.env", "start-service"):
        (guest.root / "run/officegrid" / name).unlink(missing_ok=True)
    capsys.readouterr()
    Guest(guest.place).begin()
    assert guest.read("run/officegrid/worker.env") == first
    assert Path(guest.place.cron).exists()
    assert Upkeep.begun[1][0].url == TOLD["url"]
    said = capsys.readouterr().out
    assert "GRID-IDENTITY keep" in said
    assert "joined another address" in said, "the profile's is another; see guest_kit"


def test_the_watchdog_is_not_told_while_the_upkeep_hangs(
    guest: GuestFiles, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.joined("iid-1", find_hardware_id(guest.place))
    program = Guest(guest.place)
    program.begin()
    assert systemd.recv(100) == b"READY=1"
    now_s = time.monotonic() + main.STUCK_AFTER_S - 5
    monkeypatch.setattr(main, "uptime_s", lambda: now_s)
    program.tick()
    assert systemd.recv(100) == b"WATCHDOG=1"
    now_s += 20
    program.tick()
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


def test_it_waits_for_disks_that_are_on_their_way(
    guest: GuestFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """udev(7): its queue file is there for as long as events are being worked on."""
    guest.joined("iid-0", find_hardware_id(guest.place))
    queue = guest.put("run/udev/queue", "")
    naps: list[float] = []
    with attached(guest, seed_image(tmp_path, **TOLD), "late"):

        def nap(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 3:
                (guest.root / "dev/late").rename(guest.root / "dev/sr0")
                queue.unlink()

        # Not `main.time.sleep`: that is everybody's, and other threads of the test run sleep too.
        monkeypatch.setattr(main, "time", SimpleNamespace(sleep=nap))
        Guest(guest.place).begin()
        (guest.root / "dev/sr0").rename(guest.root / "dev/late")
    assert len(naps) == 3
    assert guest.json("run/officegrid/worker/join.json")["instance_id"] == "iid-1"


def test_the_host_is_told_later_if_its_port_comes_later(guest: GuestFiles) -> None:
    port = Path(guest.place.ready_port)
    port.unlink()
    program = Guest(guest.place)
    program.begin()
    program.tick()
    port.write_text("")
    program.tick()
    assert port.read_text() == "ready\n"


def test_a_full_disk_is_told(
    guest: GuestFiles, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    guest.joined("iid-1", find_hardware_id(guest.place))
    Path(guest.place.start_service).parent.mkdir(parents=True, exist_ok=True)
    Path(guest.place.worker_env).mkdir()
    Guest(guest.place).begin()
    said = capsys.readouterr().out
    assert "GRID-TROUBLE The guest cannot write" in said
    assert "GRID-READY" in said
    assert Upkeep.begun == []


def test_it_brings_along_little() -> None:
    """Each of these costs an emulated processor a tenth of a second or more."""
    code = "import officegrid.guest.main, sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )  # fmt: skip
    loaded = set(done.stdout.split())
    heavy = {"dataclasses", "inspect", "subprocess", "pathlib", "ssl", "asyncio", "logging",
             "shutil", "tempfile", "datetime", "ipaddress", "urllib.parse", "click", "pydantic",
             "httpx2", "psutil", "officegrid.guest.upkeep", "officegrid.transport"}  # fmt: skip
    assert loaded & heavy == set()
    ours = {name for name in loaded if name.startswith("officegrid.")}
    assert {name.split(".")[1] for name in ours} == {"core", "guest"}
