"""A query or a table as one dataset: `read_query` gives chunks of whole records in order.

Every call of `chunks` reads one consistent snapshot. If the connection is lost on the way the
snapshot is lost with it: the call raises UnavailableError, what it gave must be thrown away, and
calling again begins from the first record with a new snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from officegrid.core.errors import InputError, UsageError
from officegrid.data.cutter import Chunk
from officegrid.data.sources import Source
from officegrid.data.sql.columns import Column, schema_change, schema_digest
from officegrid.data.sql.reader import Reader, Reading
from officegrid.data.sql.render import check_null
from officegrid.data.sql.source import SqlSource
from officegrid.wire.data import Layout

OnRead = Callable[[int, int], None]  # records and bytes so far


def read_query(
    source: SqlSource,
    *,
    sql: str | None = None,
    table: str | None = None,
    format: Literal["csv", "ndjson"] = "csv",
    null: str = "",
    max_record_bytes: int = 64 * 1024 * 1024,
    chunk_bytes: int = 1024 * 1024,
    on_progress: OnRead | None = None,
) -> SqlInput:
    """Connect, begin a snapshot and start the query, so that its columns are known.

    Give either `sql` or `table` ("table" or "schema.table"). `null` is the text of NULL in CSV.
    Raises UsageError for what can never be read, InputError for what the server refuses, each with
    the server's words; SourceLoginError, ForbiddenError, and UnavailableError if trying again may
    help.
    """
    if (sql is None) == (table is None):
        raise UsageError("Give either sql or table.", "An input is one query or one table.")
    if format == "csv":
        check_null(null)
    reading = Reading(sql, table, format, null, chunk_bytes, max_record_bytes)
    return SqlInput(source, reading, on_progress)


class SqlInput(Source):
    """Records of a query. Has no files; `title` says where it came from, without the password."""

    def __init__(self, source: SqlSource, reading: Reading, on_progress: OnRead | None) -> None:
        self._database = source
        self._reading = reading
        self._on_progress = on_progress
        self._waiting: Reader | None = open_reader(source, reading)
        self._open: Reader | None = self._waiting
        self.columns: list[Column] = self._waiting.columns
        self.title = (
            f"{source.name}: {reading.table or ' '.join((reading.sql or '').split())[:200]}"
        )
        names = [column.name for column in self.columns]
        csv = reading.format == "csv"
        layout = Layout(format=reading.format, header=csv, columns=names if csv else None)
        super().__init__([], layout)
        self.warnings = list(self._waiting.warnings)

    @property
    def schema_digest(self) -> str:
        return schema_digest(self.columns)

    def chunks(self) -> Iterator[Chunk]:
        """All records of one snapshot, afresh at each call. Raises OfficeGridError.

        InputError if the columns are no longer those that `layout` names.
        """
        reader = self._waiting or open_reader(self._database, self._reading)
        self._waiting, self._open = None, reader
        self._restart()
        self.warnings = list(reader.warnings)
        try:
            if change := schema_change(self.columns, reader.columns):
                raise InputError(
                    "The columns of the query changed between two attempts to read it.",
                    f"{change[:1].upper()}{change[1:]}.",
                    "Submit the job again.",
                )
            for chunk in reader.chunks():
                self._count(chunk)
                self.bytes_read = self.raw_bytes
                if self._on_progress is not None:
                    self._on_progress(self.records, self.raw_bytes)
                yield chunk
        finally:
            reader.close()

    def close(self) -> None:
        """Let go of the connection, at any moment. Never raises."""
        if self._open is not None:
            self._open.close()

    def __enter__(self) -> SqlInput:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_reader(source: SqlSource, reading: Reading) -> Reader:
    """The reader of that dialect; drivers are loaded here, when one is needed."""
    from officegrid.data.sql.troubles import missing_driver

    if source.dialect == "sqlite":
        from officegrid.data.sql.sqlite_read import SqliteReader

        return SqliteReader(source, reading)
    if source.dialect == "mysql":
        try:
            from officegrid.data.sql.mysql_read import MySqlReader
        except ImportError:
            raise missing_driver("pymysql") from None
        return MySqlReader(source, reading)
    try:
        from officegrid.data.sql.postgres_read import PostgresReader
    except ImportError:
        raise missing_driver("psycopg") from None
    return PostgresReader(source, reading)
