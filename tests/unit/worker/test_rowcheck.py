"""Reading records so that a malformed one harms only itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from officegrid.data.records import record_offsets
from officegrid.wire.data import Layout
from officegrid.worker.rowcheck import Malformed, Shape, boundaries, read, read_one

CSV = Shape("csv", columns=("a", "b"))
nasty = st.lists(st.sampled_from([b"x", b",", b'"', b"\n", b"\r", b"\xff", b"\xc3\xa9", b";"]))
nasty_bytes = nasty.map(b"".join)


def errors(data: bytes, shape: Shape) -> list[Any]:
    return [v.error if isinstance(v, Malformed) else v for v in read(data, shape)]


@given(nasty_bytes, st.sampled_from([",", ";"]), st.sampled_from(["csv", "ndjson", "lines"]))
def test_boundaries_are_those_of_the_data_layer(data: bytes, delimiter: str, form: Any) -> None:
    layout = Layout(format=form, delimiter=delimiter)
    assert boundaries(data, Shape(form, delimiter)) == record_offsets(data, layout)


@given(nasty_bytes, st.sampled_from([None, ("a",), ("a", "b")]))
def test_every_record_reads_as_it_does_alone(data: bytes, columns: Any) -> None:
    shape = Shape("csv", columns=columns)
    offsets = boundaries(data, shape)
    alone = [read_one(data[a:b], shape) for a, b in pairwise(offsets)]
    assert list(read(data, shape)) == alone


def test_neighbours_of_malformed_rows_are_intact() -> None:
    data = b'1,2\n"x"y,1\nc\n1,2,3\n\n"q\nq",2\n\xff,1\nok,1\n"open,1\n'
    assert errors(data, CSV) == [
        {"a": "1", "b": "2"},
        "the row has wrong quoting: text follows the closing quote of a field",
        "the row has 1 field, the header has 2",
        "the row has 3 fields, the header has 2",
        "the row is empty",
        {"a": "q\nq", "b": "2"},
        "the record is not valid UTF-8: byte 0xff at offset 0",
        {"a": "ok", "b": "1"},
        "the row has wrong quoting: a quoted field is never closed",
    ]


def test_a_bad_record_far_behind_does_not_touch_thousands_before_it() -> None:
    good = "".join(f"{n},é\n" for n in range(5000)).encode()
    values = list(read(good + b"\xff,1\n" + good, CSV))
    assert len(values) == 10_001
    assert [i for i, v in enumerate(values) if isinstance(v, Malformed)] == [5000]
    assert values[4999] == {"a": "4999", "b": "é"}
    assert values[5001] == {"a": "0", "b": "é"}


def test_a_bare_carriage_return_is_text() -> None:
    assert errors(b"x\ry,1\r\n2,3\r\n", CSV) == [{"a": "x\ry", "b": "1"}, {"a": "2", "b": "3"}]


def test_json_lines() -> None:
    data = b'{"a":1}\r\n {"b":[2]} \n{\n\nNaN\n"x"\n' + b"[" * 100_000 + b"\n7"
    found = errors(data, Shape("ndjson"))
    assert found[:2] == [{"a": 1}, {"b": [2]}]
    assert found[2].startswith("the line is not valid JSON: Expecting property name")
    assert found[3:6] == [
        "the line is empty",
        "the line is not valid JSON: NaN is not a JSON value",
        "x",
    ]
    assert found[6:] == ["the line is not valid JSON: nested too deeply", 7]


def test_lines_keep_all_but_the_line_break() -> None:
    assert errors(b"a\r\n\n b \n\xff\nlast", Shape("lines")) == [
        "a",
        "",
        " b ",
        "the record is not valid UTF-8: byte 0xff at offset 0",
        "last",
    ]


def test_fields_may_be_huge() -> None:
    field = "x" * 300_000
    assert errors(f"{field},1\n".encode(), CSV) == [{"a": field, "b": "1"}]
