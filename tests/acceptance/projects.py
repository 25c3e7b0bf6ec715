"""Job folders for the tests, and what a plain single-process run makes of the same input."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Both the grid and the plain run execute this very text; only the plain run sets PAUSE_S to 0.
DOUBLE = """
import time

PAUSE_S = 0.0

def record(row):
    time.sleep(PAUSE_S)
    if row["text"] == "bad":
        raise ValueError(f"nothing to be done with {row['id']}")
    return {"id": row["id"], "double": str(2 * int(row["id"])), "text": row["text"].upper()}
"""


@dataclass(frozen=True)
class PlainRun:
    """`output`: the bytes expected; `bad`: the numbers of the records that must be set aside."""

    output: bytes
    bad: list[int]
    records: int


def paused(program: str, seconds: float) -> str:
    """The program, taking so long for each record."""
    return program.replace("PAUSE_S = 0.0", f"PAUSE_S = {seconds}")


def numbered(records: int, bad_every: int = 0) -> str:
    """CSV text with columns id and text; some texts hold quotes, commas and line breaks."""
    texts = ("plain", "a,b", 'say "hi"', "two\nlines", "", "ünïcödé", "x\r\ny\r\n")
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["id", "text"])
    for number in range(records):
        bad = bad_every and number % bad_every == bad_every // 2
        writer.writerow([number, "bad" if bad else texts[number % len(texts)]])
    return out.getvalue()


def write_job(folder: Path, job: str, files: Mapping[str, str | bytes]) -> Path:
    """Write a job folder; the path of its job.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
    path = folder / "job.toml"
    path.write_text(textwrap.dedent(job), encoding="utf-8")
    return path


def double_job(
    folder: Path, *, records: int, pause_s: float = 0.0, bad_every: int = 0, name: str = "double",
    unit_seconds: float = 0.3, policy: str = "",
) -> Path:  # fmt: skip
    """A job that runs DOUBLE over `numbered` records."""
    job = f"""
        name = "{name}"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        [policy]
        unit_seconds = {unit_seconds}
        quarantine_limit = "50%"
        """
    files = {"program.py": paused(DOUBLE, pause_s), "in.csv": numbered(records, bad_every)}
    return write_job(folder, textwrap.dedent(job) + policy, files)


DIGEST = """
import hashlib, os, time

PAUSE_S = 0.0
digest = hashlib.sha256(open(os.environ["OFFICEGRID_DATA_BIG"], "rb").read()).hexdigest()

def record(row):
    time.sleep(PAUSE_S)
    return {"id": row["id"], "digest": digest}
"""


def digest_job(
    folder: Path, *, records: int, pause_s: float = 0.0, unit_seconds: float = 30.0
) -> Path:
    """A job that writes beside each of `numbered` records the digest of the data set `big`."""
    job = f"""
        name = "digest"
        python = "program:record"
        [input]
        path = "in.csv"
        [data]
        big = "data:big"
        [output]
        path = "out.csv"
        [policy]
        unit_seconds = {unit_seconds}
        """
    files = {"program.py": paused(DIGEST, pause_s), "in.csv": numbered(records)}
    return write_job(folder, job, files)


def function_of(code: str, name: str = "record") -> Callable[[Any], Any]:
    namespace: dict[str, Any] = {}
    exec(compile(code, "program.py", "exec"), namespace)  # the test's own text
    namespace["PAUSE_S"] = 0.0
    function: Callable[[Any], Any] = namespace[name]
    return function


def plain_run(path: Path, code: str = DOUBLE) -> PlainRun:
    """The records of a CSV file, one after the other, through the program's function."""
    function = function_of(code)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    bad: list[int] = []
    columns: list[str] = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows)
        number = -1
        for number, row in enumerate(rows):
            try:
                result = function(dict(zip(header, row, strict=True)))
            except ValueError:
                bad.append(number)
                continue
            if not columns:
                columns = list(result)
                writer.writerow(columns)
            writer.writerow([result[name] for name in columns])
    return PlainRun(out.getvalue().encode(), bad, number + 1)


def expected_output(job_file: Path) -> PlainRun:
    """What a `double_job` must give."""
    return plain_run(job_file.parent / "in.csv", (job_file.parent / "program.py").read_text())
