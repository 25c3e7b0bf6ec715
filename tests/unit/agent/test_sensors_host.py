"""Foreign CPU with real burners; memory; power supplies as Linux shows them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from desktops import burner, wait_until
from officegrid.agent.sensors.host import (
    CpuSample,
    HostSensor,
    Used,
    foreign_share,
    linux_on_battery,
    open_host_sensor,
)

CORES = psutil.cpu_count() or 1
SHELL = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print(child.pid, flush=True)
child.wait()
"""
SHORT_LIVED = """
import subprocess, sys
while True:
    subprocess.run([sys.executable, "-c", "for i in range(3_000_000): pass"])
"""


@pytest.fixture
def sensor() -> HostSensor:
    return open_host_sensor()


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def _share(sensor: HostSensor, own: list[int], span_s: float = 2.5) -> tuple[float, float]:
    """Foreign share as the sensor says, and the busy share of everybody, over a while."""
    sensor.read(own)
    before, began_s = psutil.cpu_times(), time.monotonic()
    while time.monotonic() - began_s < span_s:
        reading = sensor.read(own)
        time.sleep(0.1)
    after = psutil.cpu_times()
    idle_s = after.idle + after.iowait - before.idle - before.iowait
    total_s = sum(after[:8]) - sum(before[:8])
    assert reading.foreign_cpu is not None
    return reading.foreign_cpu, 1 - idle_s / total_s


def test_the_first_reading_knows_no_cpu_and_soon_there_is_one(sensor: HostSensor) -> None:
    first = sensor.read([])
    assert first.foreign_cpu is None
    assert first.memory_free_mb is not None
    began_s = time.monotonic()
    wait_until(lambda: sensor.read([]).foreign_cpu is not None, 3)
    assert time.monotonic() - began_s < 1.5


def test_the_same_load_is_foreign_or_ours(
    sensor: HostSensor, started: list[subprocess.Popen[bytes]]
) -> None:
    """Other tests may run beside this one, so the two views of the same seconds are compared."""
    with subprocess.Popen([sys.executable, "-c", SHELL], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        others = open_host_sensor()
        try:
            sensor.read([shell.pid])
            others.read([])
            began = psutil.Process(child).cpu_times().user
            began_s = time.monotonic()
            while time.monotonic() - began_s < 2.5:
                ours, theirs = sensor.read([shell.pid]), others.read([])
                time.sleep(0.1)
            used = psutil.Process(child).cpu_times().user - began
            share = used / (time.monotonic() - began_s) / CORES
            assert ours.foreign_cpu is not None
            assert theirs.foreign_cpu is not None
            assert theirs.foreign_cpu - ours.foreign_cpu == pytest.approx(share, abs=0.12)
            assert theirs.foreign_cpu > share - 0.12
        finally:
            os.kill(child, 9)
            shell.wait()


def test_low_priority_of_others_is_no_excuse(
    sensor: HostSensor, started: list[subprocess.Popen[bytes]]
) -> None:
    started.append(burner())
    psutil.Process(started[0].pid).nice(19)
    used = psutil.Process(started[0].pid).cpu_times().user
    foreign, _ = _share(sensor, [])
    used = psutil.Process(started[0].pid).cpu_times().user - used
    assert foreign >= used / 2.6 / CORES - 0.12


def test_short_lived_children_of_ours_are_ours(
    sensor: HostSensor, started: list[subprocess.Popen[bytes]]
) -> None:
    started.append(subprocess.Popen([sys.executable, "-c", SHORT_LIVED]))
    others = open_host_sensor()
    _share(sensor, [started[0].pid], 1.0)
    others.read([])
    foreign, _ = _share(sensor, [started[0].pid], 4.0)
    theirs = others.read([]).foreign_cpu
    assert theirs is not None
    assert foreign < theirs - 0.1


def test_own_processes_that_vanish_and_ids_that_never_were(
    sensor: HostSensor, started: list[subprocess.Popen[bytes]]
) -> None:
    process = burner()
    sensor.read([process.pid, 2**22 + 1, 0])
    time.sleep(0.6)
    assert sensor.read([process.pid, 2**22 + 1, 0]).foreign_cpu is not None
    process.kill()
    process.wait()
    for own in ([process.pid], [], [process.pid, os.getpid()]):
        reading = sensor.read(own)
        assert reading.foreign_cpu is not None
        assert 0 <= reading.foreign_cpu <= 1


def test_our_memory_counts_as_free(sensor: HostSensor) -> None:
    hog = subprocess.Popen(
        [sys.executable, "-c",
         "b = bytearray(400_000_000); b[::4096] = b'x' * len(b[::4096]); print(1, flush=True)\n"
         "import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert hog.stdout is not None
        hog.stdout.readline()
        without, with_it = open_host_sensor().read([]), sensor.read([hog.pid])
        assert without.memory_free_mb is not None
        assert with_it.memory_free_mb is not None
        # 381 MiB apart; others take and give memory meanwhile.
        assert with_it.memory_free_mb - without.memory_free_mb == pytest.approx(390, abs=150)
    finally:
        hog.kill()
        hog.wait()
        if hog.stdout is not None:
            hog.stdout.close()


def _used(cpu_s: float, parent: int = 1, created_s: float = 0.0) -> Used:
    return Used(cpu_s=cpu_s, parent=parent, created_s=created_s, rss_bytes=0)


def test_the_arithmetic_of_a_tree() -> None:
    def share(before: dict[int, Used], after: dict[int, Used]) -> float | None:
        return foreign_share(
            CpuSample(0.0, 1000.0, 100.0, 50.0, before), CpuSample(5.0, 1005.0, 110.0, 58.0, after)
        )

    assert share({}, {}) == pytest.approx(0.8)
    assert share({5: _used(1)}, {5: _used(4)}) == pytest.approx(0.5)
    # 6 used 2 s of its 90 in this span, then was waited for by 5.
    assert share({5: _used(1), 6: _used(88, 5)}, {5: _used(91)}) == pytest.approx(0.6)
    # Nobody of ours waited for 6: nothing more is known about it.
    assert share({6: _used(88, 1)}, {}) == pytest.approx(0.8)
    # New in this span: all its time counts. Found only now: none of it does.
    assert share({}, {7: _used(3, created_s=1001)}) == pytest.approx(0.5)
    assert share({}, {7: _used(900, created_s=10)}) == pytest.approx(0.8)
    # The id was used anew.
    assert share({7: _used(900)}, {7: _used(1, created_s=1002)}) == pytest.approx(0.7)
    # Ticks of ten milliseconds may add up to more than there was.
    assert share({5: _used(0)}, {5: _used(9)}) == 0.0
    assert foreign_share(CpuSample(0, 0, 5, 1, {}), CpuSample(0, 0, 5, 1, {})) is None


def test_often_asked_it_looks_once_a_second() -> None:
    now_s = 0.0
    sensor = HostSensor(clock=lambda: now_s)
    first = sensor.read([])
    now_s = 0.4
    assert sensor.read([]) is first
    now_s = 0.6
    before = sum(psutil.cpu_times())
    wait_until(lambda: sum(psutil.cpu_times()) > before + 0.05)  # the kernel's own clock ticks
    second = sensor.read([])
    assert second.foreign_cpu is not None
    now_s = 1.5
    assert sensor.read([]) is second
    now_s = 1.7
    assert sensor.read([]) is not second


def test_ten_readings_a_second_cost_little(sensor: HostSensor) -> None:
    own = [os.getpid(), os.getppid()]
    sensor.read(own)
    began_s, cpu_s, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began_s < 2.2:
        sensor.read(own)
        count += 1
        time.sleep(0.1)
    assert (time.process_time() - cpu_s) / (time.monotonic() - began_s) < 0.02


SUPPLIES = {
    "no battery": ({"AC": {"type": "Mains", "online": "0"}}, False),
    "nothing": ({}, False),
    "plugged in": (
        {"AC": {"type": "Mains", "online": "1"},
         "BAT0": {"type": "Battery", "status": "Charging"}}, False,
    ),
    "unplugged": (
        {"AC": {"type": "Mains", "online": "0"},
         "BAT0": {"type": "Battery", "status": "Discharging"}}, True,
    ),
    "unplugged, status not told": (
        {"AC": {"type": "Mains", "online": "0"},
         "BAT0": {"type": "Battery", "status": "Unknown"}}, True,
    ),
    "by USB C": (
        {"AC": {"type": "Mains", "online": "0"}, "ucsi": {"type": "USB", "online": "1"},
         "BAT0": {"type": "Battery", "status": "Full"}}, False,
    ),
    "only a battery, discharging": ({"BAT0": {"type": "Battery", "status": "Discharging"}}, True),
    "only a battery, full": ({"BAT0": {"type": "Battery", "status": "Full"}}, False),
    "only a battery, unknown": ({"BAT0": {"type": "Battery", "status": "Unknown"}}, None),
    "the mouse's battery": (
        {"hidpp_battery_0": {"type": "Battery", "scope": "Device", "status": "Discharging"}}, False,
    ),
    "battery taken out": (
        {"AC": {"type": "Mains", "online": "0"},
         "BAT0": {"type": "Battery", "present": "0", "status": "Unknown"}}, False,
    ),
    "one of two discharging": (
        {"BAT0": {"type": "Battery", "status": "Full"},
         "BAT1": {"type": "Battery", "status": "Discharging"}}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUPPLIES)
def test_power_supplies(tmp_path: Path, name: str) -> None:
    supplies, expected = SUPPLIES[name]
    for supply, files in supplies.items():
        (tmp_path / supply).mkdir()
        for file, text in files.items():
            (tmp_path / supply / file).write_text(text + "\n")
    assert linux_on_battery(tmp_path) is expected
    assert linux_on_battery(tmp_path / "none") is False
