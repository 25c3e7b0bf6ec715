"""What each database's writer does; `deliver` calls these in this order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from officegrid.core.errors import InputError, OfficeGridError
from officegrid.data.records import RecordError
from officegrid.data.sql.fit import Ready
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.statement import quoted, quoted_table
from officegrid.data.sql.target import (
    DELIVERIES,
    RECORD,
    Target,
    TargetColumn,
    TargetTable,
    staging_name,
)

Query = Callable[..., list[tuple[Any, ...]]]


class Writer(ABC):
    """One connection, one delivery. All methods raise OfficeGridError only.

    Until `apply` returns, the target is what it was; when it has returned, the target holds all
    records and the delivery is in the table of deliveries.
    """

    def __init__(self, source: SqlSource, target: Target, delivery_id: str) -> None:
        self.source = source
        self.target = target
        self.delivery_id = delivery_id
        self.stage_name = staging_name(delivery_id)
        dialect = source.dialect
        schema, dot, name = target.table.rpartition(".")
        self.schema, self.name = schema, name
        self.table = quoted_table(target.table, dialect)
        self.deliveries = quoted_table(schema + dot + DELIVERIES, dialect)

    def quote(self, name: str) -> str:
        return quoted(name, self.source.dialect)

    def names(self, columns: Sequence[str]) -> str:
        return ", ".join(map(self.quote, columns))

    @abstractmethod
    def delivered(self) -> int | None:
        """Number of records if this delivery has been made, by whomever; it is finished then."""

    @abstractmethod
    def describe(self) -> TargetTable | None:
        """The target as it is; None if there is no such table."""

    @abstractmethod
    def stage(self, table: TargetTable | None, columns: Sequence[str]) -> list[TargetColumn]:
        """Make room for the records; the columns with their types."""

    @abstractmethod
    def load(self, first: int, columns: Sequence[Ready]) -> None:
        """Records from number `first` on. Raises RecordError for one that does not fit."""

    @abstractmethod
    def apply(self, records: int) -> bool:
        """The one step. False if somebody else has made the same delivery meanwhile."""

    @abstractmethod
    def close(self) -> None:
        """Drops what is not applied. Never raises."""


def find_repeated(
    writer: Writer, query: Query, unique: Sequence[Sequence[str]], columns: Sequence[str],
    tables: tuple[str, str],
) -> RecordError | None:  # fmt: skip
    """Which record repeats a key of the table or of another record; `tables` are (staging, target).

    `query` runs SQL and gives rows. Asked only when the database has refused the rows.
    """
    mode, quote = writer.target.mode, writer.quote
    if mode == "upsert":  # there a key of the table is what is wanted
        return None
    stage, target = tables
    for index in unique:
        if not set(index) <= set(columns):
            continue
        names = ", ".join(map(quote, index))
        values = ", ".join(f"s.{quote(name)}" for name in index)
        where = " AND ".join(f"s.{quote(name)} = t.{quote(name)}" for name in index)
        there = (
            f"SELECT s.{RECORD}, {values} FROM {stage} s JOIN {target} t ON {where} "
            "ORDER BY 1 LIMIT 1"
        )
        known = " AND ".join(f"{quote(name)} IS NOT NULL" for name in index)
        twice = (
            f"SELECT MAX({RECORD}), {names} FROM {stage} WHERE {known} "
            f"GROUP BY {names} HAVING COUNT(*) > 1 ORDER BY 1 LIMIT 1"
        )
        asked = [(there, "the table")] if mode == "append" else []
        for sql, where_else in [*asked, (twice, "another record")]:
            for record, *key in query(sql):
                shown = ", ".join(f"{n} = {str(v)[:60]!r}" for n, v in zip(index, key, strict=True))
                return RecordError(
                    f"Record {int(record) + 1} does not fit: {shown} is in {where_else} already.",
                    "The table has a unique index over it. Nothing was changed.",
                    'Use mode = "upsert" to replace rows, or correct the records.',
                    record=int(record),
                )
    return None


def other_delivery(writer: Writer, table: str) -> OfficeGridError:
    return InputError(
        f"The delivery {writer.delivery_id!r} went into {table}, not {writer.target.table}.",
        "An id stands for one delivery into one table, for good.",
        "Use a new id.",
    )
