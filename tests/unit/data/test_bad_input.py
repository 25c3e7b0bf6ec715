"""Every kind of bad input says what is wrong, why, and what to do about it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from officegrid.core.errors import InputError, OfficeGridError, UsageError
from officegrid.data.sources import ReadOptions, open_source

Files = dict[str, bytes]
RANDOM_LINES = b"".join(b"%d,%d\n" % (i, i * 7919 % 10007) for i in range(50_000))
GZ = gzip.compress(b"a,b\n" + RANDOM_LINES)
ZST = zstd.compress(b"a,b\n" + RANDOM_LINES)

# name: (files, what to open, options, error, what, why, fix)
Case = tuple[Files, list[str], ReadOptions, type[OfficeGridError], str, str, str]
CASES: dict[str, Case] = {
    "empty file": (
        {"customers.csv": b""}, ["customers.csv"], ReadOptions(), InputError,
        "customers.csv is empty: not even a header line", "names its columns", "Export",
    ),
    "only a BOM": (
        {"customers.csv": b"\xef\xbb\xbf"}, ["customers.csv"], ReadOptions(), InputError,
        "customers.csv is empty", "names its columns", "Export",
    ),
    "blank first line": (
        {"a.csv": b"\n1,2\n"}, ["a.csv"], ReadOptions(), InputError,
        "begins with an empty line", "first line", "header = false",
    ),
    "duplicate columns": (
        {"a.csv": b"id,name,id,x,name\n"}, ["a.csv"], ReadOptions(), InputError,
        'more than one column "id", "name"', "by column name", "header = false",
    ),
    "unnamed column": (
        {"a.csv": b"id,,x, \n"}, ["a.csv"], ReadOptions(), InputError,
        "no name for column 2, 4", '"id"', "Name every column",
    ),
    "header with an open quote": (
        {"a.csv": b'id,"name\n1,2\n'}, ["a.csv"], ReadOptions(), InputError,
        "the header cannot be read", "before the closing one", "Close the quote",
    ),
    "header in another encoding": (
        {"a.csv": "größe,b\n".encode("latin-1")}, ["a.csv"], ReadOptions(), InputError,
        "the header cannot be read", "0xf6", "latin-1",
    ),
    "different headers": (
        {"a.csv": b"id,name\n", "b.csv": b"id,mail\n"}, ["*.csv"], ReadOptions(), InputError,
        "different columns", 'b.csv lacks "name" and b.csv has "mail" besides', "same header",
    ),
    "headers in another order": (
        {"a.csv": b"id,name\n", "b.csv": b"name,id\n"}, ["*.csv"], ReadOptions(), InputError,
        "different columns", "order differs", "same header",
    ),
    "endless quote": (
        {"a.csv": b"a,b\n" + b"1,2\n" * 16 + b'1,"open\n' + b"x\n" * 1000},
        ["a.csv"], ReadOptions(max_record_bytes=1024), InputError,
        "record 17, starting at line 18, is longer than 1 KB",
        "Probably a quote that is never closed", "max_record_bytes",
    ),
    "complete but too long": (
        {"a.csv": b"a\n1\n" + b"x" * 1500 + b"\n2\n"},
        ["a.csv"], ReadOptions(max_record_bytes=1024), InputError,
        "record 2, starting at line 3, is longer than 1 KB", "quote", "max_record_bytes",
    ),
    "endless header": (
        {"a.csv": b"a,b" * 1000 + b"\n"}, ["a.csv"], ReadOptions(max_record_bytes=1024),
        InputError, "the first line is longer than 1 KB", "quote", "max_record_bytes",
    ),
    "endless line": (
        {"a.ndjson": b"{}\n" + b"x" * 5000}, ["a.ndjson"], ReadOptions(max_record_bytes=1024),
        InputError, "record 2, starting at line 2, is longer than 1 KB", "No line break", "raise",
    ),
    "endless blank lines": (
        {"a.log": b"x\n" + b"\n" * 5000 + b"y\n"}, ["a.log"], ReadOptions(max_record_bytes=1024),
        InputError, "more than 1 KB of empty lines follow record 1", "neither", "Remove",
    ),
    "missing, a close name exists": (
        {"customers.csv": b"a\n"}, ["custmers.csv"], ReadOptions(), InputError,
        "custmers.csv does not exist", "no such file", "Did you mean customers.csv?",
    ),
    "missing folder": (
        {}, ["nowhere/a.csv"], ReadOptions(), InputError,
        "does not exist", "folder", "spelling",
    ),
    "glob without a match": (
        {"a.csv": b"a\n"}, ["*.tsv"], ReadOptions(), InputError,
        "No file matches", "holds 1 entries: a.csv", "pattern",
    ),
    "a folder": (
        {"sub/a.csv": b"a\n"}, ["sub"], ReadOptions(), InputError,
        "is a folder, not a file", "read from files", "sub/*.csv",
    ),
    "truncated gz": (
        {"a.csv.gz": GZ[:-5000]}, ["a.csv.gz"], ReadOptions(), InputError,
        "a.csv.gz cannot be decompressed", "truncated or damaged", "gzip -t",
    ),
    "corrupted gz": (
        {"a.csv.gz": GZ[:40_000] + b"\0" * 50 + GZ[40_050:]}, ["a.csv.gz"], ReadOptions(),
        InputError, "a.csv.gz cannot be decompressed", "truncated or damaged", "gzip -t",
    ),
    "not gz at all": (
        {"a.csv.gz": b"a,b\n1,2\n"}, ["a.csv.gz"], ReadOptions(), InputError,
        "cannot be decompressed", "Not a gzipped file", "again",
    ),
    "truncated zst": (
        {"a.csv.zst": ZST[:-5000]}, ["a.csv.zst"], ReadOptions(), InputError,
        "a.csv.zst cannot be decompressed", "truncated or damaged", "zstd -t",
    ),
    "not zst at all": (
        {"a.csv.zst": b"a,b\n1,2\n"}, ["a.csv.zst"], ReadOptions(), InputError,
        "cannot be decompressed", "truncated or damaged", "zstd -t",
    ),
    "unknown extension": (
        {"a.dat": b"a\n"}, ["a.dat"], ReadOptions(), UsageError,
        "Cannot tell the format of a.dat", ".ndjson", "format =",
    ),
    "mixed formats": (
        {"a.csv": b"a\n", "b.ndjson": b"{}\n"}, ["*"], ReadOptions(), InputError,
        "a.csv is csv and", "one kind", "only one kind",
    ),
    "mixed delimiters": (
        {"a.csv": b"a\n", "b.tsv": b"a\n"}, ["*"], ReadOptions(), InputError,
        "mix .csv and .tsv", "commas", "delimiter",
    ),
    "not ascii": (
        {"a.csv": "a,b\n1,2\n1,é\n".encode()}, ["a.csv"], ReadOptions(encoding="ascii"),
        InputError, "is not ascii text: line 3, byte offset 10", "c3", "encoding = ",
    ),
    "half a utf-16 character": (
        {"a.txt": "ab\ncd".encode("utf-16-le") + b"x"}, ["a.txt"],
        ReadOptions(encoding="utf-16-le"), InputError,
        "is not utf-16-le text: line 2, byte offset 10", "78", "encoding",
    ),
    "open quote before another file": (
        {"a.csv": b'a\n"x\n', "b.csv": b"a\n1\n"}, ["*.csv"], ReadOptions(), InputError,
        "a.csv ends inside a quoted field, and b.csv follows", "line 2 is never closed", "Correct",
    ),
    "no path": ({}, [], ReadOptions(), UsageError, "No input file", "", "path ="),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    files, paths, options, kind, what, why, fix = CASES[name]
    for file, data in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(data)
    with pytest.raises(kind) as caught:
        for _ in open_source([tmp_path / path for path in paths], options).chunks():
            pass
    assert what in caught.value.what
    assert why in caught.value.why
    assert fix in caught.value.fix
    assert caught.value.fix, "every message says what to do"


BAD_OPTIONS: list[tuple[Callable[[], ReadOptions], str]] = [
    (lambda: ReadOptions(encoding="klingon"), "encoding 'klingon' is not known"),
    (lambda: ReadOptions(encoding="base64"), "encoding 'base64' is not known"),
    (lambda: ReadOptions(delimiter=";;"), "delimiter ';;' cannot be used"),
    (lambda: ReadOptions(delimiter="\n"), "cannot be used"),
    (lambda: ReadOptions(quote=""), "quote '' cannot be used"),
    (lambda: ReadOptions(delimiter="'", quote="'"), "same character"),
    (lambda: ReadOptions(quote=","), "same character"),
    (lambda: ReadOptions(chunk_bytes=0), "at least 1"),
]


@pytest.mark.parametrize(("make", "what"), BAD_OPTIONS)
def test_bad_options(make: Callable[[], ReadOptions], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert what in caught.value.what
    assert caught.value.fix


def test_a_pipe_is_refused_without_waiting_on_it(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="not a regular file") as caught:
        open_source([tmp_path / "pipe.csv"])
    assert "to a file first" in caught.value.fix
