"""Records into a table, all or nothing: `deliver`.

A delivery has an id. When it has been made, that id is in the table `officegrid_deliveries`, and a
run with the same id does nothing: whoever was killed, at whatever moment, may simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from officegrid.data.sinks import OutputPiece
from officegrid.data.sql.fit import fit
from officegrid.data.sql.incoming import Incoming
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.target import Target, check_target, plan
from officegrid.data.sql.writer import Writer
from officegrid.wire.data import Layout

OnDelivered = Callable[[int], None]  # records loaded so far


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was done. `again` if the same delivery had been made before: then nothing was."""

    records: int
    seconds: float
    again: bool = False


def deliver(
    source: SqlSource,
    target: Target,
    stored: Layout,
    pieces: Iterable[OutputPiece],
    delivery_id: str,
    *,
    on_progress: OnDelivered | None = None,
) -> Delivered:
    """Put all records of `pieces`, which are written as `stored` says, into `target`.

    The table is what it was until the last moment and holds all records from then on. Raises
    UsageError and InputError for what does not fit (RecordError where it is one record),
    ConflictError if a table to be created is there, SourceLoginError, ForbiddenError, and
    UnavailableError if trying again, with the same id, may help.
    """
    check_target(target, source.dialect, delivery_id)
    begun = time.monotonic()
    writer = open_writer(source, target, delivery_id)
    try:
        before = writer.delivered()
        if before is not None:
            return Delivered(before, time.monotonic() - begun, again=True)
        incoming = Incoming(pieces, stored, target)
        table = writer.describe()
        filled = plan(target, table, incoming.names, source.dialect)
        if not filled and table is not None:
            filled = [c.name for c in table.columns if not c.generated]  # there are no records
        columns = writer.stage(table, filled)
        key = {name.casefold() for name in target.key}
        records = 0
        for batch in incoming.batches():
            ready = [
                fit(values, column, source.dialect, batch.first, column.name.casefold() in key)
                for values, column in zip(batch.columns, columns, strict=True)
            ]
            writer.load(batch.first, ready)
            records += batch.records
            if on_progress is not None:
                on_progress(records)
        made = writer.apply(records)
        return Delivered(records, time.monotonic() - begun, again=not made)
    finally:
        writer.close()


def open_writer(source: SqlSource, target: Target, delivery_id: str) -> Writer:
    """The writer of that dialect; drivers are loaded here, when one is needed."""
    from officegrid.data.sql.troubles import missing_driver

    if source.dialect == "sqlite":
        from officegrid.data.sql.sqlite_write import SqliteWriter

        return SqliteWriter(source, target, delivery_id)
    if source.dialect == "mysql":
        try:
            from officegrid.data.sql.mysql_write import MySqlWriter
        except ImportError:
            raise missing_driver("pymysql") from None
        return MySqlWriter(source, target, delivery_id)
    try:
        from officegrid.data.sql.postgres_write import PostgresWriter
    except ImportError:
        raise missing_driver("psycopg") from None
    return PostgresWriter(source, target, delivery_id)
