"""Every example, run as its README says: real commands, one coordinator, one worker.

Results are compared with the example's `expected.*` file, or with a computation of the test's own.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from officegrid.wire.jobfile import parse_job_file

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
START_DEADLINE_S = 60.0
JOB_DEADLINE_S = 180.0
FINISHED, WITH_QUARANTINE = 0, 3


class Grid:
    """A coordinator and one worker as processes of their own, and a submitter's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.url = self._serve()
        self._join("worker")
        self._join("submitter")
        self._launch(["--home", str(self.folder / "worker"), "worker"], "worker.log")

    def _launch(self, arguments: list[str], log: str) -> Path:
        path = self.folder / log
        with path.open("wb") as file:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "officegrid", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
        return path

    def _serve(self) -> str:
        data = str(self.folder / "data")
        log = self._launch(["serve", "--data", data, "--listen", "127.0.0.1:0"], "serve.log")
        deadline = time.monotonic() + START_DEADLINE_S
        pause = threading.Event()
        while time.monotonic() < deadline:
            if found := re.search(r'"url": "(https://[^"]+)"', log.read_text()):
                return found[1]
            assert self._processes[0].poll() is None, log.read_text()
            pause.wait(0.05)
        raise AssertionError(f"the coordinator did not start:\n{log.read_text()}")

    def _join(self, role: str) -> None:
        made = self.run(["join-code", "--role", role], home="data/admin")
        code = made.stdout.splitlines()[0]
        self.run(["join", self.url, "--code", code, "--name", role], home=role)

    def run(
        self, arguments: list[str], *, home: str = "submitter", expect: int = FINISHED
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "officegrid", "--home", str(self.folder / home), *arguments],
            capture_output=True,
            text=True,
            timeout=JOB_DEADLINE_S,
            check=False,
        )
        assert done.returncode == expect, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def quarantine(self, job: str) -> dict[int, str]:
        """Reasons by record number."""
        shown = json.loads(self.run(["quarantine", job, "--limit", "0", "--json"]).stdout)
        return {row["record"]: row["error"] for row in shown}

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    running = Grid(tmp_path_factory.mktemp("grid"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


def copy_of(example: str, tmp_path: Path) -> Path:
    """A copy, so that outputs never land in the repository."""
    return Path(shutil.copytree(EXAMPLES / example, tmp_path / example))


def need(command: str) -> None:
    if shutil.which(command) is None:
        sentence = f"{command} is not installed, so its example cannot run"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)


def rows_of(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_every_example_is_complete() -> None:
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir()]
    assert len(folders) >= 7
    for folder in folders:
        readme = (folder / "README.md").read_text(encoding="utf-8")
        assert 10 <= len(readme.splitlines()) <= 35, folder
        jobs = sorted(folder.glob("job*.toml"))
        assert jobs, folder
        for job in jobs:
            parsed = parse_job_file(job.read_text(encoding="utf-8"), str(job))
            assert f"officegrid submit {job.name}" in readme, job
            made = (folder / "make_input.py").exists()
            if isinstance(parsed.input.path, str) and not made:
                assert (folder / parsed.input.path).is_file(), job


def test_python_function_per_record(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("python-normaliser", tmp_path)
    grid.run(["submit", str(here / "job.toml"), "--watch"], expect=WITH_QUARANTINE)
    assert (here / "customers-clean.csv").read_text() == (here / "expected.csv").read_text()
    bad = grid.quarantine("normalise-customers")
    assert list(bad) == [5]
    assert "not an e-mail address" in bad[5]


def test_python_function_per_batch(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("python-batch", tmp_path)
    grid.run(["submit", str(here / "job.toml"), "--watch"], expect=WITH_QUARANTINE)
    assert (here / "orders-priced.csv").read_text() == (here / "expected.csv").read_text()
    bad = grid.quarantine("price-orders")
    assert list(bad) == [6]
    assert "XX-999" in bad[6]


def iban_remainder(iban: str) -> int:
    turned = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97


def test_php_script(grid: Grid, tmp_path: Path) -> None:
    need("php")
    here = copy_of("php-script", tmp_path)
    grid.run(["submit", str(here / "job.toml"), "--watch"], expect=WITH_QUARANTINE)
    expected = []
    for row in rows_of(here / "invoices.csv", ";"):
        if row["number"] == "2026-007":
            continue
        net = Decimal(row["net"])
        vat = (net * int(row["vat_percent"]) / 100).quantize(Decimal("0.01"), ROUND_HALF_UP)
        iban = row["iban"].replace(" ", "").upper()
        more = {"vat": f"{vat:.2f}", "gross": f"{net + vat:.2f}"}
        ok = "yes" if iban_remainder(iban) == 1 else "no"
        expected.append({**row, "iban": iban, **more, "iban_ok": ok})
    found = rows_of(here / "invoices-checked.csv")
    assert found == expected
    assert [row["number"] for row in found if row["iban_ok"] == "no"] == ["2026-006"]
    bad = grid.quarantine("check-invoices")
    assert list(bad) == [6]
    assert "invoice 2026-007: not an amount: 'about forty'" in bad[6]


def test_awk_one_liner(grid: Grid, tmp_path: Path) -> None:
    need("awk")
    here = copy_of("shell-awk", tmp_path)
    grid.run(["submit", str(here / "job.toml"), "--watch"])
    assert (here / "stock-totals.csv").read_text() == (here / "expected.csv").read_text()


def test_shell_script(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("shell-awk", tmp_path)
    grid.run(["submit", str(here / "job-sh.toml"), "--watch"])
    assert (here / "failed.log").read_text() == (here / "expected.log").read_text()


def test_shell_script_on_lines_that_never_match(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("shell-awk", tmp_path)
    lines = [line for line in (here / "access.log").read_text().splitlines() if '" 5' not in line]
    (here / "access.log").write_text("\n".join(lines) + "\n")
    grid.run(["submit", str(here / "job-sh.toml"), "--watch"])
    assert (here / "failed.log").read_text() == ""


def test_ndjson(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("ndjson", tmp_path)
    grid.run(["submit", str(here / "job.toml"), "--watch"], expect=WITH_QUARANTINE)
    assert (here / "lines.ndjson").read_text() == (here / "expected.ndjson").read_text()
    bad = grid.quarantine("flatten-orders")
    assert list(bad) == [2, 5]
    assert "order 3 has no items" in bad[2]
    assert "not valid JSON" in bad[5]


def test_chain(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("chain", tmp_path)
    grid.run(["submit", str(here / "job-1-clean.toml")])
    grid.run(["submit", str(here / "job-2-convert.toml"), "--watch"])
    assert (here / "sales-eur.csv").read_text() == (here / "expected.csv").read_text()
    assert list(grid.quarantine("chain-clean")) == [5]
    grid.run(["output", "chain-clean", "-o", str(here / "sales-clean.csv")])
    assert [row["sale"] for row in rows_of(here / "sales-clean.csv")] == ["1", "2", "4", "5", "7"]


def test_flights(grid: Grid, tmp_path: Path) -> None:
    here = copy_of("flights", tmp_path)
    made = subprocess.run(
        [sys.executable, str(here / "make_input.py")], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "336,776 records" in made.stdout
    grid.run(["submit", str(here / "job.toml"), "--watch"], expect=WITH_QUARANTINE)
    bad = grid.quarantine("flights")
    assert all("too fast" in reason for reason in bad.values())
    expected = [
        flight for n, flight in enumerate(rows_of(here / "flights.csv")) if not too_fast(flight)
    ]
    found = rows_of(here / "flights-checked.csv")
    assert len(expected) + len(bad) == 336_776
    assert len(found) == len(expected)
    for before, after in zip(expected, found, strict=True):
        assert before.items() <= after.items()
        check_flight(after)


def too_fast(row: dict[str, str]) -> bool:
    if row["air_time"] == "NA":
        return False
    return int(row["distance"]) * 1.609344 / int(row["air_time"]) > 1000 / 60


def check_flight(row: dict[str, Any]) -> None:
    """The added columns, from other columns than the program uses where the table allows it."""
    assert abs(int(row["distance_km"]) - int(row["distance"]) * 1.609344) <= 0.5
    if row["dep_time"] == "NA":
        assert (row["departed"], row["delay_class"]) == ("", "cancelled")
        return
    digits = row["dep_time"].zfill(4).replace("2400", "0000")
    assert row["departed"][11:16] == f"{digits[:2]}:{digits[2:]}"
    summer = "2013-03-10T07:00:00Z" <= row["time_hour"] < "2013-11-03T06:00:00Z"
    assert row["departed"][16:] == ("-04:00" if summer else "-05:00")
    delay = int(row["dep_delay"])
    name = "on time" if delay <= 14 else "late" if delay <= 59 else "very late"
    assert row["delay_class"] == (name if delay <= 179 else "extremely late")
