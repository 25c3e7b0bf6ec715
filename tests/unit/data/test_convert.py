"""Records from one format to another, exactly."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.data.convert import convert, recolumn
from officegrid.data.records import RecordError
from officegrid.data.rows import parse_rows, render_rows
from officegrid.wire.data import Format, Layout

CSV = Layout(columns=["a", "b"])
NDJSON = Layout(format="ndjson")
LINES = Layout(format="lines")
value = st.text(alphabet='ab ,"\n\r\\é\0 ', max_size=6)
two_columns = st.lists(st.lists(value, min_size=2, max_size=2), max_size=6)


@given(two_columns)
def test_csv_to_ndjson_and_back(rows: list[list[str]]) -> None:
    data = render_rows(rows, CSV)
    objects = convert(data, ["a", "b"], CSV, "ndjson")
    assert [json.loads(line) for line in objects.split(b"\n")[:-1]] == [
        dict(zip(["a", "b"], row, strict=True)) for row in rows
    ]
    assert convert(objects, None, NDJSON, "csv", ["a", "b"]) == data
    assert convert(objects, None, NDJSON, "ndjson") == objects


@given(two_columns, st.permutations(["a", "b", "c"]))
def test_recolumn_is_by_name(rows: list[list[str]], want: list[str]) -> None:
    data = render_rows(rows, CSV)
    found = parse_rows(recolumn(data, ["a", "b"], want, CSV), CSV)
    assert found == [[{"a": row[0], "b": row[1], "c": ""}[name] for name in want] for row in rows]


def test_equal_columns_give_the_same_bytes() -> None:
    odd = b'"1","2"\r\n"x"y,z\n'
    assert recolumn(odd, ["a", "b"], ["a", "b"], CSV) is odd
    assert convert(odd, ["a", "b"], CSV, "csv", header=True) == b"a,b\n" + odd


def test_json_values_as_fields() -> None:
    data = (
        b'{"n":1.10,"big":123456789012345678901234567890,"e":1E400,"z":-0,'
        b'"t":true,"f":false,"null":null,"s":"x,\\"y","l":[1.50,"\xc3\xa9",{"k":null}],"o":{}}\r\n'
    )
    names = ["n", "big", "e", "z", "t", "f", "null", "s", "l", "o", "missing"]
    row = next(csv.reader(io.StringIO(convert(data, None, NDJSON, "csv", names).decode())))
    assert row == [
        "1.10", "123456789012345678901234567890", "1E400", "-0", "true", "false", "",
        'x,"y', '[1.50,"é",{"k":null}]', "{}", "",
    ]  # fmt: skip


def test_columns_of_ndjson_are_all_keys_as_first_seen() -> None:
    data = b'{"b":1}\n{"a":2,"b":3}\n'
    assert convert(data, None, NDJSON, "csv", header=True) == b"b,a\n1,\n3,2\n"


def test_digits_beyond_the_limit_of_python_integers() -> None:
    digits = "9" * 10_000
    data = f'{{"n":{digits}}}\n'.encode()
    assert convert(data, None, NDJSON, "csv", ["n"]) == f"{digits}\n".encode()


def test_lines_in_other_formats() -> None:
    data = b'say "hi", all\r\n\nlast'
    assert convert(data, None, LINES, "ndjson") == (
        b'{"line":"say \\"hi\\", all"}\n{"line":""}\n{"line":"last"}\n'
    )
    assert convert(data, None, LINES, "csv", header=True) == (
        b'line\n"say ""hi"", all"\n""\nlast\n'
    )
    assert convert(data, None, LINES, "lines") == data + b"\n"


def test_delimiters_are_kept() -> None:
    layout = Layout(delimiter=";", columns=["a", "b"])
    assert convert(b'1;"x;y"\n', None, layout, "ndjson") == b'{"a":"1","b":"x;y"}\n'
    assert convert(b"1;2\n", None, layout, "csv", ["b"], header=True) == b"b\n2\n"


BAD: dict[str, tuple[bytes, Layout, Format, int, str]] = {
    "not json": (b'{"a":1}\n{"a":\n', NDJSON, "csv", 1, "not valid JSON"),
    "blank line": (b'{"a":1}\n\n{}\n', NDJSON, "csv", 1, "not valid JSON"),
    "too deep": (b"[" * 100_000 + b"\n", NDJSON, "csv", 0, "not valid JSON"),
    "an array": (b'{"a":1}\n{}\n[1]\n', NDJSON, "csv", 2, "not a JSON object"),
    "half a surrogate": (b'{"a":"x"}\n{"a":"\\ud800"}\n', NDJSON, "csv", 1, "UTF-8 cannot carry"),
    "too many fields": (b"1,2\n1,2,3\n", CSV, "ndjson", 1, "has 3 fields"),
    "too few fields": (b"1,2\n1\n", CSV, "ndjson", 1, "has 1 fields"),
    "empty row": (b"1,2\n\n1,2\n", CSV, "ndjson", 1, "empty row"),
    "not utf-8": (b'1,"\n"\n\xff,2\n', CSV, "ndjson", 1, "not valid UTF-8"),
    "open quote": (b'1,2\n1,"2\n', CSV, "ndjson", 1, "never closed"),
    "several lines": (b'1,2\n1,"2\n3"\n', CSV, "lines", 1, "spans several lines"),
    "not utf-8 line": (b"a\nb\n\xff\n", LINES, "ndjson", 2, "not valid UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_records_that_cannot_be_converted(name: str) -> None:
    data, layout, target, record, what = BAD[name]
    with pytest.raises(RecordError) as caught:
        convert(data, None, layout, target)
    assert caught.value.record == record
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix


def test_recolumn_refuses_rows_of_another_width() -> None:
    with pytest.raises(RecordError, match="3 fields") as caught:
        recolumn(b"1,2\n1,2,3\n", ["a", "b"], ["b"], CSV)
    assert caught.value.record == 1
