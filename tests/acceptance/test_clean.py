"""`officegrid clean`: old versions and files go, and what is needed goes on working."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, answered
from acceptance.projects import double_job, expected_output
from officegrid.core.errors import ForbiddenError
from officegrid.wire.catalogue import RollBack, VersionView
from officegrid.wire.jobs import JobView, RetryRequest
from officegrid.wire.keeping import CleanReply, CleanRequest

SETTINGS = '[keep]\nversions = 1\ndays = 0\nobjects = "1h"\n'


def _age(grid: Grid, seconds: float = 7200.0) -> set[str]:
    """Everything in the store is older; the names of all of it."""
    found = set()
    for path in (grid.data / "objects").glob("??/*"):
        os.utime(path, (time.time() - seconds, time.time() - seconds))
        found.add(path.parent.name + path.name)
    return found


def _push(grid: Grid, folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(text)
    return str(json.loads(grid.ok("push", "clean", str(folder), "--json", home="me"))["digest"])


def test_what_nobody_needs_goes_and_the_rest_works(make_grid: MakeGrid, tmp_path: Path) -> None:
    grid = make_grid()
    grid.data.mkdir(mode=0o700)
    (grid.data / "coordinator.toml").write_text(SETTINGS)
    grid.start()
    grid.worker("w1")
    job_file = double_job(tmp_path / "job", records=60, bad_every=20)
    job_id = grid.submit(job_file)
    grid.wait_job(job_id)
    job_code = grid.job(job_id).bundle
    digests = [_push(grid, tmp_path / "code", f"n = {n}\n") for n in (1, 2)]
    ask = CleanRequest(dry_run=True)
    with grid.connection_of("me") as mine:
        refused = answered(lambda: mine.call("POST", "/v1/clean", body=ask, reply=CleanReply))
    assert isinstance(refused, ForbiddenError)
    young = grid.connection().call("POST", "/v1/clean", body=ask, reply=CleanReply)
    assert (len(young.versions), young.objects) == (1, 0)
    before = _age(grid)
    words = grid.ok("clean", "--dry-run")
    assert "Would go: 0 jobs, 1 versions, 0 unused inputs, 1 objects" in words
    assert f"code clean version 1, {digests[0][:12]}" in words
    assert _age(grid) == before
    told = grid.read("clean")
    assert (len(told["versions"]), told["objects"], told["dry_run"]) == (1, 1, False)
    left = _age(grid)
    assert before - left == {digests[0]}
    assert {digests[1], job_code} <= left
    shown = grid.ok("bundles", "clean", home="me")
    assert shown.count("cleaned up") == 1
    back = RollBack(to=1)
    gone = answered(
        lambda: grid.connection().call(
            "POST", "/v1/versions/code/clean/roll-back", body=back, reply=VersionView
        )
    )
    assert gone is not None
    assert "Version 1 of clean is gone" in gone.what
    reasons = {(one["what"], one["reason"]) for one in told["stay"]}
    assert ("versions", "among the newest of its name") in reasons
    assert ("objects", "output of a job") in reasons
    # The quarantine can still be run again, and the output read.
    grid.connection().call(
        "POST", f"/v1/jobs/{job_id}/retry", body=RetryRequest(), reply=JobView, retry=False
    )
    grid.wait_job(job_id)
    expected = expected_output(job_file)
    assert grid.output(job_id, tmp_path / "out.csv") == expected.output
    assert grid.job(job_id).quarantined == len(expected.bad)
    assert "cleaned_up" in grid.coordinator().text()
