"""Record boundaries: one rule, checked against Python's csv module."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.errors import UsageError
from officegrid.data.records import (
    RecordError,
    complete_records,
    count_records,
    ends_inside_quotes,
    one_byte,
    raw_record,
    record_offsets,
    skip_take,
    split_records,
    with_line_ending,
)
from officegrid.data.rows import parse_dicts, parse_rows, render_rows
from officegrid.wire.data import Layout

CSV = Layout(columns=["a", "b"])
# Few characters, all of them trouble: nearly every text is malformed somewhere.
messy_text = st.text(alphabet='a,"\n;é\0', max_size=40)
messy_with_cr = st.text(alphabet='a,"\n\r;', max_size=40)
field = st.text(alphabet='ab ,;"\n\r\té\0', max_size=8)


def csv_module_rows(text: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter))


@given(messy_text, st.sampled_from([",", ";"]))
def test_boundaries_are_those_of_the_csv_module(text: str, delimiter: str) -> None:
    layout = Layout(delimiter=delimiter)
    data = text.encode()
    rows = csv_module_rows(text, delimiter)
    records = split_records(data, layout)
    assert len(records) == len(rows) == count_records(data, layout)
    assert b"".join(records) == data
    alone = [csv_module_rows(record.decode(), delimiter)[0] for record in records]
    assert alone == rows


@given(messy_with_cr)
def test_boundaries_with_crlf_where_the_csv_module_can_read_it(text: str) -> None:
    data = text.encode()
    try:
        rows = csv_module_rows(text)
    except csv.Error:
        rows = None  # a lone CR outside quotes, which csv.reader refuses
    if rows is not None:
        assert count_records(data, CSV) == len(rows)
    if not ends_inside_quotes(data, CSV):
        parsed = parse_rows(data, CSV)
        assert len(parsed) == count_records(data, CSV)
        assert rows is None or parsed == rows
        assert parsed == [parse_rows(record, CSV)[0] for record in split_records(data, CSV)]


@given(messy_with_cr, st.integers(0, 12), st.integers(0, 12))
def test_every_view_of_the_records_agrees(text: str, skip: int, take: int) -> None:
    data = text.encode()
    records = split_records(data, CSV)
    offsets = record_offsets(data, CSV)
    assert offsets[0] == 0
    assert offsets[-1] == len(data)
    assert len(offsets) == len(records) + 1
    assert skip_take(data, CSV, skip, take) == b"".join(records[skip : skip + take])
    assert [raw_record(data, CSV, i) for i in range(len(records))] == records
    whole, length = complete_records(data, CSV)
    assert b"".join(records[:whole]) == data[:length]
    assert len(records) - whole == (length < len(data))


@given(messy_with_cr, messy_with_cr)
def test_records_do_not_change_when_bytes_follow(first: str, second: str) -> None:
    data = first.encode()
    whole, length = complete_records(data, CSV)
    longer = data[:length] + second.encode()
    assert split_records(longer, CSV)[:whole] == split_records(data, CSV)[:whole]


def test_skip_take_in_many_records() -> None:
    records = [f'{i},"line {i}\n{"x" * (i % 90)}"\n'.encode() for i in range(5000)]
    data = b"".join(records)
    for skip, take in [(0, 1), (4999, 1), (4999, 9), (2500, 1000), (0, 5000), (5000, 1), (1, 0)]:
        assert skip_take(data, CSV, skip, take) == b"".join(records[skip : skip + take])


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_a_record_that_is_not_there(index: int) -> None:
    with pytest.raises(RecordError, match=f"no record {index}") as caught:
        raw_record(b"a\nb\n", CSV, index)
    assert "2 records" in caught.value.why


def test_quotes_mean_nothing_in_other_formats() -> None:
    data = b'{"a": "\n"}\n'
    assert count_records(data, Layout(format="ndjson")) == 2
    assert count_records(data, Layout(format="lines")) == 2


@pytest.mark.parametrize("character", ["", "ab", "é", "\n", "\r", "\0"])
def test_delimiters_that_cannot_be(character: str) -> None:
    with pytest.raises(UsageError, match="cannot be used") as caught:
        one_byte(character, "delimiter")
    assert "one ASCII character" in caught.value.why
    assert "Set delimiter" in caught.value.fix


@pytest.mark.parametrize("delimiter", ["^", "]", "\\", "-", "|", "\t", " "])
def test_delimiters_that_mean_something_in_patterns(delimiter: str) -> None:
    layout = Layout(delimiter=delimiter)
    data = f'a{delimiter}"x\ny"\nb"{delimiter}"z\n"\n'.encode()
    assert split_records(data, layout) == [
        f'a{delimiter}"x\ny"\n'.encode(),
        f'b"{delimiter}"z\n"\n'.encode(),
    ]


@given(st.lists(st.lists(field, min_size=1, max_size=4), max_size=6))
def test_rendered_rows_parse_to_themselves(rows: list[list[str]]) -> None:
    data = render_rows(rows, CSV)
    assert parse_rows(data, CSV) == rows
    assert count_records(data, CSV) == len(rows)


@given(st.lists(st.lists(field, min_size=2, max_size=2), max_size=6))
def test_rendering_is_row_by_row(rows: list[list[str]]) -> None:
    assert render_rows(rows, CSV) == b"".join(render_rows([row], CSV) for row in rows)


def test_text_that_utf8_cannot_hold_names_its_row() -> None:
    with pytest.raises(RecordError, match="UTF-8") as caught:
        render_rows([["a"], ["b\nc"], ["x\n\ud800"]], CSV)
    assert caught.value.record == 2


def test_a_lone_cr_is_text() -> None:
    assert parse_rows(b'a\rb,"c"\rd\r\n"q""x",\r"\n', CSV) == [["a\rb", "c\rd"], ['q"x', '\r"']]


def test_a_very_large_field_is_read() -> None:
    value = "x" * 400_000
    assert parse_rows(f'"{value}"\n'.encode(), CSV) == [[value]]


def test_bad_records_do_not_cost_the_others() -> None:
    data = b'1,2\n\n1,2,3\n\xff,2\nok,"fine"\nx,"open\n'
    found = parse_dicts(data, CSV, ["a", "b"])
    assert found[0] == {"a": "1", "b": "2"}
    assert found[4] == {"a": "ok", "b": "fine"}
    problems = {i: r for i, r in enumerate(found) if isinstance(r, RecordError)}
    assert [r.record for r in problems.values()] == [1, 2, 3, 5]
    assert "empty row" in problems[1].what
    assert "3 fields" in problems[2].what
    assert "2 columns" in problems[2].what
    assert "not valid UTF-8" in problems[3].what
    assert "never closed" in problems[5].what


def test_clean_records_as_dicts_and_widths() -> None:
    found = parse_dicts(b"1,2\n3\n", CSV, ["a", "b"])
    assert found[0] == {"a": "1", "b": "2"}
    assert isinstance(found[1], RecordError)
    assert found[1].record == 1


def test_undecodable_bytes_name_their_record() -> None:
    with pytest.raises(RecordError) as caught:
        parse_rows(b'a,"x\ny"\nb,c\nd,\xe9\n', CSV)
    assert caught.value.record == 2
    assert "0xe9" in caught.value.why


@given(messy_with_cr)
def test_line_endings_change_and_nothing_else(text: str) -> None:
    data = text.encode()
    if ends_inside_quotes(data, CSV):
        return
    unix = with_line_ending(data, CSV, b"\n")
    windows = with_line_ending(data, CSV, b"\r\n")
    assert count_records(unix, CSV) == count_records(windows, CSV) == count_records(data, CSV)
    assert with_line_ending(windows, CSV, b"\n") == unix
    for a, b in zip(split_records(unix, CSV), split_records(windows, CSV), strict=True):
        assert b == a[:-1] + b"\r\n"
    assert parse_rows(unix, CSV) == parse_rows(windows, CSV) == parse_rows(data, CSV)
