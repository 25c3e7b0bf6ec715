"""CSV records as lists of text, and back.

Parsing follows the boundaries of `records` exactly: one row for every record. A CR that is not
part of a line ending is ordinary text in a field.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import NoReturn

from officegrid.data.records import RecordError, count_records, ends_inside_quotes, split_records
from officegrid.wire.data import Layout

# The default of 128 KiB a field is a guard for careless readers; ours is `max_record_bytes`.
csv.field_size_limit(2**31 - 1)


def decode_records(data: bytes, layout: Layout) -> str:
    """The bytes as text. Raises RecordError, naming the record, where they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        index = max(count_records(data[: error.start + 1], layout) - 1, 0)
        raise RecordError(
            "The record is not valid UTF-8 text.",
            f"The byte 0x{data[error.start]:02x} at offset {error.start} "
            f"of these records: {error.reason}.",
            'Set the encoding of the input, for example encoding = "latin-1" or "cp1252".',
            record=index,
        ) from None


def parse_rows(data: bytes, layout: Layout) -> list[list[str]]:
    """All fields of all records. Blank lines give `[]`.

    Raises RecordError for bytes that are not UTF-8 and for a quote that is never closed.
    """
    text = decode_records(data, layout)
    if ends_inside_quotes(data, layout):
        raise RecordError(
            "The record has a quote that is never closed.",
            f"A field begins with {layout.quote} and the data ends before the closing one.",
            f"Close the quote, or double it ({layout.quote * 2}) where it is part of the text.",
            record=count_records(data, layout) - 1,
        )
    lines = io.StringIO(text, newline="\n")
    try:
        return list(csv.reader(lines, delimiter=layout.delimiter, quotechar=layout.quote))
    except csv.Error:  # a CR outside quotes that ends no line: csv.reader gives up, we need not
        return [_fields(record.decode(), layout) for record in split_records(data, layout)]


def _fields(record: str, layout: Layout) -> list[str]:
    """The fields of one complete record, with any CR inside it kept as text."""
    delimiter, quote = layout.delimiter, layout.quote
    record = record.removesuffix("\n")
    if not record.strip("\r"):
        return []
    fields: list[str] = []
    at = 0
    while True:
        value = ""
        if record.startswith(quote, at):
            close = _closing_quote(record, at, quote)
            value = record[at + 1 : close].replace(quote * 2, quote)
            at = close + 1
        stop = record.find(delimiter, at)
        if stop < 0:
            fields.append(value + record[at:].rstrip("\r"))
            return fields
        fields.append(value + record[at:stop])
        at = stop + 1


def _closing_quote(record: str, opening: int, quote: str) -> int:
    at = record.find(quote, opening + 1)
    while at >= 0 and record.startswith(quote, at + 1):
        at = record.find(quote, at + 2)
    return at if at >= 0 else len(record)


def check_width(row: Sequence[str], columns: Sequence[str], index: int) -> None:
    """Raises RecordError unless the row has exactly one field per column."""
    if len(row) != len(columns):
        _refuse_width(row, columns, index)


def _refuse_width(row: Sequence[str], columns: Sequence[str], index: int) -> NoReturn:
    if not row:
        raise RecordError(
            "The record is an empty row.",
            f"The line is blank; the header names {len(columns)} columns.",
            "Remove the blank line from the input.",
            record=index,
        )
    raise RecordError(
        f"The record has {len(row)} fields; the header names {len(columns)} columns.",
        "A delimiter is missing, or one too many is not inside quotes.",
        "Correct the record, or quote fields that contain the delimiter.",
        record=index,
    )


class _Rows:
    """Collects what a csv writer prints, one string a row."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def write(self, row: str) -> int:
        self.rows.append(row)
        return len(row)


def render_rows(rows: Iterable[Sequence[str]], layout: Layout) -> bytes:
    """CSV bytes of the rows, LF after each, quoted only where needed.

    The one renderer of the product: the same row gives the same bytes wherever it is written.
    Raises RecordError for text that UTF-8 cannot hold (lone surrogates).
    """
    sink = _Rows()
    # With CR LF as the terminator the writer quotes fields that hold either of them.
    writer = csv.writer(
        sink, delimiter=layout.delimiter, quotechar=layout.quote, lineterminator="\r\n"
    )
    writer.writerows(rows)
    text = "".join([row[:-2] + "\n" for row in sink.rows])
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        counted = text[: error.start].encode("utf-8")
        raise RecordError(
            "The record holds text that UTF-8 cannot carry.",
            f"It has half of a surrogate pair, \\u{ord(text[error.start]):04x}, standing alone.",
            "Correct the character in the data, or leave it out in the program.",
            record=_row_of(counted, layout),
        ) from None


def _row_of(before: bytes, layout: Layout) -> int:
    """Index of the row that the byte after `before` belongs to."""
    at_boundary = not before or (before.endswith(b"\n") and not ends_inside_quotes(before, layout))
    return count_records(before, layout) - (0 if at_boundary else 1)


def parse_dicts(
    data: bytes, layout: Layout, columns: Sequence[str]
) -> list[dict[str, str] | RecordError]:
    """One entry for every record: its fields by column name, or why it cannot be read.

    Never raises for a bad record, so that one of them does not cost the others.
    """
    try:
        rows = parse_rows(data, layout)
    except RecordError:
        return _dicts_one_by_one(data, layout, columns)
    width = len(columns)
    found: list[dict[str, str] | RecordError] = []
    for index, row in enumerate(rows):
        if len(row) == width:
            found.append(dict(zip(columns, row, strict=True)))
        else:
            found.append(_width_error(row, columns, index))
    return found


def _width_error(row: Sequence[str], columns: Sequence[str], index: int) -> RecordError:
    try:
        _refuse_width(row, columns, index)
    except RecordError as error:
        return error


def _dicts_one_by_one(
    data: bytes, layout: Layout, columns: Sequence[str]
) -> list[dict[str, str] | RecordError]:
    found: list[dict[str, str] | RecordError] = []
    for index, record in enumerate(split_records(data, layout)):
        try:
            row = parse_rows(record, layout)[0]
            check_width(row, columns, index)
            found.append(dict(zip(columns, row, strict=True)))
        except RecordError as error:
            error.record = index
            found.append(error)
    return found
