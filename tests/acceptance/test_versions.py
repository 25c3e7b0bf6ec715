"""Versions of code: pushed, pinned, followed by a running job, compared, taken back, traced."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from acceptance.grid import Grid, wait_for
from acceptance.projects import numbered, write_job

PROGRAM = """
import time

def record(row):
    time.sleep({pause_s})
    return {{"id": row["id"], "by": "{version}"}}
"""


def _program(version: str, pause_s: float = 0.0) -> str:
    return PROGRAM.format(version=version, pause_s=pause_s)


def _folder(path: Path, version: str, pause_s: float = 0.0) -> Path:
    path.mkdir(exist_ok=True)
    (path / "program.py").write_text(_program(version, pause_s))
    return path


def _job(folder: Path, *, records: int, code: str = ".", policy: str = "", pause_s: float = 0.0,
         version: str = "v1") -> Path:  # fmt: skip
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
        {policy}
    """
    files = {"in.csv": numbered(records), "program.py": _program(version, pause_s)}
    return write_job(folder, job, files)


def _stamps(output: bytes) -> list[str]:
    return [row["by"] for row in csv.DictReader(io.StringIO(output.decode()))]


def test_a_running_job_that_follows_switches_at_unit_borders_and_knows_which_record_ran_what(
    grid: Grid, tmp_path: Path
) -> None:
    records = 600
    follow = _job(tmp_path / "job", records=records, policy="follow_latest = true", pause_s=0.01)
    job_id = grid.submit(follow)
    grid.worker("w1")
    grid.wait_done(job_id, 60)
    newer = _folder(tmp_path / "newer", "v2", 0.002)
    told = json.loads(grid.ok("push", "stamp", str(newer), "--json", home="me"))
    assert (told["n"], told["switched_jobs"]) == (2, [job_id])
    grid.wait_job(job_id)
    stamps = _stamps(grid.output(job_id, tmp_path / "got.csv"))
    assert len(stamps) == records
    found = grid.read("lineage", job_id, "--units", home="me")
    pins = {pin["pin"]: pin for pin in found["pins"]}
    assert [pins[0]["code_version"], pins[1]["code_version"]] == [1, 2]
    assert pins[0]["records"] + pins[1]["records"] == records
    assert pins[0]["records"] >= 60
    assert pins[1]["records"] > 0
    for pin, version in ((0, "v1"), (1, "v2")):
        said = {n for start, end in pins[pin]["ranges"] for n in range(start, end)}
        assert said == {n for n, stamp in enumerate(stamps) if stamp == version}
    assert {unit["pin"] for unit in found["units"]} == {0, 1}
    assert sum(unit["end"] - unit["start"] for unit in found["units"]) == records
    assert found["machines"][0]["name"] == "w1"
    story = "\n".join(grid.story(job_id))
    assert "code stamp version 1 → 2" in story
    words = grid.ok("lineage", job_id, home="me")
    assert f"stamp version 2, sha256 {pins[1]['bundle']}" in words
    assert "2 versions so far" in grid.ok("job", job_id, home="me")


def test_a_job_gets_the_newest_version_at_its_start_and_keeps_it(
    grid: Grid, tmp_path: Path
) -> None:
    grid.join("me", "submitter")
    code = tmp_path / "code"
    grid.ok("push", "clean", str(_folder(code, "v1", 0.01)), home="me")
    newest = _job(tmp_path / "newest", records=150, code="bundle:clean")
    exact = _job(tmp_path / "exact", records=20, code="bundle:clean@1")
    first = grid.submit(newest)
    grid.worker("w1")
    grid.wait_done(first, 10)
    again = grid.ok("push", "clean", str(code), home="me")
    assert "nothing has changed; version 1 is the newest" in again
    pushed = grid.ok("push", "clean", str(_folder(code, "v2")), home="me")
    assert "clean: version 2" in pushed
    assert "switched" not in pushed
    second, third = grid.submit(newest), grid.submit(exact)
    for job_id, version in ((first, "v1"), (second, "v2"), (third, "v1")):
        grid.wait_job(job_id)
        stamps = _stamps(grid.output(job_id, tmp_path / f"{job_id}.csv"))
        assert set(stamps) == {version}
    back = json.loads(grid.ok("rollback", "clean", "--json", home="me"))
    assert (back["n"], back["origin"]) == (3, "back to version 1")
    versions = {one["n"]: one for one in grid.read("bundles", "clean", home="me")}
    assert versions[3]["digest"] == versions[1]["digest"] != versions[2]["digest"]
    assert [n for n, one in versions.items() if one["newest"]] == [3]
    shown = grid.ok("diff", "clean", "1", "2", home="me")
    assert '-    return {"id": row["id"], "by": "v1"}' in shown
    assert '+    return {"id": row["id"], "by": "v2"}' in shown
    assert [c["path"] for c in grid.read("diff", "clean", "1", "2", home="me")["changes"]] == [
        "program.py"
    ]
    assert "3 (newest)" in grid.ok("bundles", "clean", home="me")


def test_a_rerun_runs_the_old_versions_and_gives_the_same_bytes(grid: Grid, tmp_path: Path) -> None:
    grid.worker("w1")
    grid.join("me", "submitter")
    code = _folder(tmp_path / "code", "v1")
    grid.ok("push", "clean", str(code), home="me")
    job_id = grid.submit(_job(tmp_path / "job", records=40, code="bundle:clean"))
    grid.wait_job(job_id)
    before = grid.output(job_id, tmp_path / "before.csv")
    grid.ok("push", "clean", str(_folder(code, "v2")), home="me")
    again = json.loads(grid.ok("rerun", job_id, "--json", home="me"))["id"]
    grid.wait_job(again)
    assert grid.output(again, tmp_path / "after.csv") == before
    assert set(_stamps(before)) == {"v1"}
    old, new = (grid.read("lineage", one, home="me") for one in (job_id, again))
    assert new["rerun_of"] == job_id
    assert new["input_digest"] == old["input_digest"]
    assert new["pins"][0]["bundle"] == old["pins"][0]["bundle"]


def test_what_is_not_there_is_said(grid: Grid, tmp_path: Path) -> None:
    grid.join("me", "submitter")
    job = _job(tmp_path / "job", records=5, code="bundle:nobody")
    refused = grid.run("submit", str(job), home="me")
    assert refused.returncode == 1
    assert "There is no bundle named 'nobody'" in refused.stderr
    grid.ok("push", "clean", str(_folder(tmp_path / "code", "v1")), home="me")
    wrong = write_job(tmp_path / "wrong", job.read_text().replace("nobody", "clean@9"), {})
    (tmp_path / "wrong/in.csv").write_text(numbered(3))
    refused = grid.run("submit", str(wrong), home="me")
    assert "There is no version 9 of clean" in refused.stderr
    mistyped = write_job(tmp_path / "typo", job.read_text().replace("nobody", "clean@new"), {})
    assert "names no version" in grid.run("submit", str(mistyped), home="me").stderr
    for arguments, words in {
        ("bundles", "nobody"): "There is no bundle named 'nobody'",
        ("rollback", "clean"): "There is no version of clean to go back to",
        ("rollback", "clean", "--to", "4"): "There is no version 4 of clean",
        ("rollback", "clean", "--to", "1"): "clean is at that content already",
        ("diff", "clean"): "has no version before 1",
        ("lineage", "j99"): "There is no job 'j99'",
        ("rerun", "j99"): "There is no job 'j99'",
        ("push", "clean", str(tmp_path / "missing")): "does not exist",
        ("push", "-/climb", str(tmp_path / "code")): "",
    }.items():
        done = grid.run(*arguments, home="me")
        assert done.returncode in (1, 2), arguments
        assert words in done.stderr, arguments
        assert "Traceback" not in done.stderr


def test_push_packs_what_submit_packs(grid: Grid, tmp_path: Path) -> None:
    grid.join("me", "submitter")
    job = _job(tmp_path / "job", records=30)
    grid.submit(job)
    again = grid.ok("push", "stamp", str(job.parent), home="me")
    assert "nothing has changed; version 1 is the newest" in again


def test_what_an_ignore_file_leaves_out_is_said(grid: Grid, tmp_path: Path) -> None:
    grid.join("me", "submitter")
    code = tmp_path / "job"
    job = """
        name = "j"
        python = "p:record"
        [input]
        path = "in.csv"
        [data]
        rates = "rates"
    """
    path = write_job(code, job, {"in.csv": numbered(1), "p.py": "def record(row): return row\n"})
    rates = code / "rates"
    for folder, names in ((code, ("a.log", "b.log")), (rates, ("usd.csv", "old.csv"))):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text("1")
    (rates / "node_modules").mkdir()
    (code / ".officegridignore").write_text("*.log\n")
    (rates / ".officegridignore").write_text("old.*\n")
    because = f"because of {rates}/.officegridignore; what always is: node_modules."
    program = f"Left out of the program folder: 2 files, because of {code}/.officegridignore."
    told = grid.run("data", "push", "rates", str(rates), home="me")
    assert told.stderr.splitlines()[-1] == f"Left out of the data rates: 1 file, {because}"
    assert program in grid.run("push", "code", str(code), home="me").stderr
    told = grid.run("submit", str(path), home="me")
    assert program in told.stderr
    assert f"Left out of the data j.rates: 1 file, {because}" in told.stderr
    found = grid.read("submit", str(path), home="me")["left_out"]
    assert [(one["what"], one["files"], one["always"]) for one in found] == [
        ("program folder", 2, []), ("data j.rates", 1, ["node_modules"]),
    ]  # fmt: skip
    assert found[0]["ignore_file"] == str(code / ".officegridignore")
    (rates / ".officegridignore").unlink()
    (rates / "node_modules").rmdir()
    assert grid.read("data", "push", "rates", str(rates), home="me")["left_out"] == []


def test_a_retry_takes_no_job_file_of_another_job(grid: Grid, tmp_path: Path) -> None:
    grid.join("me", "submitter")
    job_id = grid.submit(_job(tmp_path / "job", records=3))
    other = _job(tmp_path / "other", records=3)
    other.write_text(other.read_text().replace('"stamp"', '"invoices"'))
    refused = grid.run("retry", job_id, "--job-file", str(other), home="me")
    assert refused.returncode == 2
    assert f"is the job file of 'invoices', and {job_id} is 'stamp'" in refused.stderr
    wrong = _job(tmp_path / "wrong", records=3)
    wrong.write_text(wrong.read_text().replace("program:record", "porgram:record"))
    refused = grid.run("submit", str(wrong), home="me")
    assert refused.returncode == 2
    assert "Did you mean 'program'?" in refused.stderr
    assert "upload" not in refused.stderr, "known before anything is sent"


def test_corrected_code_for_a_retry_becomes_a_version_too(grid: Grid, tmp_path: Path) -> None:
    grid.worker("w1")
    broken = "def record(row):\n    return {'id': 1 // (int(row['id']) % 10)}\n"
    job = _job(tmp_path / "job", records=30, policy='quarantine_limit = "50%"')
    (job.parent / "program.py").write_text(broken)
    job_id = grid.submit(job)
    view = grid.wait_job(job_id)
    assert view.quarantined == 3
    (job.parent / "program.py").write_text("def record(row):\n    return {'id': 'mended'}\n")
    grid.ok("retry", job_id, "--job-file", str(job), home="me")
    wait_for(lambda: grid.job(job_id).quarantined == 0, "nothing is quarantined any more")
    grid.wait_job(job_id)
    pins = grid.read("lineage", job_id, home="me")["pins"]
    assert [(pin["code_version"], pin["records"]) for pin in pins] == [(1, 27), (2, 3)]
    assert pins[1]["ranges"] == [[0, 1], [10, 11], [20, 21]]
    assert [one["n"] for one in grid.read("bundles", "stamp", home="me")] == [2, 1]
