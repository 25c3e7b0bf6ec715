"""Reading records one by one so that a malformed record harms only itself.

The boundaries of records are those of `csv.reader` in its lenient mode (quoted line breaks belong
to the record), or line feeds for `ndjson` and `lines`. The reading itself is strict: a record that
is not well formed comes out as `Malformed` with a sentence, its neighbours come out intact.

Standard library only: the harness, which runs under the user's own Python, loads this file by its
path; the worker imports it as a module.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

csv.field_size_limit(2**31 - 1)

SLOW_RECORDS = 64  # records read singly after one that the fast reader could not take


# Named tuples, because loading `dataclasses` takes longer than all the rest of this module.


class Shape(NamedTuple):
    """How records are written; `columns` are the names of CSV columns (None: not known).

    `delimiter` and `quote` are one ASCII character each.
    """

    format: str  # csv | ndjson | lines
    delimiter: str = ","
    quote: str = '"'
    columns: tuple[str, ...] | None = None


class Malformed(NamedTuple):
    """A record that cannot be read, and why, in words."""

    error: str


def boundaries(data: bytes, shape: Shape) -> list[int]:
    """Byte offsets of the starts of all records in `data`, followed by `len(data)`."""
    if not data:
        return [0]
    if shape.format != "csv" or shape.quote.encode() not in data:
        lengths = [len(line) + 1 for line in data.split(b"\n")]
        lengths[-1] -= 1  # what follows the last line feed has none of its own
        if lengths[-1] == 0:
            lengths.pop()
        return list(accumulate(lengths, initial=0))
    offsets = [0]
    offsets += [m.end() for m in _csv_record(shape).finditer(data) if m.end() > m.start()]
    return offsets


def first_end(data: bytes, shape: Shape) -> int:
    """The byte offset where the first record ends."""
    return _skip(data, 0, 1, shape)


_FIRST_STEP = 1 << 16  # bytes looked at in one go; a power of two


class Place:
    """Where in its data the record is that `read` gave last.

    While the fast parsers run, only line numbers are known; they are turned into byte offsets when
    somebody asks, going on from the last answer, so that all answers for a chunk together cost
    one look at it.
    """

    __slots__ = ("_data", "_line", "_offset", "after", "before", "exact")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.exact: tuple[int, int] | None = None
        self.run_from(0)

    def run_from(self, offset: int) -> None:
        """A fast parser starts to read at this byte offset."""
        self.exact = None
        self._line = 0
        self._offset = offset
        self.before = 0  # lines of this run before the record
        self.after: Callable[[], int] | None = None  # lines after it; None: one line a record

    def span(self) -> tuple[int, int]:
        """Byte offsets of the record's start and end."""
        if self.exact is not None:
            return self.exact
        line_after = self.before + 1 if self.after is None else self.after()
        # Only the start is remembered: asking twice for one record must give the same answer.
        self._offset = start = self._seek(self.before, self._line, self._offset)
        self._line = self.before
        return start, self._seek(line_after, self._line, start)

    def _seek(self, wanted: int, line: int, offset: int) -> int:
        """The byte offset where line `wanted` starts, given that `line` starts at `offset`."""
        data, step = self._data, _FIRST_STEP
        while line < wanted:
            window_end = min(offset + step, len(data))
            found = data.count(b"\n", offset, window_end)
            if found > wanted - line:
                step >>= 1  # too far: look at less
            elif found:
                offset = data.rfind(b"\n", offset, window_end) + 1
                line += found
            else:
                end = data.find(b"\n", window_end)
                if end < 0:
                    return len(data)
                offset, line = end + 1, line + 1
        return offset


def read(data: bytes, shape: Shape, place: Place | None = None) -> Iterator[Any]:
    """All records of `data` in order: dict (csv), parsed JSON (ndjson), str (lines) or Malformed.

    A csv shape without columns yields lists. Runs at the speed of the `csv` and `json` modules as
    long as records are well formed. `place` always tells where the record given last is.
    """
    place = place or Place(data)
    position = 0
    while position < len(data):
        done = 0
        try:
            place.run_from(position)
            for value in _FAST[shape.format](_text_from(data, position), shape, place):
                done += 1
                yield value
            return
        except (csv.Error, UnicodeDecodeError):
            position = _skip(data, position, done, shape)
        for _ in range(SLOW_RECORDS):
            end = _skip(data, position, 1, shape)
            place.exact = (position, end)
            yield read_one(data[position:end], shape)
            position = end
            if position >= len(data):
                return


def read_one(record: bytes, shape: Shape) -> Any:
    """One record alone, with or without its line break; a Malformed says what is wrong with it."""
    try:
        text = record.decode()
    except UnicodeDecodeError as error:
        place = f"byte 0x{record[error.start]:02x} at offset {error.start}"
        return Malformed(f"the record is not valid UTF-8: {place}")
    if shape.format != "csv":
        return next(_FAST[shape.format](iter([text or "\n"]), shape, Place(b"")))
    try:
        return next(_csv_values(iter([text or "\n"]), shape, Place(b"")))
    except csv.Error as error:
        if "new-line character" in str(error):
            return _with_bare_returns(text, shape)
        return Malformed(_csv_sentence(str(error)))


def _with_bare_returns(text: str, shape: Shape) -> Any:
    """A CSV record with carriage returns outside quotes; they are ordinary text in its fields."""
    stand_in = next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in text)
    body = text.removesuffix("\n").rstrip("\r").replace("\r", stand_in)
    value = read_one(body.encode(), shape)
    if isinstance(value, dict):
        return {name: field.replace(stand_in, "\r") for name, field in value.items()}
    if isinstance(value, list):
        return [field.replace(stand_in, "\r") for field in value]
    return value


def _csv_values(lines: Iterator[str], shape: Shape, place: Place) -> Iterator[Any]:
    reader = csv.reader(lines, delimiter=shape.delimiter, quotechar=shape.quote, strict=True)
    place.after = lambda: reader.line_num
    columns = shape.columns
    if columns is None:
        for row in reader:
            yield row or Malformed("the row is empty")
            place.before = reader.line_num
        return
    width = len(columns)
    for row in reader:
        if len(row) == width:
            yield dict(zip(columns, row))  # noqa: B905 (the widths were just compared)
        elif row:
            fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
            yield Malformed(f"the row has {fields}, the header has {width}")
        else:
            yield Malformed("the row is empty")
        place.before = reader.line_num


def _json_values(lines: Iterator[str], shape: Shape, place: Place) -> Iterator[Any]:
    decoder = json.JSONDecoder(parse_constant=_not_json)
    scan = decoder.scan_once  # type: ignore[attr-defined]  # skips the search for white space
    for place.before, line in enumerate(lines):
        try:
            value, end = scan(line, 0)
            if line[end:] != "\n":
                value = decoder.decode(line)
        except StopIteration:
            value = _decode_slowly(decoder, line)
        except (ValueError, RecursionError) as error:
            value = Malformed(_json_sentence(error))
        yield value


def _decode_slowly(decoder: json.JSONDecoder, line: str) -> Any:
    if not line.strip():
        return Malformed("the line is empty")
    try:
        return decoder.decode(line)
    except (ValueError, RecursionError) as error:
        return Malformed(_json_sentence(error))


def _line_values(lines: Iterator[str], shape: Shape, place: Place) -> Iterator[Any]:
    for place.before, line in enumerate(lines):
        yield line.removesuffix("\n").removesuffix("\r")


_FAST: dict[str, Callable[[Iterator[str], Shape, Place], Iterator[Any]]] = {
    "csv": _csv_values,
    "ndjson": _json_values,
    "lines": _line_values,
}


def _text_from(data: bytes, position: int) -> Iterator[str]:
    # BytesIO shares `data` instead of copying it, and text is decoded in small steps.
    stream = io.BytesIO(data)
    stream.seek(position)
    return io.TextIOWrapper(stream, encoding="utf-8", newline="\n")


def _skip(data: bytes, position: int, records: int, shape: Shape) -> int:
    """The offset `records` records after `position`."""
    pattern = _csv_record(shape) if shape.format == "csv" else None
    for _ in range(records):
        if pattern is None:
            position = (data.find(b"\n", position) + 1) or len(data)
        else:
            match = pattern.match(data, position)
            position = match.end() if match else len(data)
    return position


_patterns: dict[tuple[str, str], re.Pattern[bytes]] = {}


def _csv_record(shape: Shape) -> re.Pattern[bytes]:
    """A pattern for one CSV record by the rules of the lenient `csv.reader`.

    A field that starts with a quote runs to the next single quote, and whatever follows up to the
    delimiter belongs to it; in any other field a quote is an ordinary character.
    """
    key = (shape.delimiter, shape.quote)
    if key not in _patterns:
        d, q = (re.escape(mark.encode()) for mark in key)
        plain = rb"[^%b\n]*+" % d
        quoted = rb"%b(?>[^%b]++|%b%b)*+(?:%b|\Z)%b" % (q, q, q, q, q, plain)
        field = rb"(?>%b|%b)" % (quoted, plain)
        _patterns[key] = re.compile(rb"%b(?:%b%b)*+(?:\n|\Z)" % (field, d, field))
    return _patterns[key]


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _json_sentence(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the line is not valid JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"the line is not valid JSON: {error.msg} at character {error.pos + 1}"
    return f"the line is not valid JSON: {error}"


def _csv_sentence(message: str) -> str:
    if "unexpected end of data" in message:
        return "the row has wrong quoting: a quoted field is never closed"
    if "expected after" in message:
        return "the row has wrong quoting: text follows the closing quote of a field"
    return f"the row is not valid CSV: {message}"
