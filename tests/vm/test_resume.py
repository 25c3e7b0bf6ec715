"""A VM that was saved in the middle of its work and comes back two hours later.

The two hours pass on the clock of the restored QEMU only (libfaketime): its emulated clock chip is
ahead, as after a real absence, while the guest believes that no time has passed. The leases of the
guest really expire, and another worker really does its records.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job, expected_output
from officegrid.agent.drivers.qemu.driver import QemuDriver
from officegrid.coordinator.pki import ensure_pki
from officegrid.core.vm import VmState
from parts import without
from vm.guest import Guest
from vm.netlab import NEVER, UP_WITHIN_S, A, Lab, LabGuest, dropped

AWAY_S = 7200
LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
HEARD_WITHIN_S = 20.0
"""From the order to restore. Measured under emulation on two busy cores: 4 s, and 6 s to a commit.
A claim on a dead connection would wait for 25 s at least."""
COMMITS_WITHIN_S = 60.0


def test_a_worker_saved_for_two_hours_does_no_harm_and_is_of_use_at_once(
    guest: Guest, tmp_path: Path
) -> None:
    late = late_qemu(tmp_path)
    with Lab(tmp_path / "lab") as lab:
        lab.serve_dhcp(A)
        grid = lab.grid(tmp_path / "grid", lease_s=3)
        pc = lab.guest(grid, guest, A, "pc-1")
        held_file = double_job(
            tmp_path / "held", records=400, pause_s=0.03, bad_every=90, unit_seconds=2
        )
        held = grid.submit(held_file)
        wait_for(lambda: len(pc.committed(held)) >= 2, "the guest works", UP_WITHIN_S)
        pinned_file = versioned_job(tmp_path / "versions")
        pinned_plain = expected_output(pinned_file)
        pinned = grid.submit(pinned_file)

        # Saved in the middle of a unit. On the way back, its connections are forgotten.
        assert grid.machine("pc-1").units_running >= 1
        with dropped(lab, pc.address()):
            pc.driver.save()
            assert pc.driver.state().state is VmState.SAVED
            before = pc.committed(held)
            let_another_do(grid, held)
            newest_file = versioned_job(tmp_path / "versions", newer=True)
            newest = grid.submit(newest_file)
            renew_certificate(grid)
            restore(pc, late, grid, [pinned, newest])
        check_clock(pc)

        assert pc.committed(held) == before, "it committed records that another worker had done"
        plains = {held: expected_output(held_file), pinned: pinned_plain,
                  newest: expected_output(newest_file)}  # fmt: skip
        for job, plain in plains.items():
            grid.wait_job(job, within_s=UP_WITHIN_S)
            assert grid.output(job, tmp_path / f"{job}.csv") == plain.output
            assert sorted(grid.quarantine(job)) == plain.bad
        # Each by the version of the program that was the newest when it was submitted.
        assert pc.committed(pinned)
        assert pc.committed(newest)
        assert plains[pinned].output.startswith(b"id,double,text\n0,0,PLAIN\n1,2,")
        assert plains[newest].output.startswith(b"id,double,text\n0,0,PLAIN\n1,3,")
        assert pc.console().count("worker.started") == 1, "the very same worker went on"


def late_qemu(folder: Path) -> str:
    """A program that runs QEMU two hours later; its waits and timers stay as they are."""
    if not LIBRARY.exists() or (qemu := shutil.which("qemu-system-x86_64")) is None:
        without("libfaketime (Debian: faketime) or QEMU is not installed")
    path = folder / "late-qemu"
    path.write_text(
        f"#!/bin/sh\nexport LD_PRELOAD={LIBRARY} FAKETIME=+{AWAY_S}s\n"
        f'export FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1\nexec {qemu} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def versioned_job(folder: Path, *, newer: bool = False) -> Path:
    """The same job each time, behind others; its newer program trebles."""
    job_file = double_job(
        folder, records=150, pause_s=0.03, bad_every=90, unit_seconds=2,
        policy=f"priority = {-20 if newer else -10}\n",
    )  # fmt: skip
    if newer:
        program = folder / "program.py"
        text = program.read_text(encoding="utf-8")
        assert "2 * int" in text
        program.write_text(text.replace("2 * int", "3 * int"), encoding="utf-8")
    return job_file


def let_another_do(grid: Grid, job: str) -> None:
    """The guest's leases run out, and a worker elsewhere finishes the job."""
    wait_for(
        lambda: [line for line in grid.story(job) if "pc-1 went silent" in line],
        "the guest's leases run out",
    )
    other = grid.worker("other")
    grid.wait_job(job)
    other.stop()


def renew_certificate(grid: Grid) -> None:
    """The coordinator comes back with a certificate that the guest's stale clock must refuse."""
    grid.coordinator().stop()
    folder = grid.data / "pki"
    (folder / "server.pem").unlink()
    # A new certificate is made valid from one day before: so this one from a second ago.
    ensure_pki(folder, [*grid.names], time.time() + 86400 - 1)
    grid.start()


def restore(pc: LabGuest, qemu: str, grid: Grid, jobs: list[str]) -> None:
    """Restore with another QEMU, and wait until the guest has committed a unit of the jobs."""
    options = {**pc.driver.settings.options, "binary": qemu}
    pc.driver = QemuDriver(replace(pc.driver.settings, options=options))
    began = time.time()
    pc.driver.start(NEVER)
    up_s = time.time() - began
    wait_for(
        lambda: grid.machine("pc-1").last_seen > began, "the guest is heard of", HEARD_WITHIN_S
    )
    heard_s = time.time() - began
    wait_for(
        lambda: any(pc.committed(job) for job in jobs), "the guest commits a unit", COMMITS_WITHIN_S
    )
    print(f"restore ordered; {up_s:.2f} s: the guest runs; {heard_s:.2f} s: it is heard of; "
          f"{time.time() - began:.2f} s: it has committed a unit")  # fmt: skip


def check_clock(pc: LabGuest) -> None:
    """It stepped by the time that it was away, and the worker knew what to make of that."""
    [moved_s] = [int(found) for found in re.findall(r"GRID-CLOCK moved by (-?\d+) s", pc.console())]
    assert AWAY_S <= moved_s < AWAY_S + 300
    [frozen_s] = [int(found) for found in re.findall(r"worker\.frozen seconds=(\d+)", pc.console())]
    assert abs(frozen_s - moved_s) < 30
    assert "worker.lease_lost" in pc.console(), "it was told that its lease is lost"
