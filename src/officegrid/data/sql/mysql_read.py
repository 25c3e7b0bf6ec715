"""Reading from MySQL and MariaDB: one consistent snapshot, streamed.

A snapshot is a transaction at REPEATABLE READ, begun WITH CONSISTENT SNAPSHOT and READ ONLY. It
covers InnoDB tables; for others there is a warning.
"""

from __future__ import annotations

import re
import struct
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pymysql
from pymysql.constants import FIELD_TYPE as TYPE
from pymysql.constants import FLAG
from pymysql.cursors import SSCursor

from officegrid.core.errors import UsageError
from officegrid.data.cutter import Chunk
from officegrid.data.sql.columns import Column, Kind, check_names
from officegrid.data.sql.mysql_connect import connect_mysql, run
from officegrid.data.sql.mysql_rows import PacketRows
from officegrid.data.sql.reader import Reader, Reading
from officegrid.data.sql.render import JsonRows, Texts, csv_bytes, json_texts
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.statement import checked_select, quoted, quoted_table
from officegrid.data.sql.troubles import from_mysql, lost

_BINARY = 63  # the character set of bytes
_KINDS: dict[int, tuple[Kind, str]] = {
    TYPE.TINY: ("integer", "tinyint"), TYPE.SHORT: ("integer", "smallint"),
    TYPE.INT24: ("integer", "mediumint"), TYPE.LONG: ("integer", "int"),
    TYPE.LONGLONG: ("integer", "bigint"), TYPE.YEAR: ("integer", "year"),
    TYPE.DECIMAL: ("decimal", "decimal"), TYPE.NEWDECIMAL: ("decimal", "decimal"),
    TYPE.FLOAT: ("float", "float"), TYPE.DOUBLE: ("float", "double"),
    TYPE.DATE: ("date", "date"), TYPE.NEWDATE: ("date", "date"), TYPE.TIME: ("time", "time"),
    TYPE.DATETIME: ("timestamp", "datetime"), TYPE.TIMESTAMP: ("timestamptz", "timestamp"),
    TYPE.BIT: ("bit", "bit"), TYPE.JSON: ("json", "json"), TYPE.GEOMETRY: ("blob", "geometry"),
}  # fmt: skip
_BLOBS = {TYPE.TINY_BLOB, TYPE.MEDIUM_BLOB, TYPE.LONG_BLOB, TYPE.BLOB}
_WITHOUT_SNAPSHOT = """
    SELECT table_name, engine FROM information_schema.tables
    WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'
      AND engine NOT IN ('InnoDB', 'ROCKSDB', 'TokuDB') LIMIT 1000"""


class MySqlReader(Reader):
    def __init__(self, source: SqlSource, reading: Reading) -> None:
        self._source = source
        self._reading = reading
        self.warnings = []
        self._connection = connect_mysql(source)
        try:
            self._begin()
        except pymysql.Error as error:
            self.close()
            raise from_mysql(source, error) from None
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        connection, reading = self._connection, self._reading
        exact: set[str] = set()
        if reading.table is not None:
            sql = f"SELECT * FROM {quoted_table(reading.table, 'mysql')}"
        else:
            sql = checked_select(reading.sql or "", "mysql")
        run(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        self._warn_of_engines(sql)
        if reading.table is not None:
            sql, exact = self._with_exact_floats(sql)
        self._cursor = connection.cursor(SSCursor)
        self._cursor.execute(sql)
        result: Any = self._cursor._result  # type: ignore[attr-defined]
        # From here on the rows are ours: PyMySQL must not look for their end when it closes.
        result.unbuffered_active = False
        if not getattr(result, "fields", None):
            raise UsageError("This SQL cannot be an input.", "It gives no rows at all.")
        self.columns = [_column(field, exact) for field in result.fields]
        check_names(self.columns)
        self._convert = [_converter(field, exact) for field in result.fields]
        inexact = [c.name for c in self.columns if c.declared == "float" and c.name not in exact]
        if inexact:
            self.warnings.append(
                f"Column {inexact[0]} is FLOAT: in a query the server rounds it to six digits. "
                f"Write {inexact[0]} + 0E0 AS {inexact[0]} to have all of them."
            )

    def _warn_of_engines(self, sql: str) -> None:
        for table, engine in run(self._connection, _WITHOUT_SNAPSHOT):
            if re.search(rf"(?<![\w$]){re.escape(str(table))}(?![\w$])", sql, re.IGNORECASE):
                self.warnings.append(
                    f"Table {table} is {engine}, which has no snapshots: rows that change while "
                    "it is read may be seen half old, half new. InnoDB tables are safe."
                )

    def _with_exact_floats(self, sql: str) -> tuple[str, set[str]]:
        """FLOAT columns are printed with six digits, but as DOUBLE with all of them."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"{sql} LIMIT 0")
            found = [(str(column[0]), column[1]) for column in cursor.description or ()]
        exact = {name for name, kind in found if kind == TYPE.FLOAT}
        if not exact:
            return sql, exact
        names = [(name, quoted(name, "mysql")) for name, _ in found]
        picked = [f"{q} + 0E0 AS {q}" if name in exact else q for name, q in names]
        return sql.replace("*", ", ".join(picked), 1), exact

    def chunks(self) -> Iterator[Chunk]:
        reading = self._reading
        file = self._connection._rfile  # type: ignore[attr-defined]
        rows = PacketRows(file, len(self.columns), reading.chunk_bytes, reading.max_record_bytes)
        objects = JsonRows(self.columns)
        try:
            for group in rows.groups():
                pairs = zip(self._convert, group.columns, strict=True)
                texts = [turn(values) for turn, values in pairs]
                if reading.format == "csv":
                    data = csv_bytes(texts, reading.null)
                else:
                    kinds = (column.kind for column in self.columns)
                    data = objects.bytes(
                        [json_texts(*pair) for pair in zip(texts, kinds, strict=True)]
                    )
                yield Chunk(data, group.records)
        except pymysql.Error as error:
            if error.args and error.args[0] in (2006, 2013):
                raise lost(self._source, error) from None
            raise from_mysql(self._source, error) from None
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and self._connection.open:
                raise  # else it is that of a file that was closed from another thread
            raise lost(self._source, error) from None
        finally:
            self.close()

    def close(self) -> None:
        # Without a good-bye: the server would first send all the rows that are left.
        with suppress(Exception):
            self._connection._force_close()  # type: ignore[attr-defined]


def _column(field: Any, exact: set[str]) -> Column:
    kind, declared = _kind(field)
    if field.flags & FLAG.UNSIGNED and kind in ("integer", "decimal", "float"):
        declared += " unsigned"
    if field.name in exact:
        declared = "float"
    return Column(field.name, kind, declared)


def _kind(field: Any) -> tuple[Kind, str]:
    known = _KINDS.get(field.type_code)
    if known is not None:
        kind, name = known
        if kind == "decimal":
            digits = field.length - (field.scale > 0) - (not field.flags & FLAG.UNSIGNED)
            name = f"decimal({digits},{field.scale})"
        elif kind in ("time", "timestamp", "timestamptz") and 0 < field.scale <= 6:
            name += f"({field.scale})"
        elif kind == "bit":
            name = f"bit({field.length})"
        return kind, name
    is_blob = field.type_code in _BLOBS
    if field.charsetnr == _BINARY:
        return "blob", "blob" if is_blob else f"binary({field.length})"
    if field.flags & FLAG.ENUM:
        return "text", "enum"
    if field.flags & FLAG.SET:
        return "text", "set"
    # The length is in bytes of the connection's utf8mb4: four for each character.
    return "text", "text" if is_blob else f"varchar({field.length // 4})"


def _converter(field: Any, exact: set[str]) -> Callable[[Sequence[bytes | None]], Texts]:
    """From the bytes of one column to texts."""
    kind, _ = _kind(field)
    if kind == "blob":
        return _each(lambda value: b64encode(value).decode())
    if kind == "bit":
        return _each(lambda value: str(int.from_bytes(value, "big")))
    if kind == "timestamp":
        return lambda values: _timestamps(values, "")
    if kind == "timestamptz":
        return lambda values: _timestamps(values, "Z")
    if kind in ("integer", "float") and field.flags & FLAG.ZEROFILL:
        return _each(lambda value: value.decode().lstrip("0") or "0")
    if field.name in exact:
        return _each(shortest_float)
    return _decoded


def _each(turn: Callable[[bytes], str]) -> Callable[[Sequence[bytes | None]], Texts]:
    return lambda values: [None if value is None else turn(value) for value in values]


def _decoded(values: Sequence[bytes | None]) -> Texts:
    if None in values:
        return [None if value is None else value.decode() for value in values]
    return list(map(bytes.decode, values))  # type: ignore[arg-type]


def _timestamps(values: Sequence[bytes | None], zone: str) -> Texts:
    if None in values:
        return [None if v is None else v.decode().replace(" ", "T") + zone for v in values]
    text = b"\n".join(values).decode().replace(" ", "T")  # type: ignore[arg-type]
    return (text.replace("\n", zone + "\n") + zone).split("\n")


def shortest_float(value: bytes) -> str:
    """The fewest digits that give the same 32-bit float again."""
    wide = float(value)
    narrow = struct.pack("<f", wide)
    for digits in range(6, 10):
        text = f"{wide:.{digits}g}"
        if struct.pack("<f", float(text)) == narrow:
            return text
    return repr(wide)
