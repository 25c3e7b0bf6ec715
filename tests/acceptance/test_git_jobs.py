"""Job files whose code is in git: submitted, followed by a running job, refused."""

from __future__ import annotations

from pathlib import Path

from acceptance.conftest import MakeGrid
from acceptance.grid import wait_for
from acceptance.projects import numbered, write_job
from officegrid.client.catalogue import versions
from officegrid.wire.catalogue import Lineage, PinView
from officegrid.wire.jobs import JobView, WhyReply
from parts import need
from unit.coordinator.git_kit import Repository

PROGRAM = """
import time

def record(row):
    time.sleep(0.01)
    return {{"id": row["id"], "by": "{version}"}}
"""


def _job(folder: Path, code: str, records: int) -> Path:
    job = f"""
        name = "stamp"
        python = "program:record"
        code = "{code}"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        [policy]
        unit_seconds = 0.3
        follow_latest = true
    """
    return write_job(folder, job, {"in.csv": numbered(records)})


def test_a_job_runs_what_is_in_git_and_follows_its_branch(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    need("git")
    origin = Repository(tmp_path / "srv" / "tools")
    (origin.folder / "jobs").mkdir()
    program = origin.folder / "jobs/program.py"
    program.write_text(PROGRAM.format(version="v1"))
    first = origin.commit_all()[:12]
    grid = make_grid()
    grid.data.mkdir(mode=0o6000)
    (grid.data / "coordinator.toml").write_text(
        f'[git]\nallow = ["file://{tmp_path}/srv/"]\nevery = "1s"\n'
    )
    grid.start()
    grid.worker("w1")
    code = f"git+{origin.url}@main#jobs"
    job_id = grid.submit(_job(tmp_path / "job", code, 6000))
    grid.wait_done(job_id, 40)
    program.write_text(PROGRAM.format(version="v2"))
    origin.commit_all()
    wait_for(lambda: any("1 → 2" in text for text in grid.story(job_id)), "the job follows")
    origin.folder.rename(tmp_path / "away")
    down = wait_for(
        lambda: [text for text in grid.story(job_id) if "cannot be fetched" in text],
        "the story tells that the repository is gone",
    )
    assert "version 2 stays in use" in down[0]
    why = grid.connection().call("GET", f"/v1/why/{job_id}", reply=WhyReply)
    assert "could not be fetched" in why.sentences[-1]

    def pins() -> list[PinView]:
        reply = grid.connection().call("GET", f"/v1/jobs/{job_id}/lineage", reply=Lineage)
        return reply.pins if len(reply.pins) == 2 and reply.pins[1].records else []

    [pin, _] = wait_for(pins, "units of the second version are committed")
    assert pin.records >= 40
    assert grid.job(job_id).state == "running"
    grid.connection().call("POST", f"/v1/jobs/{job_id}/cancel", reply=JobView, retry=False)
    [two, one] = versions(grid.connection(), "code", pin.code_name)
    assert one.origin == f"commit {first} of {origin.url}@main, folder jobs"
    assert (two.n, two.pushed_by) == (2, "the coordinator")
    assert sum("cannot be fetched" in text for text in grid.story(job_id)) == 1
    wrong = _job(tmp_path / "wrong", f"git+file://{tmp_path}/away@main", 3)
    grabbed = grid.run("push", pin.code_name or "", str(wrong.parent), home="me")
    assert f"The versions of {pin.code_name} come from git" in grabbed.stderr
    refused = grid.run("submit", str(wrong), home="me")
    assert refused.returncode == 1
    assert "not an address that code may come from" in refused.stderr
