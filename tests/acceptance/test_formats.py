"""Programs in other languages, and input and output in other formats."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acceptance.grid import Grid
from acceptance.projects import DOUBLE, numbered, plain_run, write_job


def _needs(command: str) -> None:
    """A missing interpreter skips on a laptop and fails in CI, where it must be there."""
    if shutil.which(command) is None:
        reason = f"{command} is not installed; install it to run this test"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


def _rows(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode(), newline="")))


def _lines(job_file: Path) -> list[str]:
    return (job_file.parent / "out.ndjson").read_text(encoding="utf-8").splitlines()


PHP = r"""<?php
$in = fopen('php://stdin', 'r');
$out = fopen('php://stdout', 'w');
$header = fgetcsv($in, null, ',', '"', '');
fputcsv($out, ['id', 'length'], ',', '"', '');
while (($row = fgetcsv($in, null, ',', '"', '')) !== false) {
    $record = array_combine($header, $row);
    fputcsv($out, [$record['id'], strlen($record['text'])], ',', '"', '');
}
"""


def test_a_php_script_over_csv_with_line_breaks_inside_quotes(shared: Grid, tmp_path: Path) -> None:
    _needs("php")
    job = """
        name = "php"
        run = ["php", "lengths.php"]
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        """
    text = numbered(3000)
    job_file = write_job(tmp_path / "p", job, {"lengths.php": PHP, "in.csv": text})
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader(io.StringIO(text, newline=""))
    expected = [["id", "length"]] + [[r["id"], str(len(r["text"].encode()))] for r in rows]
    assert _rows((job_file.parent / "out.csv").read_bytes()) == expected


def test_an_awk_one_liner_over_csv(shared: Grid, tmp_path: Path) -> None:
    _needs("awk")
    job = r"""
        name = "awk"
        run = ["awk", "-F,", "-v", "OFS=,", 'NR == 1 { print "id", "sum"; next } { print $1, $2 + $3 }']
        [input]
        path = "in.csv"
        [output]
        path = "out.csv"
        """  # noqa: E501
    text = "id,a,b\n" + "".join(f"{n},{n},{2 * n}\n" for n in range(2000))
    job_file = write_job(tmp_path / "p", job, {"in.csv": text})
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    expected = "id,sum\n" + "".join(f"{n},{3 * n}\n" for n in range(2000))
    assert (job_file.parent / "out.csv").read_text() == expected


def test_a_shell_script_over_plain_lines(shared: Grid, tmp_path: Path) -> None:
    job = """
        name = "shell"
        run = ["./up.sh"]
        [input]
        path = "in.txt"
        [output]
        path = "out.txt"
        """
    lines = [f"line {n}, with 'quotes\" and é" for n in range(1500)]
    files = {"in.txt": "\n".join(lines) + "\n", "up.sh": "#!/bin/sh\nexec tr a-z A-Z\n"}
    job_file = write_job(tmp_path / "p", job, files)
    (job_file.parent / "up.sh").chmod(0o755)
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    table = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    expected = "".join(line.translate(table) + "\n" for line in lines)
    assert (job_file.parent / "out.txt").read_text() == expected


def test_ndjson_in_and_out_with_python_per_batch(shared: Grid, tmp_path: Path) -> None:
    job = """
        name = "ndjson"
        python = "program:batch"
        call = "batch"
        [input]
        path = "in.ndjson"
        [output]
        path = "out.ndjson"
        """
    code = "def batch(rows):\n    return [{**row, 'twice': row['n'] * 2} for row in rows]\n"
    values: list[dict[str, Any]] = [{"n": n, "deep": {"list": [n, None, "ü"]}} for n in range(1200)]
    text = "".join(json.dumps(value) + "\n" for value in values)
    job_file = write_job(tmp_path / "p", job, {"program.py": code, "in.ndjson": text})
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in _lines(job_file)]
    assert found == [{**value, "twice": value["n"] * 2} for value in values]


def test_an_executable_gets_csv_as_ndjson_when_asked(shared: Grid, tmp_path: Path) -> None:
    job = """
        name = "as-ndjson"
        run = ["python3", "program.py"]
        stdin = "ndjson"
        [input]
        path = "in.csv"
        [output]
        path = "out.ndjson"
        """
    code = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps({'len': len(json.loads(line)['text'])}))\n"
    )
    text = numbered(700)
    job_file = write_job(tmp_path / "p", job, {"program.py": code, "in.csv": text})
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["len"] for line in _lines(job_file)]
    assert found == [len(r["text"]) for r in csv.DictReader(io.StringIO(text, newline=""))]


def test_csv_to_parquet(shared: Grid, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    job = """
        name = "parquet"
        python = "program:record"
        [input]
        path = "in.csv"
        [output]
        path = "out.parquet"
        """
    code = "def record(row):\n    return {'id': int(row['id']), 'half': int(row['id']) / 2}\n"
    text = "id\n" + "".join(f"{n}\n" for n in range(2500))
    job_file = write_job(tmp_path / "p", job, {"program.py": code, "in.csv": text})
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    with duckdb.connect() as database:
        found = database.execute(
            "select id, half from read_parquet(?)", [str(job_file.parent / "out.parquet")]
        ).fetchall()
    assert found == [(n, n / 2) for n in range(2500)]


def _double_over(
    folder: Path, name: str, path: str, files: dict[str, bytes], more: str = ""
) -> Path:
    job = f"""
        name = "{name}"
        python = "program:record"
        [input]
        path = "{path}"
        {more}
        [output]
        path = "out.csv"
        """
    return write_job(folder, job, {"program.py": DOUBLE, **files})


def _plain(folder: Path, text: str) -> bytes:
    """What a plain run makes of the same records in one clean UTF-8 file."""
    path = folder / "plain.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return plain_run(path).output


@pytest.mark.parametrize(
    ("name", "path", "more", "encode"),
    [
        ("gz", "in.csv.gz", "", lambda text: gzip.compress(text.encode())),
        ("bom", "in.csv", "", lambda text: text.encode("utf-8-sig")),
        ("latin-1", "in.csv", 'encoding = "latin-1"', lambda text: text.encode("latin-1")),
        (
            "semicolons",
            "in.csv",
            "delimiter = ';'",
            lambda text: _rewritten(text, delimiter=";").encode(),
        ),
    ],
    ids=["gz", "bom", "latin-1", "semicolons"],
)
def test_input_in_another_dress_gives_the_same_output(
    shared: Grid, tmp_path: Path, name: str, path: str, more: str, encode: Callable[[str], bytes]
) -> None:
    text = numbered(700)
    job_file = _double_over(tmp_path / "p", f"dress-{name}", path, {path: encode(text)}, more)
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    expected = _plain(tmp_path, text)
    assert (job_file.parent / "out.csv").read_bytes() == expected


def _rewritten(text: str, delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows(csv.reader(io.StringIO(text, newline="")))
    return out.getvalue()


def test_many_files_are_one_input_in_the_order_of_their_names(shared: Grid, tmp_path: Path) -> None:
    text = numbered(900)
    header, *rows = list(csv.reader(io.StringIO(text, newline="")))
    files: dict[str, bytes] = {}
    for number, start in enumerate(range(0, 900, 300)):
        out = io.StringIO(newline="")
        csv.writer(out).writerows([header, *rows[start : start + 300]])
        files[f"data/part-{number}.csv"] = out.getvalue().encode()
    job_file = _double_over(tmp_path / "p", "many", "data/*.csv", files)
    done = shared.watch_submit(job_file)
    assert done.returncode == 0, done.stderr
    assert (job_file.parent / "out.csv").read_bytes() == _plain(tmp_path, text)


def test_compressed_output_holds_the_same_records(shared: Grid, tmp_path: Path) -> None:
    text = numbered(400)
    job_file = _double_over(tmp_path / "p", "squeezed", "in.csv", {"in.csv": text.encode()})
    path = job_file.parent / "job.toml"
    path.write_text(path.read_text().replace('"out.csv"', '"out.csv.gz"'))
    assert shared.watch_submit(job_file).returncode == 0
    packed = (job_file.parent / "out.csv.gz").read_bytes()
    assert gzip.decompress(packed) == _plain(tmp_path, text)
