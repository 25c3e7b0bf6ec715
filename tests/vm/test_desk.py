"""The whole chain: agent, real VM, worker inside, real job; and every moment at which somebody
may come back, or the power may go. The job's output is exact through all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job, expected_output
from vm.desk import Desk
from vm.guest import HOST, Guest

pytestmark = pytest.mark.timeout(600)
RECORDS = 4000


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    made = Grid(tmp_path / "grid", lease_s=10, names=[HOST])
    made.start()
    yield made
    made.close()


@pytest.fixture
def desk(tmp_path: Path, grid: Grid, guest: Guest) -> Iterator[Desk]:
    made = Desk(tmp_path, grid, guest)
    made.start()
    yield made
    made.close()


def _submit(grid: Grid, folder: Path, pause_s: float = 0.02) -> tuple[str, Path]:
    job_file = double_job(
        folder, records=RECORDS, pause_s=pause_s, bad_every=500, unit_seconds=1.0
    )  # fmt: skip
    return grid.submit(job_file), job_file


def _progress(desk: Desk, job_id: str, more: int = 20, within_s: float = 150.0) -> int:
    """Wait until the desk's worker, the only one there is, has committed `more` records."""
    before = desk.grid.job(job_id).done
    return desk.grid.wait_done(job_id, before + more, within_s).done


def _finish(desk: Desk, job_id: str, job_file: Path) -> None:
    """Let other machines do the rest, and compare with a plain run."""
    for number in range(3):
        desk.grid.worker(f"server-{number}", "--slots", "4")
    view = desk.grid.wait_job(job_id, within_s=120)
    expected = expected_output(job_file)
    assert view.quarantined == len(expected.bad)
    assert sorted(desk.grid.quarantine(job_id)) == expected.bad
    assert desk.grid.output(job_id, job_file.parent / "got.csv") == expected.output


def test_a_day_at_a_desk(desk: Desk, tmp_path: Path) -> None:
    job_id, job_file = _submit(desk.grid, tmp_path / "job")
    assert desk.process() is None

    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)
    worker = desk.worker()
    assert worker is not None

    # Back in the middle of a unit: paused, saved, gone; its units are free at once.
    desk.person.touch()
    desk.wait_saved()
    wait_for(lambda: desk.grid.job(job_id).units_running == 0, "the units are free", 5)
    assert desk.boots() == 1

    # Away again: from the saved state, and the same worker goes on.
    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)
    again = desk.worker()
    assert again is not None
    assert again.id == worker.id
    assert desk.boots() == 1

    # Back during the save: it is finished, not given up, and the VM starts again after it.
    desk.person.touch()
    wait_for(lambda: desk.files.memory.exists() or desk.process() is None, "the save begins", 10)
    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)

    # Back during the restore: nothing is lost, and the PC is free.
    desk.person.touch()
    desk.wait_saved()
    desk.person.lock()
    wait_for(lambda: desk.process() is not None, "the restore begins", 30)
    desk.person.touch()
    desk.wait_gone()
    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)
    assert desk.boots() == 1

    desk.person.touch()
    desk.wait_saved()
    view = desk.view().desk
    assert view is not None
    assert view.interruptions >= 4
    assert view.harvested_s > 1
    assert view.cpu_back is not None
    assert view.cpu_back.longest_ms < 10_000
    assert view.memory_back is not None
    _finish(desk, job_id, job_file)


def test_power_cuts_of_vm_and_agent(desk: Desk, tmp_path: Path) -> None:
    job_id, job_file = _submit(desk.grid, tmp_path / "job")
    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)

    # The VM dies: booted from cold, and its worker, who kept its identity, goes on.
    process = desk.process()
    assert process is not None
    process.kill()
    wait_for(lambda: desk.boots() == 2, "the guest has booted again", 200)
    _progress(desk, job_id)

    # The agent dies: the next one finds the VM and lets it run.
    process = desk.wait_up()
    desk.kill_agent()
    assert process.is_running()
    desk.start()
    desk.wait_up()
    assert desk.process() == process
    _progress(desk, job_id)
    assert desk.boots() == 2

    # The agent dies while somebody comes back: the next one gives the PC back at once.
    desk.kill_agent()
    desk.person.touch()
    desk.start()
    desk.wait_saved()

    # Both die while nobody looks.
    desk.person.lock()
    process = desk.wait_up()
    desk.kill_agent()
    process.kill()
    desk.start()
    wait_for(lambda: desk.boots() == 3, "the guest has booted a third time", 200)
    desk.person.touch()
    desk.wait_gone()
    _finish(desk, job_id, job_file)


def test_a_saved_state_that_is_damaged_or_foreign_costs_a_cold_boot(
    desk: Desk, tmp_path: Path
) -> None:
    job_id, job_file = _submit(desk.grid, tmp_path / "job")
    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)
    desk.person.touch()
    desk.wait_saved()

    # One bit of the saved memory flips.
    memory = desk.files.memory
    with memory.open("r+b") as file:
        file.seek(memory.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    desk.person.lock()
    wait_for(lambda: desk.boots() == 2, "a cold boot instead of a damaged state", 200)
    _progress(desk, job_id)
    assert any("cannot be used" in text for text in desk.story())

    # Another version of QEMU wrote it.
    desk.person.touch()
    desk.wait_saved()
    stamp = json.loads(desk.files.stamp.read_text())
    desk.files.stamp.write_text(json.dumps({**stamp, "qemu_version": "6.0.0"}))
    desk.person.lock()
    wait_for(lambda: desk.boots() == 3, "a cold boot instead of a foreign state", 200)
    _progress(desk, job_id)
    desk.person.touch()
    desk.wait_saved()
    _finish(desk, job_id, job_file)


def test_stopping_the_agent_saves_the_vm_and_deleting_the_vm_by_hand_is_survived(
    desk: Desk, tmp_path: Path
) -> None:
    job_id, job_file = _submit(desk.grid, tmp_path / "job")
    desk.person.lock()
    desk.wait_up()
    _progress(desk, job_id)
    assert desk.agent is not None
    assert desk.agent.stop(within_s=60) == 0
    assert desk.process() is None
    assert desk.files.stamp.exists()

    for path in desk.files.folder.iterdir():
        path.unlink()
    desk.start()
    desk.wait_up()
    _progress(desk, job_id)
    desk.person.touch()
    desk.wait_saved()
    _finish(desk, job_id, job_file)
