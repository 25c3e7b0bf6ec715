"""Exit codes, as docs/commands.md has them: 0 done, 1 failed, 2 wrong usage, 3 quarantined records.

The commands run in this process, with the real coordinator of a grid.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from acceptance.projects import numbered, write_job
from officegrid.cli.main import main

Run = Callable[..., int]
PROGRAM = """
def record(row):
    if row["id"] == "1":
        raise ValueError("nothing to be done")
    return row
"""
JOB = """
    name = "copy"
    python = "program:record"
    [input]
    path = "in.csv"
    [output]
    source = "crm"
    table = "u"
    [policy]
    quarantine_limit = "90%"
"""


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    grid = Grid(tmp_path_factory.mktemp("codes") / "grid")
    grid.data.mkdir(parents=True)
    base = grid.folder / "crm.sqlite"
    sqlite3.connect(base).close()
    (grid.data / "coordinator.toml").write_text(
        f'[sources.crm]\nurl = "sqlite:///{base}"\nwrite = true\n'
    )
    try:
        grid.start()
        grid.join("me", "submitter")
        yield grid
    finally:
        grid.close()


@pytest.fixture
def run(office: Grid, monkeypatch: pytest.MonkeyPatch) -> Run:
    def command(*arguments: str, home: str = "me") -> int:
        monkeypatch.setenv("OFFICEGRID_HOME", str(office.home(home)))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return int(ended.value.code or 0)

    return command


def test_each_command_ends_with_the_code_that_the_page_has(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "d", tmp_path / "d" / "a.txt"
    folder.mkdir()
    file.write_text("1")
    assert run("push", "x", str(folder)) == run("data", "push", "y", str(folder)) == 0
    capsys.readouterr()
    done = [
        "bundles", "bundles x", "data list", "data list y", "floor", "update list",
    ]  # fmt: skip
    failed = [
        f"push x {tmp_path}/none", f"push x {file}", f"data push y {tmp_path}/none", "bundles no",
        "data list no", "data refresh no", "rollback no", "rollback x", "rollback x --to 9",
        "data rollback y --to 9", "diff no", "diff x", "diff x 1 9", "lineage no", "rerun no",
        "deliver no", "clean", "floor --worker 1.0", f"update push {file}",
        f"update push {tmp_path}/none.whl", "update roll-back", "update retry",
    ]  # fmt: skip
    wrong = [
        f"push bad!name {folder}", f"data push bad!name {folder}", "bundles bad!name",
        "data list bad!name", "data refresh bad!name", "rollback bad!name",
        "data rollback bad!name", "diff bad!name", "rollback x --to 0", "diff x none",
        "clean --dri", "floor --image x", "floor --worker", "update", "update psh", "data",
        "lineage", "rerun", "deliver",
    ]  # fmt: skip
    for code, lines in ((0, done), (1, failed), (2, wrong)):
        for line in lines:
            assert (line, run(*line.split())) == (line, code)
            said = capsys.readouterr()
            assert bool(said.err) == bool(code), line
            assert ("Traceback" in said.err, "does not understand" in said.err) == (False, False)
    for line, code in [
        ("floor --worker banana", 2), ("floor --image 99", 1), ("floor --worker off", 0),
        ("clean --dry-run", 0), ("update roll-back", 1),
    ]:  # fmt: skip
        assert (line, run(*line.split(), home="admin")) == (line, code)


def test_a_delivery_ends_with_its_own_code(
    office: Grid, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_job(tmp_path / "job", JOB, {"in.csv": numbered(3), "program.py": PROGRAM})
    office.worker("w1")
    base = sqlite3.connect(office.folder / "crm.sqlite")
    with base:
        base.execute("create table u (id integer)")
    capsys.readouterr()
    assert run("submit", str(path), "--json") == 0
    job = str(json.loads(capsys.readouterr().out)["id"])
    wait_for(lambda: (one := office.job(job).delivery) and one.state == "failed", "it has failed")
    assert run("deliver", job) == run("watch", job) == 1
    with base:
        base.execute("drop table u")
    base.close()
    capsys.readouterr()
    assert run("deliver", job, "--json") == 3
    assert json.loads(capsys.readouterr().out)["delivery"]["state"] == "done"
    assert run("deliver", job) == 1, "nothing has failed"
    assert run("watch", job) == 3
    assert run("lineage", job) == run("rerun", job) == 0
