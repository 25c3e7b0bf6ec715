"""Writing what a Python program returns as output records, piece by piece.

A piece is a run of output rows with the same columns; bad records lie between pieces. Standard
library only: the harness loads this file by its path.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

ERROR_CHARS = 2000


class UnfitResultError(Exception):
    """What the program returned cannot be written as output; trying again would not help."""


class CsvOutput:
    """Rows as CSV bytes; a column not seen before starts a new piece with wider columns."""

    def __init__(self, seen: list[str], fixed: list[str] | None) -> None:
        self.columns = list(seen) if fixed is None else list(fixed)
        self._fixed = fixed is not None
        self._piece_columns = self.columns
        self.items: list[list[Any]] = []
        self.payload = bytearray()
        self._rows = 0
        self._piece_start = 0
        # writerow returns what `write` returns: the encoded row, with no buffer in between
        self._row: Callable[[Any], bytes] = csv.writer(
            SimpleNamespace(write=str.encode), lineterminator="\n"
        ).writerow

    def add(self, result: Any) -> None:
        if result.__class__ is dict and list(result) == self.columns and result:
            self.payload += self._row(result.values())
            self._rows += 1
        elif result is not None:
            self._add_all(result if isinstance(result, (list, tuple)) else [result])

    def _add_all(self, results: Any) -> None:
        columns = self._columns_with(results)
        rows = [self._row([item.get(name) for name in columns]) for item in results]
        if columns != self.columns:
            self._end_piece()
            self.columns = self._piece_columns = columns
        for row in rows:
            self.payload += row
        self._rows += len(rows)

    def _columns_with(self, results: Any) -> list[str]:
        columns = self.columns
        known = set(columns)
        for item in results:
            if not isinstance(item, dict):
                raise UnfitResultError(
                    f"returned {type(item).__name__}; CSV output needs dict, list of dicts or None"
                )
            if not item and not self._fixed:
                raise UnfitResultError("returned a dict without any column")
            for name in item:
                if name in known:
                    continue
                if self._fixed:
                    raise UnfitResultError(f"column {name!r} is not in [output] columns")
                if not isinstance(name, str):
                    raise UnfitResultError(f"column name {name!r} is not text")
                columns = [*columns, name]
                known.add(name)
        return columns

    def bad(self, index: int, error: str, attempts: int, start: int, end: int) -> None:
        """Note a record that is set aside; its bytes are `[start, end)` of the run's data."""
        self._end_piece()
        self.items.append(["bad", index, error[:ERROR_CHARS], attempts, start, end])

    def _end_piece(self) -> None:
        if self._rows:
            size = len(self.payload) - self._piece_start
            self.items.append(["out", size, self._rows, self._piece_columns])
        self._rows = 0
        self._piece_start = len(self.payload)

    def finish(self) -> None:
        self._end_piece()


class LineOutput(CsvOutput):
    """One line per value: JSON for `ndjson`, the plain text for `lines`."""

    def __init__(self, as_json: bool) -> None:
        super().__init__([], None)
        self._piece_columns = None  # type: ignore[assignment]
        encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        self._encode = encoder.encode
        self._line = self._json_line if as_json else self._text_line

    def add(self, result: Any) -> None:
        if result is None:
            return
        if isinstance(result, (list, tuple)):
            lines = [self._line(item) for item in result]
            self.payload += b"".join(lines)
            self._rows += len(lines)
        else:
            self.payload += self._line(result)
            self._rows += 1

    def _json_line(self, value: Any) -> bytes:
        try:
            return self._encode(value).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise UnfitResultError(f"the result cannot be written as JSON: {error}") from error

    def _text_line(self, value: Any) -> bytes:
        text = str(value)
        if "\n" in text or "\r" in text:
            raise UnfitResultError("the result contains a line break and cannot be one output line")
        return text.encode() + b"\n"


def output_for(form: str, columns: list[str] | None, seen: list[str]) -> CsvOutput:
    """The writer for output format `form`; `seen` are columns met earlier in the same chunk."""
    return CsvOutput(seen, columns) if form == "csv" else LineOutput(form == "ndjson")
