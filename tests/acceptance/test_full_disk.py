"""A full disk anywhere: clear words, nothing lost, and the work goes on once there is room."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, wait_for
from acceptance.projects import double_job, expected_output, write_job

FULL_WORDS = ("disk is full", "No space left")


@contextlib.contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[Path]:
    """`folder` as a disk of its own; needs root, as every mount does."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        reason = "needs root and mount(8) to make a small disk"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "none", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        # Lazily: a process that the test is about to kill may still have files open there.
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path, left_bytes: int) -> Iterator[None]:
    """The disk of `folder` with only so much room left."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.write(b"\0" * max(0, shutil.disk_usage(folder).free - left_bytes))
    try:
        yield
    finally:
        filler.unlink()


def _noise_job(folder: Path, megabytes: int, name: str) -> Path:
    """A job whose input does not compress below so many megabytes."""
    source = random.Random(name)
    rows = "".join(
        f"{n},{source.randbytes(500).hex()}\n" for n in range(megabytes * 1_000_000 // 500)
    )
    job = f"""
        name = "{name}"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        """
    code = "def record(row):\n    return {'id': row['id'], 'length': str(len(row['text']))}\n"
    return write_job(folder, job, {"program.py": code, "in.csv": "id,text\n" + rows})


def _said_full(text: str) -> bool:
    return any(words in text for words in FULL_WORDS)


def test_a_full_disk_of_the_coordinator_refuses_a_submit_and_loses_nothing(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    grid = make_grid()
    with small_disk(grid.data, 40):
        grid.start()
        earlier = grid.submit(double_job(tmp_path / "p", records=50, name="earlier"))
        big = _noise_job(tmp_path / "q", 8, "big")
        with filled(grid.data, 3_000_000):
            refused = grid.run("submit", str(big), home="me")
            assert refused.returncode == 1
            assert "disk is full" in refused.stderr
            assert "free space" in refused.stderr.lower()
            assert "Traceback" not in refused.stderr
            assert grid.coordinator().running
            assert [job.id for job in grid.jobs()] == [earlier]
        grid.worker("w1")
        done = grid.watch_submit(big)
        assert done.returncode == 0, done.stderr
        assert (big.parent / "out.csv").read_bytes().count(b"\n") == 16_001
        assert grid.wait_job(earlier).done == 50
        grid.close()


def test_a_job_stands_still_while_the_coordinators_disk_is_full_and_then_completes(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    grid = make_grid()
    with small_disk(grid.data, 40):
        grid.start()
        job_file = double_job(tmp_path / "p", records=1500, pause_s=0.004, bad_every=100)
        expected = expected_output(job_file)
        job_id = grid.submit(job_file)
        w1 = grid.worker("w1")
        known = grid.wait_done(job_id, 40).done
        with filled(grid.data, 0):
            text = w1.wait_text("coordinator_away", 30)
            assert _said_full(text) or "cannot save to its database" in text, text
            assert w1.running
            assert grid.coordinator().running
            assert known <= grid.job(job_id).done < 1500
        view = grid.wait_job(job_id)
        assert view.done + view.quarantined == 1500
        assert grid.output(job_id, tmp_path / "out.csv") == expected.output
        assert sorted(grid.quarantine(job_id)) == expected.bad
        grid.close()


def test_a_file_size_limit_of_the_coordinator_is_like_a_full_disk(
    grid: Grid, tmp_path: Path
) -> None:
    """The same without root: files may not grow, then they may."""
    big = _noise_job(tmp_path / "q", 3, "big")
    grid.join("me", "submitter")
    server = grid.coordinator().pid
    before = resource.prlimit(server, resource.RLIMIT_FSIZE)
    resource.prlimit(server, resource.RLIMIT_FSIZE, (400_000, before[1]))
    refused = grid.run("submit", str(big), home="me")
    assert refused.returncode == 1, refused.stderr
    assert "could not store an object" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert grid.jobs() == []
    resource.prlimit(server, resource.RLIMIT_FSIZE, before)
    grid.worker("w1")
    assert grid.watch_submit(big).returncode == 0
    assert grid.job("big").done == 6000


def test_a_full_disk_at_the_output_leaves_no_half_file_and_the_output_can_be_fetched_again(
    grid: Grid, tmp_path: Path
) -> None:
    code = "def record(row):\n    return {'id': row['id'], 'text': row['text']}\n"
    job_file = _noise_job(tmp_path / "p", 4, "big")
    (job_file.parent / "program.py").write_text(code)
    grid.worker("w1")
    job_id = grid.submit(job_file, watch=True)
    whole = (job_file.parent / "in.csv").read_bytes()
    with small_disk(tmp_path / "full", 2) as folder:
        (folder / "out.csv").write_text("from last week\n")
        done = grid.run("output", job_id, "-o", str(folder / "out.csv"), home="me")
        assert done.returncode == 1
        assert _said_full(done.stderr), done.stderr
        assert "  fix: " in done.stderr
        assert "Traceback" not in done.stderr
        assert [path.name for path in folder.iterdir()] == ["out.csv"]
        assert (folder / "out.csv").read_text() == "from last week\n"
    assert grid.output(job_id, tmp_path / "out.csv") == whole


def test_a_full_disk_on_a_worker_gives_its_units_to_others(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=200, bad_every=50)
    (job_file.parent / "large.bin").write_bytes(random.Random(1).randbytes(4_000_000))
    job_id = grid.submit(job_file)
    grid.join("w1", "worker")
    with small_disk(grid.home("w1") / "worker", 2):
        w1 = grid.worker("w1")
        text = w1.wait_text("cannot be unpacked")
        assert "No space left" in text
        wait_for(lambda: grid.machine("w1").units_running == 0, "it gives its units back", 5)
        assert grid.job(job_id).state == "running", "a full disk here is not the job's fault"
        grid.worker("w2")
        view = grid.wait_job(job_id)
        assert w1.running
        w1.stop()
    assert (view.done, view.quarantined) == (196, 4)
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output
