"""Parquet files as NDJSON records, one JSON object a row, streamed.

integers, decimals      JSON numbers with all their digits
floats                  JSON numbers (shortest exact form); "nan", "inf", "-inf" as strings
booleans, null, text    themselves
dates, times            ISO 8601 strings; with a time zone in UTC, ending in Z
blobs                   base64 strings
lists, structs, maps    arrays and objects, by the same rules (map keys become text)
all others              strings, as DuckDB writes them
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from officegrid.core.errors import InputError
from officegrid.data.csv_header import check_same
from officegrid.data.cutter import Chunk
from officegrid.data.duck import connect, name, text
from officegrid.data.options import ReadOptions, compression_of
from officegrid.data.sources import Source
from officegrid.wire.data import Layout

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from duckdb.sqltypes import DuckDBPyType

_ROWS_A_FETCH = 2048
_INTEGERS = ("tinyint", "smallint", "integer", "bigint", "hugeint")
_NUMBERS = {"boolean", "decimal", *_INTEGERS, *(f"u{kind}" for kind in _INTEGERS)}


class ParquetSource(Source):
    """Rows of Parquet files. Raises UsageError without DuckDB, InputError for unreadable files."""

    def __init__(self, files: Sequence[Path], options: ReadOptions) -> None:
        super().__init__(files, Layout(format="ndjson", header=False))
        self._options = options
        for file in files:
            if compression_of(file):
                raise InputError(
                    f"{file} is a compressed Parquet file.",
                    "Parquet is compressed inside and is read at many places at once.",
                    "Decompress it first.",
                )
        self._connection = connect()
        self._selects = [self._select(file) for file in files]
        self._rows = [self._row_count(file) for file in files]

    def _select(self, file: Path) -> str:
        rows = f"read_parquet({text(str(file))})"
        try:
            relation = self._connection.sql(f"SELECT * FROM {rows}")
        except Exception as error:
            raise _unreadable(file, error) from None
        if file is self.files[0]:
            self._first_columns = list(relation.columns)
        check_same(self.files[0], self._first_columns, file, list(relation.columns))
        fields = (
            (column, name(column), kind)
            for column, kind in zip(relation.columns, relation.types, strict=True)
        )
        return f"SELECT {_object(fields)} FROM {rows}"

    def _row_count(self, file: Path) -> int:
        query = f"SELECT sum(num_rows) FROM parquet_file_metadata({text(str(file))})"
        row = self._connection.execute(query).fetchone()
        return int(row[0]) if row and row[0] is not None else 0

    def chunks(self) -> Iterator[Chunk]:
        self._restart()
        finished = 0
        for file, select, total in zip(self.files, self._selects, self._rows, strict=True):
            size, read = file.stat().st_size, 0
            for chunk in self._chunks_of(file, select):
                read += chunk.records
                self.bytes_read = finished + size * read // max(total, 1)
                yield self._count(chunk)
            finished += size
            self.bytes_read = finished

    def _chunks_of(self, file: Path, select: str) -> Iterator[Chunk]:
        lines: list[bytes] = []
        size = 0
        cursor: DuckDBPyConnection = self._connection.cursor()
        try:
            cursor.execute("SET TimeZone = 'UTC'")
            cursor.execute(select)
            while rows := cursor.fetchmany(_ROWS_A_FETCH):
                for (line,) in rows:
                    lines.append(line.encode() + b"\n")
                    size += len(lines[-1])
                    self._check_size(file, len(lines[-1]), len(lines))
                    if size >= self._options.chunk_bytes:
                        yield Chunk(b"".join(lines), len(lines))
                        lines, size = [], 0
            if lines:
                yield Chunk(b"".join(lines), len(lines))
        except InputError:
            raise
        except Exception as error:
            raise _unreadable(file, error) from None
        finally:
            cursor.close()

    def _check_size(self, file: Path, length: int, in_chunk: int) -> None:
        if length > self._options.max_record_bytes:
            raise InputError(
                f"{file}: record {self.records + in_chunk} is longer than "
                f"{self._options.max_record_bytes} bytes as JSON.",
                "Records are handled whole, so their size is limited.",
                "Leave large columns out of the file, or raise max_record_bytes.",
            )


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(
        f"{file} cannot be read as Parquet.",
        str(error).splitlines()[0],
        "Check that the file is complete and is Parquet; set [input] format if it is not.",
    )


def _json_of(sql: str, kind: DuckDBPyType, depth: int = 0) -> str:
    """SQL for the JSON text of a value, by the table above; `depth` keeps lambda names apart.

    Text is put together here instead of by nested JSON functions: those read inner JSON again
    and would round decimals to floats.
    """
    return f"coalesce({_json_or_null(sql, kind, depth)}, 'null')"


def _json_or_null(sql: str, kind: DuckDBPyType, depth: int) -> str:
    if kind.id in _NUMBERS:
        return f"{sql}::VARCHAR"
    if kind.id in ("float", "double"):
        finite = f"to_json({sql})::VARCHAR"
        return f"CASE WHEN isfinite({sql}) THEN {finite} ELSE {_string(f'{sql}::VARCHAR')} END"
    if kind.id == "blob":
        return _string(f"base64({sql})")
    if kind.id == "timestamp with time zone":
        return _string(f"replace(replace({sql}::VARCHAR, ' ', 'T'), '+00', 'Z')")
    if kind.id.startswith("timestamp"):
        return _string(f"replace({sql}::VARCHAR, ' ', 'T')")
    if kind.id in ("list", "array", "map", "struct"):
        return f"CASE WHEN {sql} IS NOT NULL THEN {_nested(sql, kind, depth)} END"
    return _string(f"{sql}::VARCHAR")


def _string(sql: str) -> str:
    return f"to_json({sql})::VARCHAR"


def _nested(sql: str, kind: DuckDBPyType, depth: int) -> str:
    children = cast("list[tuple[str, DuckDBPyType]]", kind.children)
    if kind.id == "struct":
        fields = ((key, f"{sql}.{name(key)}", child) for key, child in children)
        return _object(fields, depth)
    item = f"e{depth}"
    if kind.id == "map":
        value = _json_of(f"{item}.value", children[1][1], depth + 1)
        pair = f"{_string(f'{item}.key::VARCHAR')} || ':' || {value}"
        pairs = f"list_transform(map_entries({sql}), lambda {item}: {pair})"
        return f"'{{' || coalesce(array_to_string({pairs}, ','), '') || '}}'"
    values = f"list_transform({sql}, lambda {item}: {_json_of(item, children[0][1], depth + 1)})"
    return f"'[' || coalesce(array_to_string({values}, ','), '') || ']'"


def _object(fields: Iterable[tuple[str, str, DuckDBPyType]], depth: int = 0) -> str:
    """SQL for the text of a JSON object, from (key, SQL of its value, type)."""
    parts: list[str] = []
    for key, sql, kind in fields:
        lead = ("," if parts else "{") + json.dumps(key, ensure_ascii=False) + ":"
        parts.append(f"{text(lead)} || {_json_of(sql, kind, depth)}")
    return " || ".join(parts) + " || '}'"
