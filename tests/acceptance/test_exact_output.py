"""Every record ends once, in input order: the output equals that of a plain run, byte for byte."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from acceptance.grid import Grid
from acceptance.projects import double_job, expected_output, plain_run


def test_output_equals_a_plain_run_and_nothing_is_quarantined(shared: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=5000, name="clean")
    expected = expected_output(job_file)
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    assert (job_file.parent / "out.csv").read_bytes() == expected.output
    view = shared.job("clean")
    assert (view.total, view.done, view.quarantined) == (5000, 5000, 0)
    assert view.records_out == expected.records == 5000
    assert view.units > 3, "one unit would prove little"


def test_bad_records_are_set_aside_with_their_reason_and_exit_code_3(
    shared: Grid, tmp_path: Path
) -> None:
    job_file = double_job(tmp_path / "p", records=1400, bad_every=50, name="some-bad")
    expected = expected_output(job_file)
    assert len(expected.bad) == 28
    done = shared.watch_submit(job_file)
    assert done.returncode == 3, done.stderr
    assert (job_file.parent / "out.csv").read_bytes() == expected.output
    view = shared.job("some-bad")
    assert view.done + view.quarantined == view.total == 1400
    quarantined = shared.quarantine("some-bad")
    assert sorted(quarantined) == expected.bad
    for number, row in quarantined.items():
        assert f"nothing to be done with {number}" in row["error"]
        assert row["raw"].strip() == f"{number},bad"
        assert row["attempts"] >= 1


def test_the_shipped_normaliser_gives_what_a_plain_run_gives(shared: Grid, tmp_path: Path) -> None:
    from officegrid.demo.customers import write_customers

    example = Path(__file__).parents[2] / "examples" / "python-normaliser"
    folder = tmp_path / "normaliser"
    folder.mkdir()
    for name in ("job.toml", "normalise.py"):
        (folder / name).write_bytes((example / name).read_bytes())
    # The first broken row with bytes that are not UTF-8 would end the plain run's decoding.
    broken = write_customers(folder / "customers.csv", 4000, seed=3)
    raw = (folder / "customers.csv").read_bytes().replace(b"M\xfcller (Latin-1)", b"Mueller")
    (folder / "customers.csv").write_bytes(raw)
    expected = plain_run(folder / "customers.csv", (folder / "normalise.py").read_text())
    assert 0 < len(expected.bad) <= broken
    done = shared.watch_submit(folder / "job.toml")
    assert done.returncode == 3, done.stderr
    assert (folder / "customers-clean.csv").read_bytes() == expected.output
    assert sorted(shared.quarantine("normalise-customers")) == expected.bad


def test_output_can_be_fetched_again_and_is_the_same(shared: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=300, name="again")
    assert shared.watch_submit(job_file).returncode == 0
    first = (job_file.parent / "out.csv").read_bytes()
    assert shared.output("again", tmp_path / "second.csv") == first
    shared.ok("output", "again", "-o", str(tmp_path / "third"), "--format", "ndjson")
    rows = [json.loads(line) for line in (tmp_path / "third").read_text().splitlines()]
    with (tmp_path / "second.csv").open(newline="", encoding="utf-8") as file:
        assert rows == list(csv.DictReader(file))
