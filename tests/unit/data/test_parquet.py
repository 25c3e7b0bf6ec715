"""Parquet in and out, with real DuckDB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from officegrid.core.errors import InputError, UsageError
from officegrid.data.sinks import OutputPiece, write_output
from officegrid.data.sources import ReadOptions, open_source
from officegrid.wire.data import Layout

if os.environ.get("CI") == "true":
    import duckdb
else:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed (parquet extra).")

CSV = Layout(columns=["a", "b"])


def make(path: Path, select: str) -> Path:
    duckdb.connect().execute(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    return path


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    return list(duckdb.connect().execute(f"SELECT * FROM '{path}'").fetchall())


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("9007199254740993::BIGINT", "9007199254740993"),
        ("18446744073709551615::UBIGINT", "18446744073709551615"),
        ("1.10::DECIMAL(9,2)", "1.10"),
        ("-0.05::DECIMAL(9,2)", "-0.05"),
        ("12345678901234567890.123456789::DECIMAL(38,9)", "12345678901234567890.123456789"),
        ("0.1::DOUBLE", "0.1"),
        ("1e300::DOUBLE", "1e300"),
        ("'nan'::DOUBLE", '"nan"'),
        ("'-inf'::FLOAT", '"-inf"'),
        ("true", "true"),
        ("NULL::INTEGER", "null"),
        ("'say \"hi\"\n\\ é'", '"say \\"hi\\"\\n\\\\ é"'),
        ("DATE '2024-02-29'", '"2024-02-29"'),
        ("TIMESTAMP '2024-01-02 03:04:05.123456'", '"2024-01-02T03:04:05.123456"'),
        ("TIMESTAMPTZ '2024-01-02 03:04:05+02'", '"2024-01-02T01:04:05Z"'),
        ("TIMESTAMP_NS '2024-01-02 03:04:05.123456789'", '"2024-01-02T03:04:05.123456789"'),
        ("TIME '01:02:03'", '"01:02:03"'),
        ("'\\x00\\xFF'::BLOB", '"AP8="'),
        ("[1.5::DOUBLE, NULL, 'inf'::DOUBLE]", '[1.5,null,"inf"]'),
        ("[]::INTEGER[]", "[]"),
        ("NULL::INTEGER[]", "null"),
        (
            "{'d': 1234567890123456789.10::DECIMAL(38,2), 'x': [DATE '2024-01-01'], 'n': NULL}",
            '{"d":1234567890123456789.10,"x":["2024-01-01"],"n":null}',
        ),
        ("NULL::STRUCT(a INTEGER)", "null"),
        ("MAP {1: 0.10::DECIMAL(3,2), 2: NULL}", '{"1":0.10,"2":null}'),
        ("MAP {}::MAP(VARCHAR, INTEGER)", "{}"),
        ("[[{'a': ['x'::BLOB]}]]", '[[{"a":["eA=="]}]]'),
        ("uuid '6bf11772-87a6-4fce-92df-ee1d6d20896d'", '"6bf11772-87a6-4fce-92df-ee1d6d20896d"'),
    ],
)
def test_every_kind_of_value_is_exact(tmp_path: Path, sql: str, text: str) -> None:
    source = open_source([make(tmp_path / "in.parquet", f'SELECT {sql} AS "it\'s ""v""", 1 AS n')])
    (chunk,) = source.chunks()
    assert chunk.data.decode() == f'{{"it\'s \\"v\\"":{text},"n":1}}\n'
    json.loads(chunk.data)


def test_rows_stream_in_order_over_files(tmp_path: Path) -> None:
    for n in range(3):
        span = f"range({n * 50_000}, {(n + 1) * 50_000}) t(i)"
        make(tmp_path / f"{n}.parquet", f"SELECT i, repeat('x', 50) AS pad FROM {span}")
    source = open_source([tmp_path / "*.parquet"], ReadOptions(chunk_bytes=100_000))
    assert source.layout.format == "ndjson"
    numbers, seen = [], []
    for chunk in source.chunks():
        assert len(chunk.data) < 300_000
        assert chunk.records == chunk.data.count(b"\n")
        numbers += [json.loads(line)["i"] for line in chunk.data.splitlines()]
        seen.append(source.bytes_read)
    assert numbers == list(range(150_000))
    assert source.records == 150_000
    assert seen == sorted(seen)
    assert source.bytes_read == source.total_bytes


def test_bad_parquet_input(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(InputError, match=r"text.parquet cannot be read as Parquet") as caught:
        open_source([tmp_path / "text.parquet"])
    assert caught.value.why
    assert "complete" in caught.value.fix
    make(tmp_path / "1.parquet", "SELECT 1 AS a")
    make(tmp_path / "2.parquet", "SELECT 1 AS b")
    with pytest.raises(InputError, match="different columns"):
        open_source([tmp_path / "1.parquet", tmp_path / "2.parquet"])
    big = make(tmp_path / "big.parquet", "SELECT repeat('x', 5000) AS a")
    with pytest.raises(InputError, match="record 1 is longer than 1000 bytes"):
        list(open_source([big], ReadOptions(max_record_bytes=1000)).chunks())


def test_csv_output_is_text_columns(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    pieces = [OutputPiece(b'1,"x\n""y"""\n'), OutputPiece(b",2024-01-01\n", ["a", "c"])]
    done = write_output(out, pieces, CSV, "parquet", ["a", "b", "c"])
    assert rows_of(out) == [("1", 'x\n"y"', None), ("", None, "2024-01-01")]
    assert (done.records, done.bytes) == (2, out.stat().st_size)
    assert os.listdir(tmp_path) == ["out.parquet"]


def test_ndjson_output_has_types_and_no_invented_dates(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    data = b'{"n":1,"x":1.5,"d":"2024-01-01","l":[1]}\n{"n":2,"s":{"k":"v"}}\n'
    write_output(out, [OutputPiece(data)], Layout(format="ndjson"), "parquet", None)
    assert rows_of(out) == [
        (1, 1.5, "2024-01-01", [1], None),
        (2, None, None, None, {"k": "v"}),
    ]
    write_output(out, [OutputPiece(data)], Layout(format="ndjson"), "parquet", ["d", "new", "n"])
    assert rows_of(out) == [("2024-01-01", None, 1), (None, None, 2)]


def test_parquet_output_keeps_order(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    pieces = (OutputPiece(b"%d,x\n" % i) for i in range(3000))
    write_output(out, pieces, CSV, "parquet", None)
    assert [int(row[0]) for row in rows_of(out)] == list(range(3000))


def test_no_records(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert write_output(out, [], CSV, "parquet", ["a"]).records == 0
    assert duckdb.connect().sql(f"SELECT * FROM '{out}'").columns == ["a"]
    with pytest.raises(InputError, match="no records"):
        write_output(out, [], Layout(format="ndjson"), "parquet", None)


def test_parquet_outputs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'id' and 'ID'"):
        write_output(tmp_path / "o.parquet", [], CSV, "parquet", ["id", "ID"])
    with pytest.raises(UsageError, match="not compressed once more") as caught:
        write_output(tmp_path / "o.parquet.gz", [], CSV, "parquet", ["id"])
    assert "o.parquet" in caught.value.fix
    bad = [OutputPiece(b'{"a":\n')]
    with pytest.raises(InputError, match="cannot be written as Parquet"):
        write_output(tmp_path / "o.parquet", bad, Layout(format="ndjson"), "parquet", None)
    assert os.listdir(tmp_path) == []


def test_without_duckdb_the_message_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    source = Path(open_source.__code__.co_filename).parents[2]
    # A module that cannot be imported, found first: what a plain installation looks like.
    (tmp_path / "duckdb.py").write_text("raise ImportError('not installed')")
    script = (
        "from officegrid.core.errors import UsageError\n"
        "from officegrid.data.sources import open_source\n"
        "try: open_source(['in.parquet'])\n"
        "except UsageError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "pip install officegrid[parquet]" in said
