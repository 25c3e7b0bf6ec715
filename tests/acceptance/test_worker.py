"""One worker per machine: it starts once, drains, stops cleanly, dies cleanly, thaws and waits."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from pathlib import Path

import psutil

from acceptance.grid import LEASE_S, Grid, Running, wait_for
from acceptance.projects import double_job, expected_output

FREEZE_S = 7.0  # longer than the lease, and than what the freeze detector lets pass


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def _programs(worker: Running) -> list[psutil.Process]:
    """The processes that run the user's code."""
    return [child for child in worker.children() if "harness.py" in " ".join(child.cmdline())]


def test_a_frozen_worker_notices_and_its_late_commit_does_no_harm(
    grid: Grid, tmp_path: Path
) -> None:
    job_file = double_job(
        tmp_path / "p", records=1200, pause_s=0.004, bad_every=100, unit_seconds=1
    )
    expected = expected_output(job_file)
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1")
    grid.wait_done(job_id, 40)
    w1.send(signal.SIGSTOP)
    frozen_at = time.monotonic()
    assert grid.machine("w1").units_running > 0, "it must hold a unit for this test"
    w2 = grid.worker("w2")
    view = grid.wait_job(job_id)
    before = grid.output(job_id, tmp_path / "before.csv")
    assert before == expected.output
    wait_for(lambda: time.monotonic() - frozen_at > FREEZE_S, "frozen long enough", 20)
    w1.send(signal.SIGCONT)
    w1.wait_text("worker.frozen", 15)
    wait_for(
        lambda: text if "lease_lost" in (text := w1.text()) or "commit_refused" in text else "",
        "w1 learns that its lease is gone",
        15,
    )
    assert grid.job(job_id).model_dump() == view.model_dump(), "the late worker changed something"
    assert grid.output(job_id, tmp_path / "after.csv") == before
    assert w2.stop() == 0
    second = double_job(tmp_path / "q", records=100, name="next")
    assert grid.wait_job(grid.submit(second)).done == 100, "the thawed worker goes on working"


def test_a_second_instance_is_refused_with_words_and_exit_code_1(grid: Grid) -> None:
    first = grid.worker("w1")
    second = grid.run("worker", home="w1")
    assert second.returncode == 1
    assert "A worker is already running on this machine" in second.stderr
    assert str(first.pid) in second.stderr
    assert "--slots" in second.stderr
    by_cron = grid.run("worker", "--drain", home="w1")
    assert by_cron.returncode == 0
    assert "already running" in by_cron.stderr
    assert first.stop() == 0
    assert grid.run("worker", "--drain", home="w1").returncode == 0, "the lock is free again"


def test_drain_works_until_nothing_is_left_and_exits_0(grid: Grid, tmp_path: Path) -> None:
    one = grid.submit(double_job(tmp_path / "p", records=300, name="one", bad_every=100))
    two = grid.submit(double_job(tmp_path / "q", records=300, name="two"))
    grid.join("w1", "worker")
    done = grid.run("worker", "--drain", home="w1")
    assert done.returncode == 0, done.stderr
    assert "worker.drained" in done.stderr
    assert [grid.job(job_id).state for job_id in (one, two)] == ["finished", "finished"]
    assert grid.job(one).quarantined == 3


def test_sigterm_gives_units_back_at_once_and_leaves_no_child(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=800, pause_s=0.01, unit_seconds=20)
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1")
    wait_for(lambda: grid.job(job_id).leased > 100, "a long unit runs")
    children = w1.children()
    assert _programs(w1)
    w1.send(signal.SIGTERM)
    wait_for(lambda: grid.job(job_id).units_running == 0, "its units are free again", 2.0)
    assert w1.wait(6.5) == 0
    wait_for(lambda: _gone(children), "no child is left", 3)
    story = grid.story(job_id)
    assert not [line for line in story if "come back" in line], "counted as the machine's fault"
    assert not grid.machine("w1").online
    left = grid.job(job_id)
    assert left.pending == left.total - left.done
    grid.worker("w2", "--slots", "4")
    grid.wait_job(job_id)
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output


def test_a_killed_worker_leaves_no_child_running(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=100, pause_s=60)
    begun = tmp_path / "begun"
    program = job_file.parent / "program.py"
    note = f'open({str(begun)!r}, "a").write("x")\n    time.sleep(PAUSE_S)'
    program.write_text(program.read_text().replace("time.sleep(PAUSE_S)", note))
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1", "--slots", "2")
    # Deep in a record no program looks whether its worker is still there.
    wait_for(lambda: begun.exists() and len(begun.read_text()) == 2, "two programs are at work")
    assert len(_programs(w1)) == 2
    children = w1.children()
    assert len(children) >= 3, "two programs, and the warden that guards them"
    w1.kill()
    wait_for(lambda: _gone(children), "no child is left", 5)
    assert grid.job(job_id).state == "running"


def test_slots_work_on_units_at_the_same_time(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=700, pause_s=0.01)
    output = expected_output(job_file).output
    begun = tmp_path / "begun"
    begun.touch()
    program = job_file.parent / "program.py"
    note = f'open({str(begun)!r}, "a").write(f"{{os.getpid()}}\\n")\n    time.sleep(PAUSE_S)'
    program.write_text("import os\n" + program.read_text().replace("time.sleep(PAUSE_S)", note))
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1", env={"OFFICEGRID_SLOTS": "2"})  # the same as --slots 2
    wait_for(lambda: len(_programs(w1)) == 2, "two programs run")
    grid.wait_job(job_id)
    assert grid.machine("w1").facts["slots"] == 2
    order = begun.read_text().split()
    changes = sum(one != other for one, other in pairwise(order))
    assert changes > 50, "one slot's records come after the other's"
    assert grid.output(job_id, tmp_path / "out.csv") == output


def test_a_worker_waits_for_a_coordinator_that_is_away(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=800, pause_s=0.005)
    job_id = grid.submit(job_file)
    w1 = grid.worker("w1")
    known = grid.wait_done(job_id, 30).done
    assert grid.coordinator().stop() == 0
    stopped_at = time.monotonic()
    w1.wait_text("coordinator_away")
    wait_for(lambda: time.monotonic() - stopped_at > LEASE_S + 0.5, "all leases have run out", 10)
    grid.start()
    assert grid.job(job_id).done >= known
    assert grid.wait_job(job_id).done == 800
    w1.wait_text("coordinator_back")
    assert w1.running
    story = grid.story(job_id)
    assert not [line for line in story if "come back" in line], "counted as the machine's fault"
    assert "commit_failed" not in w1.text(), "finished work was thrown away"
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output


def test_sigterm_while_the_coordinator_is_away_still_ends_the_worker(
    grid: Grid, tmp_path: Path
) -> None:
    job_id = grid.submit(double_job(tmp_path / "p", records=3000, pause_s=0.01))
    w1 = grid.worker("w1")
    grid.wait_done(job_id, 16)
    children = w1.children()
    grid.coordinator().kill()
    w1.wait_text("coordinator_away", 40)
    w1.send(signal.SIGTERM)
    assert w1.wait(15) == 0
    wait_for(lambda: _gone(children), "no child is left", 3)
