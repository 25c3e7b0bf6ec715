"""Files as datasets: nothing lost, nothing added, whatever the cut."""

from __future__ import annotations

import gzip
import os
import tempfile
import time
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from officegrid.data.records import count_records, ends_inside_quotes, split_records
from officegrid.data.sources import ReadOptions, Source, open_source

messy_bytes = st.text(alphabet='ab,"\n\r\0é', max_size=60).map(str.encode)


def drained(source: Source) -> bytes:
    chunks = list(source.chunks())
    for chunk in chunks:
        assert chunk.records == count_records(chunk.data, source.layout)
        assert chunk.data.endswith(b"\n")
    assert source.records == sum(chunk.records for chunk in chunks)
    assert source.raw_bytes == sum(len(chunk.data) for chunk in chunks)
    assert source.bytes_read == source.total_bytes
    return b"".join(chunk.data for chunk in chunks)


def expected(data: bytes, source: Source) -> bytes:
    """What should come out, by the slow way: split everything, drop blank lines at the end."""
    if data and not data.endswith(b"\n"):
        data += b"\n"
    records = split_records(data, source.layout)
    if not ends_inside_quotes(data, source.layout):
        while records and not records[-1].strip(b"\r\n"):
            records.pop()
    return b"".join(records)


@settings(max_examples=300, deadline=None)
@given(messy_bytes, st.integers(1, 20), st.booleans(), st.booleans())
def test_csv_comes_out_as_it_is(data: bytes, chunk_bytes: int, bom: bool, header: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "in.csv")
        head = b'x,"y\nz"\r\n' if header else b"1,2\n"
        file.write_bytes((b"\xef\xbb\xbf" if bom else b"") + head + data)
        source = open_source([file], ReadOptions(header=header, chunk_bytes=chunk_bytes))
        assert source.layout.columns == (["x", "y\nz"] if header else ["c1", "c2"])
        assert drained(source) == expected(data if header else head + data, source)
        whole = expected(data if header else head + data, source)
        assert source.records == len(split_records(whole, source.layout))


@settings(max_examples=150, deadline=None)
@given(messy_bytes, st.integers(1, 20), st.sampled_from(["ndjson", "log"]))
def test_lines_come_out_as_they_are(data: bytes, chunk_bytes: int, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"in.{suffix}")
        file.write_bytes(data)
        source = open_source([file], ReadOptions(chunk_bytes=chunk_bytes))
        assert drained(source) == expected(data, source)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='aé€ß,"\n', max_size=60), st.sampled_from(["cp1252", "utf-16"]))
def test_other_encodings_arrive_as_utf8(text: str, encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "in.csv")
        file.write_bytes(("größe,b\n" + text).encode(encoding))
        source = open_source([file], ReadOptions(encoding=encoding, chunk_bytes=7))
        assert source.layout.columns == ["größe", "b"]
        assert drained(source) == expected(text.encode(), source)


@pytest.mark.parametrize("encoding", ["shift_jis", "utf-16-le", "latin-1", "utf-8-sig", "UTF8"])
def test_multi_byte_encodings_cut_anywhere(tmp_path: Path, encoding: str) -> None:
    text = "名前,b\n" + "値,1\n" * 50 if encoding != "latin-1" else "naïve,b\n" + "é,1\n" * 50
    file = tmp_path / "in.csv"
    file.write_bytes(text.encode(encoding))
    source = open_source([file], ReadOptions(encoding=encoding, chunk_bytes=5))
    assert drained(source).decode() == text.split("\n", 1)[1]
    assert source.records == 50


def test_compressed_files_and_globs_are_one_dataset(tmp_path: Path) -> None:
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"x,y\n3,4\n"))
    (tmp_path / "a.csv").write_bytes(b"x,y\n1,2")
    frames = zstd.compress(b"x,y\n5,") + zstd.compress(b"6\n")
    (tmp_path / "c.csv.zst").write_bytes(frames)
    again = tmp_path / "a.csv"
    source = open_source([tmp_path / "*.csv*", again], ReadOptions(chunk_bytes=3))
    assert [file.name for file in source.files] == ["a.csv", "b.csv.gz", "c.csv.zst"]
    assert drained(source) == b"1,2\n3,4\n5,6\n"
    assert drained(source) == b"1,2\n3,4\n5,6\n"  # and once more from the start
    assert source.total_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_progress_grows_while_chunks_come(tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_bytes(b"line\n" * 1000)
    source = open_source([file], ReadOptions(chunk_bytes=500))
    seen = [source.bytes_read for _ in source.chunks()]
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert seen[-1] == 5000


def test_tsv_and_explicit_delimiters(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_bytes(b'a\tb\n"x\ty"\t2\n')
    source = open_source([tmp_path / "in.tsv"])
    assert source.layout.delimiter == "\t"
    assert source.layout.columns == ["a", "b"]
    (tmp_path / "in.dat").write_bytes(b"a;b\n'x;\n';2\n")
    source = open_source([tmp_path / "in.dat"], ReadOptions(format="csv", delimiter=";", quote="'"))
    assert drained(source) == b"'x;\n';2\n"
    assert source.records == 1


def test_header_only_files_have_no_records(tmp_path: Path) -> None:
    for index, data in enumerate([b"a,b", b"a,b\n", b"\xef\xbb\xbfa,b\r\n\r\n"]):
        file = tmp_path / f"{index}.csv"
        file.write_bytes(data)
        source = open_source([file])
        assert source.layout.columns == ["a", "b"]
        assert list(source.chunks()) == []
        assert source.records == 0


def test_files_without_bytes_where_no_header_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "in.ndjson"
    file.write_bytes(b"")
    assert list(open_source([file]).chunks()) == []
    (tmp_path / "in.csv").write_bytes(b"")
    source = open_source([tmp_path / "in.csv"], ReadOptions(header=False))
    assert source.layout.columns == []
    assert list(source.chunks()) == []


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "export[1].csv"
    file.write_bytes(b"a\n1\n")
    assert drained(open_source([file])) == b"1\n"


def test_warnings_say_what_looks_wrong(tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(b'a;b\n1;2\ncaf\xe9;3\n"open;4\n5;6\n')
    source = open_source([file])
    drained(source)
    delimiter, quote, encoding = source.warnings
    assert "delimiter = ';'" in delimiter
    assert "line 3 is not UTF-8" in encoding
    assert "record at line 4 is never closed" in quote
    assert "2 lines" in quote
    assert source.records == 3


def test_one_long_record_takes_linear_time(tmp_path: Path) -> None:
    def seconds(megabytes: int) -> float:
        file = tmp_path / "long.csv"
        file.write_bytes(b'a,b\n1,"' + b"x\n" * (megabytes * 500_000) + b'"\n')
        start = time.process_time()
        source = open_source([file], ReadOptions(chunk_bytes=100_000))
        assert [chunk.records for chunk in source.chunks()] == [1]
        return time.process_time() - start

    small = max(seconds(4), 0.01)
    # Eight times the bytes: quadratic time would be 64 times as much.
    assert seconds(32) < 30 * small


def test_memory_stays_small_on_a_file_of_many_chunks(tmp_path: Path) -> None:
    import tracemalloc

    file = tmp_path / "in.csv"
    file.write_bytes(b"a,b\n" + b'1,"two, ""2"""\n' * 400_000)
    tracemalloc.start()
    try:
        source = open_source([file], ReadOptions(chunk_bytes=100_000))
        assert sum(chunk.records for chunk in source.chunks()) == 400_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert os.path.getsize(file) > 5_000_000
