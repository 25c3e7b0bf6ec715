"""Output files: the same records give the same bytes, or the old file stays."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from officegrid.core.errors import InputError, UnavailableError, UsageError
from officegrid.data.records import split_records
from officegrid.data.rows import render_rows
from officegrid.data.sinks import OutputPiece, write_output
from officegrid.wire.data import Layout

CSV = Layout(columns=["a", "b"])
NDJSON = Layout(format="ndjson")
LINES = Layout(format="lines")
value = st.text(alphabet='ab,"\n\r é', max_size=6)


def piece(text: str, columns: list[str] | None = None) -> OutputPiece:
    return OutputPiece(text.encode(), columns)


def test_csv_with_header_and_digest(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.csv"
    done = write_output(out, [piece("1,2\n"), piece('3,"x\ny"')], CSV, "csv", ["a", "b"])
    assert out.read_bytes() == b'a,b\n1,2\n3,"x\ny"\n'
    assert (done.path, done.records, done.bytes) == (out, 2, out.stat().st_size)
    assert done.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert os.listdir(out.parent) == ["out.csv"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(value, min_size=2, max_size=2), max_size=12),
    st.sets(st.integers(1, 11)),
    st.sampled_from(["csv", "csv.gz", "csv.zst", "ndjson", "tsv"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_bytes_do_not_depend_on_the_cut(
    rows: list[list[str]], cuts: set[int], suffix: str, ending: Literal["\n", "\r\n"]
) -> None:
    data = render_rows(rows, CSV)
    records = split_records(data, CSV)
    edges = [0, *sorted(cut for cut in cuts if cut < len(records)), len(records)]
    cut_up = [OutputPiece(b"".join(records[a:b])) for a, b in pairwise(edges)]
    form: Literal["csv", "ndjson"] = "ndjson" if suffix == "ndjson" else "csv"
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, f"1.{suffix}"), Path(folder, f"2.{suffix}")
        first = write_output(one, [OutputPiece(data)], CSV, form, ["a", "b"], line_ending=ending)
        second = write_output(many, cut_up, CSV, form, ["a", "b"], line_ending=ending)
        assert one.read_bytes() == many.read_bytes()
        assert first.records == second.records == len(rows)
        assert first.sha256 == second.sha256


def test_compressed_bytes_do_not_depend_on_the_cut_of_large_output(tmp_path: Path) -> None:
    lines = [b"%d,%d\n" % (i, i * i * 7919 % 99_991) for i in range(300_000)]
    for suffix, plain in (("gz", gzip.decompress), ("zst", zstd.decompress)):
        digests = set()
        for size in (300_000, 70_001, 1_000):
            out = tmp_path / f"{size}.csv.{suffix}"
            cut_up = (
                OutputPiece(b"".join(lines[i : i + size])) for i in range(0, len(lines), size)
            )
            digests.add(write_output(out, cut_up, CSV, "csv", None).sha256)
            assert plain(out.read_bytes()) == b"a,b\n" + b"".join(lines)
        assert len(digests) == 1


def test_pieces_with_other_columns_are_brought_in_line(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    pieces = [piece("1,2\n"), piece("3\n", ["c"]), piece("5,4\n", ["b", "a"])]
    write_output(out, pieces, CSV, "csv", ["a", "b", "c"])
    assert out.read_bytes() == b"a,b,c\n1,2,\n,,3\n4,5,\n"


def test_a_column_without_a_place_is_not_dropped_silently(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column 'c'") as caught:
        write_output(tmp_path / "o.csv", [piece("3\n", ["c"])], CSV, "csv", ["a", "b"])
    assert "columns" in caught.value.fix


def test_line_endings_are_uniform_and_quoted_ones_stay(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    pieces = [piece('1,"x\r\ny"\r\n3,4\n')]
    write_output(out, pieces, CSV, "csv", None)
    assert out.read_bytes() == b'a,b\n1,"x\r\ny"\n3,4\n'
    write_output(out, pieces, CSV, "csv", None, line_ending="\r\n")
    assert out.read_bytes() == b'a,b\r\n1,"x\r\ny"\r\n3,4\r\n'


def test_without_header_and_as_tsv(tmp_path: Path) -> None:
    headless = Layout(header=False, delimiter=";", columns=["c1", "c2"])
    write_output(tmp_path / "o.csv", [piece("1;2\n")], headless, "csv", None)
    assert (tmp_path / "o.csv").read_bytes() == b"1;2\n"
    write_output(tmp_path / "o.tsv", [piece('1,"x,y"\n')], CSV, "csv", None)
    assert (tmp_path / "o.tsv").read_bytes() == b"a\tb\n1\tx,y\n"


def test_no_records_still_give_a_header(tmp_path: Path) -> None:
    done = write_output(tmp_path / "o.csv", [], CSV, "csv", None)
    assert (tmp_path / "o.csv").read_bytes() == b"a,b\n"
    assert done.records == 0


def test_ndjson_to_csv_with_and_without_columns(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    pieces = [piece('{"x":1.0}\n'), piece('{"y":null,"x":"a,b"}\n{"z":[1]}')]
    done = write_output(out, iter(pieces), NDJSON, "csv", None)
    assert out.read_bytes() == b'x,y,z\n1.0,,\n"a,b",,\n,,[1]\n'
    assert done.records == 3
    write_output(out, iter(pieces), NDJSON, "csv", ["z", "x"])
    assert out.read_bytes() == b'z,x\n,1.0\n,"a,b"\n[1],\n'
    assert os.listdir(tmp_path) == ["out.csv"]


def test_lines_and_ndjson_are_copied(tmp_path: Path) -> None:
    write_output(tmp_path / "o.txt", [piece("a\r\n\n"), piece("b")], LINES, "lines", None)
    assert (tmp_path / "o.txt").read_bytes() == b"a\n\nb\n"
    done = write_output(tmp_path / "o.jsonl", [piece('{"a": 1}\n')], NDJSON, "ndjson", None)
    assert (tmp_path / "o.jsonl").read_bytes() == b'{"a": 1}\n'
    assert done.records == 1
    write_output(tmp_path / "o.csv", [piece("x,y\n")], LINES, "csv", None)
    assert (tmp_path / "o.csv").read_bytes() == b'line\n"x,y"\n'


def failing_pieces() -> Iterator[OutputPiece]:
    yield piece("1,2\n" * 500_000)
    raise ConnectionResetError("the server went away")


def test_any_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_bytes(b"precious")
    bad = [piece("1,2\n"), piece("1,2\n1,2,3\n")]
    with pytest.raises(InputError, match="Output record 3 cannot be written as ndjson"):
        write_output(out, bad, CSV, "ndjson", None)
    with pytest.raises(UnavailableError, match="cannot be written"):
        write_output(out, failing_pieces(), CSV, "csv", None)
    with pytest.raises(InputError, match="Output record 2 has a quote that is never closed"):
        write_output(out, [piece('1,2\n3,"4\n'), piece("5,6\n")], CSV, "csv", None)
    with pytest.raises(InputError, match="not valid JSON"):
        write_output(out, [piece("{}\n{\n")], NDJSON, "csv", None)
    assert out.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_links_are_followed_and_modes_are_usual(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_bytes(b"old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_output(tmp_path / "link.csv", [piece("1,2\n")], CSV, "csv", None)
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_bytes() == b"a,b\n1,2\n"
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", [".", "pipe"])
def test_outputs_that_are_no_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"is a folder|not a regular file") as caught:
        write_output(tmp_path / name, [], CSV, "csv", None)
    assert "Name a file" in caught.value.fix


WRITE_MUCH = """
import resource, sys
from pathlib import Path
from officegrid.data.sinks import OutputPiece, write_output
from officegrid.wire.data import Layout
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
pieces = (OutputPiece(b"1,2\\n" * 250_000) for _ in range(8))
try:
    write_output(Path(sys.argv[1]), pieces, Layout(columns=["a", "b"]), "csv", None)
except Exception as error:
    print(type(error).__name__, error)
"""


def run_writer(out: Path, limit_bytes: int, wrapper: list[str]) -> str:
    source = str(Path(write_output.__code__.co_filename).parents[2])
    command = [*wrapper, sys.executable, "-c", WRITE_MUCH, str(out), str(limit_bytes)]
    environment = os.environ | {"PYTHONPATH": source}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_a_file_size_limit_is_told_as_no_space(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_bytes(b"precious")
    said = run_writer(out, 2_000_000, [])
    assert said.startswith("UnavailableError")
    assert "no space is left" in said
    assert "Free space" in said
    assert out.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_a_full_disk_is_told_and_harmless(tmp_path: Path) -> None:
    mount = ["unshare", "-rm", "sh", "-c"]
    script = f"mount -t tmpfs -o size=2m full {tmp_path} && printf precious > {tmp_path}/out.csv"
    if not shutil.which("unshare") or subprocess.run([*mount, script], check=False).returncode:
        assert os.environ.get("CI") != "true", "CI must be able to mount a small file system."
        pytest.skip("A small file system cannot be mounted here: user namespaces are off.")
    after = f'"$@" && ls -A {tmp_path} && cat {tmp_path}/out.csv'
    said = run_writer(tmp_path / "out.csv", 0, [*mount, f"{script} && {after}", "sh"])
    assert said.startswith("UnavailableError")
    assert "No space left on device" in said
    assert said.endswith("out.csv\nprecious")
