"""A real Linux guest with the real worker, against a real coordinator: nothing is lost or twice.

The agent's decisions are not part of this; what it does to the VM is done here by hand.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job, expected_output
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.qemu.driver import QemuDriver
from officegrid.core.vm import VmState
from vm.guest import HOST, Guest, seed_iso

BOOTS_WITHIN_S = 150.0
NEVER = threading.Event()


@dataclass
class Desk:
    """A coordinator, and a desktop with a VM that has not been made yet."""

    grid: Grid
    settings: VmSettings
    driver: QemuDriver

    def console(self) -> str:
        try:
            return self.driver.files.console.read_text("utf-8", "replace")
        except OSError:
            return ""

    def says(self, words: str, within_s: float = BOOTS_WITHIN_S) -> None:
        wait_for(lambda: words in self.console(), f"the guest says {words!r}", within_s)

    def newest(self) -> float:
        """The guest's own time in the last line of its worker, in seconds since the epoch."""
        times = re.findall(r"^(\d{4}-\S+T\S+) ", self.console(), re.MULTILINE)
        return datetime.datetime.fromisoformat(times[-1]).timestamp()

    def done_beyond(self, job_id: str, records: int) -> int:
        return wait_for(
            lambda: done if (done := self.grid.job(job_id).done) > records else 0,
            f"more than {records} records are done",
            BOOTS_WITHIN_S,
        )


@pytest.fixture
def desk(guest: Guest, tmp_path: Path) -> Iterator[Desk]:
    grid = Grid(tmp_path / "grid", names=[HOST], lease_s=5)
    settings = guest.settings("GridMachine", tmp_path / "vm", seed_iso=tmp_path / "seed.iso")
    made = Desk(grid, settings, QemuDriver(settings))
    try:
        grid.start()
        seed_iso(tmp_path / "seed.iso", grid, "guest-1")
        made.driver.import_image()
        yield made
    finally:
        print(made.console()[-3000:], grid.tails())  # shown when the test fails
        made.driver.delete()
        grid.close()


def test_a_job_survives_pauses_saves_and_a_power_cut_exactly(desk: Desk, tmp_path: Path) -> None:
    grid, vm = desk.grid, desk.driver
    project = double_job(tmp_path / "job", records=900, pause_s=0.02, bad_every=100, unit_seconds=1)
    job = grid.submit(project)
    vm.start(NEVER)
    wait_for(lambda: vm.state().ready, "the guest is ready", BOOTS_WITHIN_S)
    done = desk.done_beyond(job, 0)

    # The power of the guest goes out, while much of what it wrote is in its memory only. The
    # disk's journal mends the disk; the worker has its identity, and no half a program.
    os.kill(vm.state().pids[0], signal.SIGKILL)
    wait_for(lambda: vm.state().state is VmState.OFF, "it is off", 10)
    vm.start(NEVER)
    desk.done_beyond(job, done)
    assert "GRID-SEED" not in desk.console(), "it joined again"

    # The user is back: paused at once, then saved and gone, in the middle of a unit.
    vm.pause()
    assert vm.state().state is VmState.PAUSED
    vm.save()
    assert vm.state().state is VmState.SAVED
    assert vm.state().pids == ()
    # Longer than the lease, long enough for the worker to notice.
    threading.Event().wait(8)
    began = time.monotonic()
    vm.start(NEVER)
    assert vm.state().ready, "it had been ready when it was saved"
    desk.done_beyond(job, grid.job(job).done)
    assert time.monotonic() - began < 60
    desk.says("worker.frozen", 30)
    # Nobody in the guest knew how long it was away but the clock chip.
    desk.says("GRID-CLOCK moved by", 30)
    assert abs(desk.newest() - time.time()) < 30
    assert desk.console().count("worker.started") == 1, "the very same worker went on"
    grid.wait_job(job, within_s=BOOTS_WITHIN_S)

    plain = expected_output(project)
    assert grid.output(job, tmp_path / "out.csv") == plain.output
    assert sorted(grid.quarantine(job)) == plain.bad
    workers = [m["name"] for m in grid.read("machines") if m["role"] == "worker"]
    assert workers == ["guest-1"]
