"""Programs that crash, hang, print nonsense or eat memory: one record pays, all others go on."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from acceptance.grid import Grid
from acceptance.projects import function_of, write_job

RECORDS = 16
CULPRIT = 7
INPUT = "id,text\n" + "".join(f"{n},t{n}\n" for n in range(RECORDS))

PYTHON = """
import ctypes, os, signal, sys

def record(row):
    if row["id"] == "7":
        {deed}
    return row
"""
# A filter from stdin to stdout, header included, as a `run` program sees the records.
FILTER = """
import ctypes, os, signal, sys

for line in sys.stdin:
    if line.startswith("7,"):
        {deed}
    sys.stdout.write(line)
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Deed:
    name: str
    program: str  # "python" or "run"
    deed: str
    words: tuple[str, ...]  # in the reason


DEEDS = [
    Deed("segfault", "python", "ctypes.string_at(0)", ("segmentation fault",)),
    Deed("memory", "python", "hog = [bytearray(10_000_000) for _ in range(1000)]", ("emory",)),
    Deed("endless", "python", "while True: pass", ("took longer than 1 s",)),
    Deed("exit", "python", "os._exit(1)", ("ended with exit code 1",)),
    Deed("sys-exit", "python", "sys.exit(3)", ("SystemExit", "3")),
    Deed("raises", "python", "raise KeyError('nope')", ("KeyError", "nope")),
    Deed("nonsense", "python", "return 42", ("returned int",)),
    Deed(
        "chatter", "python", "while True: sys.stderr.write('x' * 1000)", ("took longer than 1 s",)
    ),
    Deed("run-segfault", "run", "os.kill(os.getpid(), signal.SIGSEGV)", ("segmentation fault",)),
    Deed("run-memory", "run", "hog = [bytearray(10_000_000) for _ in range(1000)]", ("emory",)),
    Deed("run-endless", "run", "while True: pass", ("hung", "1 s")),
    Deed(
        "run-exit",
        "run",
        "sys.stderr.write('no sevens here'); sys.exit(1)",
        ("ended with exit code 1", "no sevens here"),
    ),
    Deed("run-too-few", "run", "continue", ("printed 0 records for 1",)),
    Deed("run-too-many", "run", "sys.stdout.write(line)", ("printed 2 records for 1",)),
    Deed("run-chatter", "run", "while True: sys.stderr.write('x' * 1000)", ("hung", "xxx")),
    Deed(
        "run-flood",
        "run",
        "while True: sys.stdout.write('7,x' * 1000 + chr(10))",
        ("printed more than 1 MB",),
    ),
]


def _needs_time_limit(deed: Deed) -> bool:
    """On a busy machine the other ones may take longer than a second."""
    return any("1 s" in word or word == "hung" for word in deed.words)


def _job(deed: Deed, folder: Path) -> Path:
    source = PYTHON if deed.program == "python" else FILTER
    how = (
        'python = "program:record"'
        if deed.program == "python"
        else 'run = ["python3", "program.py"]'
    )
    job = f"""
        name = "{deed.name}"
        {how}
        [input]
        path = "in.csv"
        [policy]
        attempts = 2
        record_timeout = "{1 if _needs_time_limit(deed) else 20}s"
        memory = "300MB"
        output_limit = "1MB"
        quarantine_limit = "50%"
        """
    return write_job(folder, job, {"program.py": source.format(deed=deed.deed), "in.csv": INPUT})


@pytest.fixture(scope="module")
def jobs(shared: Grid, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All jobs at once, so that one that hangs does not make the others wait."""
    return {
        deed.name: shared.submit(_job(deed, tmp_path_factory.mktemp(deed.name))) for deed in DEEDS
    }


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.name)
def test_the_record_that_does_it_is_set_aside_and_all_others_come_out(
    shared: Grid, jobs: dict[str, str], deed: Deed, tmp_path: Path
) -> None:
    job_id = jobs[deed.name]
    view = shared.wait_job(job_id, within_s=55)
    quarantined = shared.quarantine(job_id)
    assert list(quarantined) == [CULPRIT], quarantined
    for words in deed.words:
        assert words in quarantined[CULPRIT]["error"]
    assert quarantined[CULPRIT]["raw"] == "7,t7\n"
    assert len(quarantined[CULPRIT]["error"]) <= 2000
    assert (view.done, view.quarantined) == (RECORDS - 1, 1)
    rows = INPUT.splitlines(keepends=True)
    del rows[CULPRIT + 1]
    assert shared.output(job_id, tmp_path / "out.csv").decode() == "".join(rows)


STRICT = """
def record(row):
    number = int(row["id"])
    with open({calls!r}, "a") as file:
        file.write(f"{{number}}\\n")
    if number % 10 == {wrong}:
        raise ValueError("tens are not understood")
    return [] if number % 7 == 0 else [{{"id": row["id"], "square": str(number ** 2)}}]
"""


def _strict_job(folder: Path, name: str, calls: Path, wrong: int, limit: str) -> Path:
    job = f"""
        name = "{name}"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        [policy]
        attempts = 1
        unit_seconds = 0.2
        quarantine_limit = "{limit}"
        """
    rows = "id\n" + "".join(f"{n}\n" for n in range(200))
    code = STRICT.format(calls=str(calls), wrong=wrong)
    return write_job(folder, job, {"program.py": code, "in.csv": rows})


def _squares() -> bytes:
    """What the correct program makes of all 200 records."""
    function = function_of(STRICT.format(calls="/dev/null", wrong=-1))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "square"], lineterminator="\n")
    writer.writeheader()
    for number in range(200):
        writer.writerows(function({"id": str(number)}))
    return out.getvalue().encode()


def test_over_the_quarantine_limit_a_job_is_held_says_why_and_can_be_released(
    shared: Grid, tmp_path: Path
) -> None:
    job_file = _strict_job(tmp_path / "p", "held", tmp_path / "calls", 0, "5")
    done = shared.watch_submit(job_file)
    assert done.returncode == 1
    assert "Held:" in done.stderr
    assert "quarantine_limit = 5" in done.stderr
    assert not (job_file.parent / "out.csv").exists()
    view = shared.job("held")
    assert view.state == "held"
    assert view.quarantined > 5
    why = shared.ok("why", "held")
    assert "is held" in why
    assert "5 allowed" in why
    assert "officegrid release" in why
    shared.ok("release", "held", "--quarantine-limit", "100%")
    view = shared.wait_job(view.id)
    assert (view.done, view.quarantined) == (180, 20)
    assert sorted(shared.quarantine("held")) == list(range(0, 200, 10))


def test_retry_runs_only_the_quarantined_records_with_the_new_code(
    shared: Grid, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    folder = tmp_path / "p"
    job_file = _strict_job(folder, "retried", calls, 0, "50%")
    assert shared.watch_submit(job_file).returncode == 3
    first = [int(line) for line in calls.read_text().split()]
    assert sorted(set(first)) == list(range(200))
    calls.unlink()
    _strict_job(folder, "retried", calls, -1, "50%")
    said = shared.ok("retry", "retried", "--job-file", str(job_file), home="me")
    assert "20 records to process" in said
    view = shared.wait_job(shared.job("retried").id)
    assert (view.done, view.quarantined) == (200, 0)
    again = [int(line) for line in calls.read_text().split()]
    assert sorted(again) == list(range(0, 200, 10)), "only the quarantined ones, once each"
    assert shared.output("retried", tmp_path / "out.csv") == _squares()
    nothing = shared.run("retry", "retried")
    assert nothing.returncode == 1
    assert "no quarantined records" in nothing.stderr


def test_a_retry_that_fails_again_keeps_its_places(shared: Grid, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    folder = tmp_path / "p"
    job_file = _strict_job(folder, "twice", calls, 0, "50%")
    assert shared.watch_submit(job_file).returncode == 3
    half = STRICT.format(calls=str(calls), wrong=0).replace("number % 10", "number % 20")
    (folder / "program.py").write_text(half)
    shared.ok("retry", "twice", "--job-file", str(job_file), home="me")
    view = shared.wait_job(shared.job("twice").id)
    assert (view.done, view.quarantined, view.generation) == (190, 10, 1)
    assert sorted(shared.quarantine("twice")) == list(range(0, 200, 20))
    saved = tmp_path / "set-aside.ndjson"
    told = json.loads(shared.ok("quarantine", "twice", "-o", str(saved), "--json"))
    assert told == {"path": str(saved), "records": 10}
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["record"] for row in rows] == list(range(0, 200, 20))
    _strict_job(folder, "twice", calls, -1, "50%")
    shared.ok("retry", "twice", "--job-file", str(job_file), home="me")
    view = shared.wait_job(view.id)
    assert (view.done, view.quarantined, view.generation) == (200, 0, 2)
    assert shared.output("twice", tmp_path / "out.csv") == _squares()


def test_the_reason_of_a_failed_call_names_the_exception(shared: Grid, tmp_path: Path) -> None:
    code = "def record(row):\n    return {'id': str(int(row['id']) // (int(row['id']) - 3))}\n"
    job = """
        name = "divides"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        [policy]
        quarantine_limit = 1
        """
    rows = "id\n" + "".join(f"{n}\n" for n in range(6))
    job_file = write_job(tmp_path / "p", job, {"program.py": code, "in.csv": rows})
    assert shared.watch_submit(job_file).returncode == 3
    assert "ZeroDivisionError" in shared.quarantine("divides")[3]["error"]
    assert (job_file.parent / "out.csv").read_text() == "id\n0\n-1\n-2\n4\n2\n"
