"""Records on their way into a table: pieces as the grid stores them, as batches column by column.

NULL is what reading makes of it: in CSV the `null` text without quotes, in NDJSON null or a key
that is not there. Records are numbered over all pieces, from 0; people see them from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from officegrid.data.convert import LINE_COLUMN, key_union, text_lines
from officegrid.data.json_text import parse_object
from officegrid.data.records import RecordError, split_records
from officegrid.data.rows import check_width, parse_rows
from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.target import Target
from officegrid.wire.data import Layout

BATCH_ROWS = 2000
_QUOTED_NULL = "\udc00"  # half a surrogate pair: never in decoded UTF-8


@dataclass(frozen=True, slots=True)
class Batch:
    """Some records: one list per column, each `records` long, the first of them number `first`.

    Values are text, None, and from NDJSON also bool, dict and list.
    """

    first: int
    records: int
    columns: list[list[Any]]


class Incoming:
    """`names` are the columns of all records, in order; known before the first is taken."""

    def __init__(self, pieces: Iterable[OutputPiece], stored: Layout, target: Target) -> None:
        self._stored = stored
        self._null = target.null
        rest = iter(pieces)
        first = next((piece for piece in rest if piece.data), None)
        self._pieces: Iterator[OutputPiece] = iter(()) if first is None else chain([first], rest)
        self._before = 0
        self.names = list(target.columns or self._named_by(first))
        self._in_quotes = (stored.quote + target.null + stored.quote).encode()
        self._quoted_null = re.compile(
            b"(?:\\A|[\n%b])%b(?=[\r\n%b]|\\Z)"
            % (
                re.escape(stored.delimiter.encode()),
                re.escape(self._in_quotes),
                re.escape(stored.delimiter.encode()),
            )
        )

    def _named_by(self, piece: OutputPiece | None) -> Sequence[str]:
        if self._stored.format == "lines":
            return [LINE_COLUMN]
        if self._stored.format == "csv":
            return (piece and piece.columns) or self._stored.columns or []
        if piece is None:
            return []
        with self._numbered():
            return key_union(self._objects(piece.data))

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        try:
            yield
        except RecordError as error:
            number = self._before + error.record
            raise RecordError(
                f"Record {number + 1} cannot be read: {error.what}",
                error.why,
                error.fix,
                record=number,
            ) from None

    def batches(self) -> Iterator[Batch]:
        """All records. Raises RecordError, whose `record` counts over all pieces."""
        for piece in self._pieces:
            with self._numbered():
                rows, names = self._rows(piece)
            place = {name: index for index, name in enumerate(names)}
            for begin in range(0, len(rows), BATCH_ROWS):
                part = rows[begin : begin + BATCH_ROWS]
                found = list(zip(*part, strict=True))
                columns = [
                    self._values(found[place[name]]) if name in place else [None] * len(part)
                    for name in self.names
                ]
                yield Batch(self._before + begin, len(part), columns)
            self._before += len(rows)

    def _rows(self, piece: OutputPiece) -> tuple[Sequence[Sequence[Any]], Sequence[str]]:
        if self._stored.format == "lines":
            return [(line,) for line in text_lines(piece.data, self._stored)], [LINE_COLUMN]
        if self._stored.format == "csv":
            names = piece.columns or self._stored.columns or self.names
            for name in names:
                if name not in self.names:
                    raise self._extra(name, 0)
            return self._csv_rows(piece.data, names), names
        objects = self._objects(piece.data)
        known = set(self.names)
        for index, found in enumerate(objects):
            if not known.issuperset(found):
                raise self._extra(next(key for key in found if key not in known), index)
        return [[found.get(name) for name in self.names] for found in objects], self.names

    def _extra(self, name: str, index: int) -> RecordError:
        return RecordError(
            f"It has a column {name!r} that the records before it have not.",
            f"The columns are {', '.join(self.names)}.",
            "Name all columns in [output] columns.",
            record=index,
        )

    def _objects(self, data: bytes) -> list[dict[str, Any]]:
        lines = text_lines(data, self._stored)
        return [parse_object(line, index) for index, line in enumerate(lines)]

    def _csv_rows(self, data: bytes, names: Sequence[str]) -> list[list[str]]:
        """Fields of each row; those that are the `null` text without quotes are still that text."""
        rows = parse_rows(data, self._stored)
        width = len(names)
        if set(map(len, rows)) != {width}:
            for index, row in enumerate(rows):
                if width == 1 and not row:
                    row.append("")  # an empty line is one empty field
                check_width(row, names, index)
        if self._in_quotes in data and self._quoted_null.search(data):
            self._keep_quoted(data, rows)
        return rows

    def _keep_quoted(self, data: bytes, rows: list[list[str]]) -> None:
        """Mark fields that are the `null` text but in quotes: they are that text."""
        for row, record in zip(rows, split_records(data, self._stored), strict=True):
            if self._null in row and self._quoted_null.search(record):
                for index, is_quoted in enumerate(_in_quotes(record.decode(), self._stored)):
                    if is_quoted and row[index] == self._null:
                        row[index] = _QUOTED_NULL

    def _values(self, found: Sequence[Any]) -> list[Any]:
        """One column with NULL in its places."""
        if self._stored.format == "csv" and self._null in found:
            null = self._null
            found = [None if value == null else value for value in found]
        if self._stored.format == "csv" and _QUOTED_NULL in found:
            return [self._null if value == _QUOTED_NULL else value for value in found]
        return list(found)


def _in_quotes(record: str, layout: Layout) -> list[bool]:
    """For each field of one complete record, whether it begins with a quote."""
    delimiter, quote = layout.delimiter, layout.quote
    record = record.removesuffix("\n")
    found: list[bool] = []
    at = 0
    while True:
        found.append(record.startswith(quote, at))
        if found[-1]:
            at = record.find(quote, at + 1)
            while at >= 0 and record.startswith(quote, at + 1):
                at = record.find(quote, at + 2)
        stop = record.find(delimiter, max(at, 0)) if at >= 0 else -1
        if stop < 0:
            return found
        at = stop + 1


def misfit(record: int, column: str, value: object, why: str) -> RecordError:
    """One value that the table does not take; `record` counts from 0."""
    if isinstance(value, bytes):
        shown = f"{len(value)} bytes"
    else:
        text = str(value)
        shown = "NULL" if value is None else repr(text[:60]) + ("…" if len(text) > 60 else "")
    return RecordError(
        f"Record {record + 1} does not fit: column {column!r} does not take {shown}.",
        f"{why.removesuffix('.')}. Nothing was changed.",
        "Correct the program or the column, and run it again.",
        record=record,
    )
