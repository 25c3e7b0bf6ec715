"""`python -m bench peers`: ten workers that need the same new data at once, with and without peers.

A real grid on this machine: all bytes go over loopback, so the time says little about a network;
what the coordinator sends, and the CPU time that costs it, is what peers are for.
Uses the tests' own grid; `tests` must be on sys.path.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from bench.report import Figure, heading, show

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from acceptance.grid import Grid, Running, wait_for
from acceptance.projects import digest_job
from officegrid.wire.peers import PeerList

WORKERS = 10
MB = 1e6


def run(folder: Path, megabytes: int) -> None:
    """Print what the coordinator sent and what that cost it."""
    heading(f"{WORKERS} workers that need {megabytes} MB of new data at once")
    for name, options in (("without peers", ()), ("with peers", ("--peers-port", "0"))):
        _measure(folder / name.replace(" ", "-"), name, megabytes, options)


def _measure(folder: Path, name: str, megabytes: int, options: tuple[str, ...]) -> None:
    grid = Grid(folder, lease_s=30)
    grid.data.mkdir(parents=True, mode=0o700)
    (grid.data / "coordinator.toml").write_text("[peers]\nallow = true\n")
    try:
        grid.start()
        grid.join("me", "submitter")
        big = folder / "big"
        big.write_bytes(os.urandom(megabytes * 1_000_000))
        grid.ok("data", "push", "big", str(big), home="me", within_s=300)
        workers = [grid.worker(f"w{n}", *options) for n in range(WORKERS)]
        job = digest_job(folder / "job", records=WORKERS * 40, pause_s=1.0, unit_seconds=1.0)
        server = psutil.Process(grid.coordinator().pid)
        before = _cpu_s(server)
        began_s = time.monotonic()
        grid.submit(job)
        for one in workers:
            wait_for(lambda one=one: _is_ready(one), f"{one.name} has the data", 300)
        took_s, cpu_s = time.monotonic() - began_s, _cpu_s(server) - before
        time.sleep(2)  # they tell what they got within a second
        got = grid.connection().call("GET", "/v1/peers", reply=PeerList).got_bytes
    finally:
        grid.close()
    sent = (WORKERS * megabytes * MB - got) / MB
    show(
        Figure(name, f"coordinator sent {sent:.0f} MB, {sent / megabytes:.1f} copies"),
        Figure("", f"{cpu_s:.1f} s CPU of the coordinator, {took_s:.1f} s until all had it"),
    )


def _is_ready(worker: Running) -> bool:
    return "data.ready" in worker.text()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
