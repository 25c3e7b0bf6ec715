"""`kill -9` of anything at any moment: the job finishes, with the output of a quiet day."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job, expected_output, write_job
from acceptance.proxy import Proxy

_STATED = os.environ.get("OFFICEGRID_KILL_SEED")
SEEDS = [int(_STATED)] if _STATED else [11, 22, 33]
RECORDS = 1200
PAUSE_S = 0.002


def _moment(seed: int) -> tuple[int, random.Random]:
    """After how many finished records to strike."""
    print(f"replay: OFFICEGRID_KILL_SEED={seed} pytest {__file__}")
    source = random.Random(seed)
    return source.randint(1, RECORDS // 2), source


def _strike_anywhere(source: random.Random) -> None:
    # The moment of the fault, not a wait: anywhere in a unit, an upload or a commit.
    time.sleep(source.uniform(0, 0.2))


def _check(grid: Grid, job_id: str, job_file: Path) -> None:
    expected = expected_output(job_file)
    view = grid.wait_job(job_id)
    assert view.total == RECORDS
    assert view.done + view.quarantined == RECORDS
    assert view.quarantined == len(expected.bad)
    assert grid.output(job_id, job_file.parent / "fetched.csv") == expected.output
    assert sorted(grid.quarantine(job_id)) == expected.bad


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_worker_costs_nothing_but_time(grid: Grid, tmp_path: Path, seed: int) -> None:
    records, source = _moment(seed)
    job_file = double_job(tmp_path / "p", records=RECORDS, pause_s=PAUSE_S, bad_every=250)
    for name in ("w1", "w2"):  # now: the job would be over when the second one has joined
        grid.join(name, "worker")
    job_id = grid.submit(job_file)
    workers = [grid.worker("w1"), grid.worker("w2")]
    grid.wait_done(job_id, records)
    _strike_anywhere(source)
    source.choice(workers).kill()
    grid.worker("w3")
    _check(grid, job_id, job_file)
    assert any("come back" in line or "also given" in line for line in grid.story(job_id))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_coordinator_goes_on_where_it_was(grid: Grid, tmp_path: Path, seed: int) -> None:
    records, source = _moment(seed)
    job_file = double_job(tmp_path / "p", records=RECORDS, pause_s=PAUSE_S, bad_every=250)
    for name in ("w1", "w2"):  # now: the job would be over when the second one has joined
        grid.join(name, "worker")
    job_id = grid.submit(job_file)
    workers = [grid.worker("w1"), grid.worker("w2")]
    known = grid.wait_done(job_id, records).done
    _strike_anywhere(source)
    grid.coordinator().kill()
    grid.start()
    assert grid.job(job_id).done >= known, "an acknowledged commit was lost"
    _check(grid, job_id, job_file)
    assert all(worker.running for worker in workers)


@pytest.mark.parametrize("seed", SEEDS)
def test_coordinator_and_worker_killed_at_once(grid: Grid, tmp_path: Path, seed: int) -> None:
    records, source = _moment(seed)
    job_file = double_job(tmp_path / "p", records=RECORDS, pause_s=PAUSE_S, bad_every=250)
    job_id = grid.submit(job_file)
    worker = grid.worker("w1", "--slots", "2")
    known = grid.wait_done(job_id, records).done
    _strike_anywhere(source)
    grid.coordinator().kill()
    worker.kill()
    grid.start()
    grid.worker("w1", "--slots", "2")
    assert grid.job(job_id).done >= known, "an acknowledged commit was lost"
    _check(grid, job_id, job_file)


def test_a_killed_upload_is_resumed_and_sends_only_what_is_missing(
    grid: Grid, tmp_path: Path
) -> None:
    source = random.Random(5)
    lines = "".join(f"{n},{source.randbytes(600).hex()}\n" for n in range(40_000))
    job = """
        name = "big"
        python = "program:record"
        [input]
        path = "in.csv"
        """
    program = "def record(row):\n    return {'id': row['id']}\n"
    job_file = write_job(
        tmp_path / "p", job, {"program.py": program, "in.csv": "id,text\n" + lines}
    )
    grid.join("me", "submitter")
    with Proxy(grid.port, up_bytes_per_s=4e6) as slow:
        grid.redirect("me", slow.port)
        upload = grid.begin("upload", "submit", str(job_file))
        wait_for(lambda: _stored_bytes(grid) > 6_000_000, "a part of the input is uploaded")
        upload.kill()
    stored = _stored_bytes(grid)
    with Proxy(grid.port) as fast:
        grid.redirect("me", fast.port)
        grid.ok("submit", str(job_file), home="me")
        second = fast.up_bytes
    total = _stored_bytes(grid)
    assert stored < 0.9 * total, "the upload was killed too late for this test"
    assert second < total - stored + 1_000_000
    assert grid.job("big").total == 40_000


def _stored_bytes(grid: Grid) -> int:
    folder = grid.data / "objects"
    found = [path for path in folder.glob("??/*") if path.parent.name != "tmp"]
    return sum(path.stat().st_size for path in found)


def test_watching_can_be_interrupted_and_taken_up_later(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    grid = make_grid()
    grid.start()
    job_file = double_job(tmp_path / "p", records=1500, pause_s=PAUSE_S, bad_every=300)
    expected = expected_output(job_file)
    grid.join("me", "submitter")
    watcher = grid.begin("watcher", "submit", str(job_file), "--watch")
    wait_for(grid.jobs, "the job is there")
    worker = grid.worker("w1")
    grid.wait_done("double", 50)
    watcher.kill()
    assert not (job_file.parent / "out.csv").exists()
    again = grid.begin("again", "watch", "double")
    again.wait_text("double:")
    grid.coordinator().kill()
    grid.start()
    assert again.wait(40) == 3, again.text()
    assert worker.running
    done = grid.run("watch", "double", "--json", home="me")
    assert done.returncode == 3
    assert json.loads(done.stdout)["done"] == 1500 - len(expected.bad)
    assert grid.output("double", job_file.parent / "out.csv") == expected.output
    left = {p.name for p in job_file.parent.iterdir() if not p.name.startswith(".officegrid-")}
    assert left == {"in.csv", "job.toml", "out.csv", "program.py"}
