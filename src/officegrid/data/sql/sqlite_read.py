"""Reading from an SQLite file: opened read-only, one read transaction.

SQLite has a type per value, not per column. A column's kind is that of its declaration; a value of
another type is written as what it is.
"""

from __future__ import annotations

import math
import sqlite3
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from json.encoder import encode_basestring
from typing import Any
from urllib.parse import quote

from officegrid.data.cutter import Chunk
from officegrid.data.sql.columns import Column, Kind, check_names
from officegrid.data.sql.reader import Reader, Reading, too_long
from officegrid.data.sql.render import JsonRows, Texts, csv_bytes
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.statement import checked_select, quoted_table
from officegrid.data.sql.troubles import from_sqlite

_ALLOWED = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
}  # fmt: skip


def connect_sqlite(source: SqlSource, mode: str) -> sqlite3.Connection:
    """`mode` is ro or rw. Raises OfficeGridError; the file is never created."""
    uri = f"file:{quote(source.database)}?mode={mode}"
    try:
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=30, check_same_thread=False
        )
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise from_sqlite(source, error) from None
    return connection


def kind_of(declared: str) -> Kind:
    """By SQLite's own rules of affinity, then by what people mean."""
    name = declared.upper()
    if "INT" in name:
        return "integer"
    if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
        return "text"
    if "BLOB" in name:
        return "blob"
    if any(word in name for word in ("REAL", "FLOA", "DOUB")):
        return "float"
    if "DEC" in name or "NUMERIC" in name:
        return "decimal"
    return "other"


class SqliteReader(Reader):
    def __init__(self, source: SqlSource, reading: Reading) -> None:
        self._source = source
        self._reading = reading
        self.warnings = []
        self._connection = connect_sqlite(source, "ro")
        try:
            self._begin()
        except sqlite3.Error as error:
            self.close()
            raise from_sqlite(source, error) from None
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        connection, reading = self._connection, self._reading
        if reading.table is not None:
            sql = f"SELECT * FROM {quoted_table(reading.table, 'sqlite')}"
        else:
            sql = checked_select(reading.sql or "", "sqlite")
        connection.setlimit(
            sqlite3.SQLITE_LIMIT_LENGTH,
            min(reading.max_record_bytes, connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)),
        )
        connection.execute("BEGIN")
        # A temporary view is in memory and knows the declared types of the columns.
        connection.execute("PRAGMA temp_store = MEMORY")
        with suppress(sqlite3.OperationalError):
            connection.execute(f"CREATE TEMP VIEW og_types AS {sql}")
        types = [row[2] for row in connection.execute("PRAGMA temp.table_info(og_types)")]
        connection.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY
        )
        self._cursor = connection.execute(sql)
        names = [str(column[0]) for column in self._cursor.description or ()]
        if len(types) != len(names):
            types = [""] * len(names)
        self.columns = [Column(n, kind_of(t), t) for n, t in zip(names, types, strict=True)]
        check_names(self.columns)

    def chunks(self) -> Iterator[Chunk]:
        objects = JsonRows(self.columns)
        try:
            for rows in self._groups():
                values = zip(*rows, strict=True)
                pairs = list(zip(values, self.columns, strict=True))
                if self._reading.format == "csv":
                    data = csv_bytes([_texts(v) for v, _ in pairs], self._reading.null)
                else:
                    data = objects.bytes([_jsons(v, column.kind) for v, column in pairs])
                yield Chunk(data, len(rows))
        except sqlite3.Error as error:
            raise from_sqlite(self._source, error) from None
        finally:
            self.close()

    def _groups(self) -> Iterator[list[tuple[Any, ...]]]:
        """Rows in groups of about `chunk_bytes`; short values count as a few bytes each."""
        limit, most = self._reading.chunk_bytes, self._reading.max_record_bytes
        base = 12 * len(self.columns)
        rows: list[tuple[Any, ...]] = []
        records = size = 0
        for row in self._cursor:
            rows.append(row)
            length = base
            for value in row:
                if (type(value) is str or type(value) is bytes) and len(value) > 24:
                    length += len(value)
            size += length
            if length > most:
                raise too_long(records + len(rows), most)
            if size >= limit:
                records += len(rows)
                yield rows
                rows, size = [], 0
        if rows:
            yield rows

    def close(self) -> None:
        with suppress(Exception):
            self._connection.close()


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "Infinity" if value > 0 else "-Infinity"  # SQLite has no NaN: it stores NULL


def _infinite(values: Sequence[Any], kinds: set[type]) -> bool:
    return float in kinds and (math.inf in values or -math.inf in values)


def _text(value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    if type(value) is bytes:
        return b64encode(value).decode()
    return _number(value) if type(value) is float else str(value)


def _texts(values: Sequence[Any]) -> Texts:
    kinds = set(map(type, values))
    if kinds <= {str, type(None)}:
        return values
    if kinds <= {int, float} and not _infinite(values, kinds):
        return list(map(repr, values))
    return [_text(value) for value in values]


def _json(value: Any, as_text: bool) -> str:
    if value is None:
        return "null"
    if type(value) is int and not as_text:
        return str(value)
    if type(value) is float and not as_text and math.isfinite(value):
        return repr(value)
    return encode_basestring(_text(value) or "")


def _jsons(values: Sequence[Any], kind: Kind) -> list[str]:
    kinds = set(map(type, values))
    if kinds == {str}:
        return list(map(encode_basestring, values))
    as_text = kind == "decimal"
    if kinds <= {int, float} and not _infinite(values, kinds):
        return list(map('"{!r}"'.format if as_text else repr, values))
    return [_json(value, as_text) for value in values]
