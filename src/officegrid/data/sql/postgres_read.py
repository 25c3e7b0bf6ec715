"""Reading from PostgreSQL: COPY (…) TO STDOUT in one REPEATABLE READ, READ ONLY transaction.

The server builds the text of every record, which is several times faster than taking values apart
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import IsolationLevel, pq

from officegrid.core.errors import UsageError
from officegrid.data.cutter import Chunk
from officegrid.data.sql.columns import Column, Kind, check_names
from officegrid.data.sql.postgres_connect import connect_postgres
from officegrid.data.sql.reader import Reader, Reading, too_long
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.statement import checked_select, quoted, quoted_table
from officegrid.data.sql.troubles import from_postgres, lost

KINDS: dict[int, Kind] = {
    16: "boolean", 17: "blob", 20: "integer", 21: "integer", 23: "integer",
    700: "float", 701: "float", 1700: "decimal", 1082: "date", 1083: "time", 1266: "time",
    1114: "timestamp", 1184: "timestamptz", 114: "json", 3802: "json", 1560: "bit", 1562: "bit",
    18: "text", 19: "text", 25: "text", 1042: "text", 1043: "text",
}  # fmt: skip
_RAW = {"boolean", "integer", "float"}  # JSON has them itself
_BLANK = b"\n"  # what COPY writes for an empty field alone in a row; it would read as no row


class PostgresReader(Reader):
    def __init__(self, source: SqlSource, reading: Reading) -> None:
        self._source = source
        self._reading = reading
        self.warnings = []
        self._connection = connect_postgres(source)
        try:
            self._connection.autocommit = False
            self._connection.isolation_level = IsolationLevel.REPEATABLE_READ
            self._connection.read_only = True
            self._begin()
        except psycopg.Error as error:
            self.close()
            raise from_postgres(source, error) from None
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        reading = self._reading
        if reading.table is not None:
            sql = f"SELECT * FROM {quoted_table(reading.table, 'postgresql')}"
        else:
            sql = checked_select(reading.sql or "", "postgresql")
        self._connection.execute("SELECT 1")  # takes the snapshot
        self.columns = self._describe(sql)
        check_names(self.columns)
        self._start(sql)

    def _start(self, sql: str) -> None:
        """Begin the COPY: rights, too, are looked at now and not at the first record."""
        reading = self._reading
        names = [f"c{number}" for number in range(1, len(self.columns) + 1)]
        pairs = list(zip(names, self.columns, strict=True))
        rows = f"({sql}\n) AS og({', '.join(names)})"
        if reading.format == "csv":
            values = ", ".join(_csv_value(f"og.{name}", column.kind) for name, column in pairs)
            null = reading.null.replace("'", "''")
            copy = f"COPY (SELECT {values} FROM {rows}) TO STDOUT (FORMAT csv, NULL '{null}')"
        else:
            values = ", ".join(
                f"{_json_value(f'og.{name}', column.kind)} AS {quoted(column.name, 'postgresql')}"
                for name, column in pairs
            )
            row = "og_row"
            while any(column.name == row for column in self.columns):
                row += "_"  # a column of that name would be taken for the row
            # JSON text holds no control characters, so with these marks nothing is ever quoted.
            copy = (
                f"COPY (SELECT row_to_json({row})::text "
                f"FROM (SELECT {values} FROM {rows}) AS {row}) "
                r"TO STDOUT (FORMAT csv, DELIMITER E'\x02', QUOTE E'\x01')"
            )
        self._copying = self._connection.cursor().copy(copy.encode())
        self._copy = self._copying.__enter__()

    def _describe(self, sql: str) -> list[Column]:
        """The columns of the statement by itself, which has to be one complete statement.

        That is what makes it safe to put it in brackets behind COPY.
        """
        low: Any = self._connection.pgconn
        for result in (low.prepare(b"og", sql.encode()), low.describe_prepared(b"og")):
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
        if result.nparams:
            raise UsageError(
                "This SQL cannot be an input.",
                "It has a place for a parameter ($1).",
                "Fill it in.",
            )
        described = [
            (result.fname(i).decode(), result.ftype(i), result.fmod(i))
            for i in range(result.nfields)
        ]
        query = (
            "SELECT format_type(t, m) "
            "FROM unnest(%s::oid[], %s::int[]) WITH ORDINALITY AS x(t, m, n) ORDER BY n"
        )
        types = [[oid for _, oid, _ in described], [modifier for *_, modifier in described]]
        declared = [str(row[0]) for row in self._connection.execute(query, types)]
        return [
            Column(name, KINDS.get(oid, "other"), kind)
            for (name, oid, _), kind in zip(described, declared, strict=True)
        ]

    def chunks(self) -> Iterator[Chunk]:
        reading = self._reading
        single = len(self.columns) == 1 and reading.format == "csv"
        rows: list[bytes] = []
        records = size = 0
        try:
            for row in self._copy:  # each message of the server is one row
                data = bytes(row)
                if single and data == _BLANK:
                    data = b'""\n'
                rows.append(data)
                size += len(data)
                if len(data) > reading.max_record_bytes:
                    raise too_long(records + len(rows), reading.max_record_bytes)
                if size >= reading.chunk_bytes:
                    records += len(rows)
                    yield Chunk(b"".join(rows), len(rows))
                    rows, size = [], 0
            if rows:
                yield Chunk(b"".join(rows), len(rows))
        except psycopg.Error as error:
            gone = self._connection.broken or self._connection.closed
            raise (lost if gone else from_postgres)(self._source, error) from None
        finally:
            self.close()

    def close(self) -> None:
        with suppress(Exception):
            self._connection.pgconn.finish()


def _text(sql: str, kind: Kind) -> str:
    """SQL for the text of a value."""
    if kind == "text":
        return sql
    if kind == "blob":
        return rf"replace(encode({sql}, 'base64'), E'\n', '')"
    if kind == "timestamp":
        return f"""btrim(to_json({sql})::text, '"')"""
    if kind == "timestamptz":
        return f"""replace(btrim(to_json({sql})::text, '"'), '+00:00', 'Z')"""
    return f"{sql}::text"


def _csv_value(sql: str, kind: Kind) -> str:
    # Numbers are printed by COPY itself; booleans would be t and f.
    return sql if kind in ("integer", "float", "decimal") else _text(sql, kind)


def _json_value(sql: str, kind: Kind) -> str:
    # NaN and the infinities, for which JSON has no number, are put in quotes by row_to_json.
    return sql if kind in _RAW else _text(sql, kind)
