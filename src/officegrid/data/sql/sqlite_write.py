"""Writing to an SQLite file: a temporary table takes the records, outside the file and without a
lock on it; then one transaction notes the delivery and copies them into the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from officegrid.core.errors import InputError
from officegrid.data.sql.fit import Ready
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.sqlite_read import connect_sqlite, kind_of
from officegrid.data.sql.target import RECORD, Target, TargetColumn, TargetTable
from officegrid.data.sql.troubles import exists_already, from_sqlite
from officegrid.data.sql.writer import Writer, find_repeated, other_delivery


class SqliteWriter(Writer):
    def __init__(self, source: SqlSource, target: Target, delivery_id: str) -> None:
        super().__init__(source, target, delivery_id)
        self._connection = connect_sqlite(source, "rw")
        self._stage = f"temp.{self.quote(self.stage_name)}"
        self._home = self.quote(self.schema or "main")
        self.table = f"{self._home}.{self.quote(self.name)}"
        self._columns: list[TargetColumn] = []
        self._unique: tuple[tuple[str, ...], ...] = ()
        self._is_new = False

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise from_sqlite(self.source, error) from None

    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, arguments).fetchall()

    # --- before loading ---------------------------------------------------------------------

    def delivered(self) -> int | None:
        with self._told():
            self._query(
                f"CREATE TABLE IF NOT EXISTS {self.deliveries} (delivery_id TEXT PRIMARY KEY, "
                "table_name TEXT NOT NULL, rows INTEGER NOT NULL, "
                "at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"
            )
            return self._noted()

    def _noted(self) -> int | None:
        found = self._query(
            f"SELECT rows, table_name FROM {self.deliveries} WHERE delivery_id = ?",
            self.delivery_id,
        )
        if found and found[0][1] != self.target.table:
            raise other_delivery(self, str(found[0][1]))
        return int(found[0][0]) if found else None

    def describe(self) -> TargetTable | None:
        with self._told():
            kind = self._query(
                f"SELECT type FROM {self._home}.sqlite_master "
                "WHERE lower(name) = lower(?) AND type IN ('table', 'view')",
                self.name,
            )
            if not kind:
                return None
            if kind[0][0] != "table":
                raise InputError(f"{self.name} is a view.", "Only a table can be filled.")
            name = self.quote(self.name)
            # cid, name, type, notnull, default, pk, hidden (2 and 3: generated)
            rows = self._query(f"PRAGMA {self._home}.table_xinfo({name})")
            key = tuple(r[1] for r in sorted(rows, key=lambda r: int(r[5])) if r[5])
            columns = tuple(
                TargetColumn(
                    str(r[1]), kind_of(r[2]), str(r[2]), not r[3], r[4] is not None, r[6] in (2, 3)
                )
                for r in rows
                if r[6] != 1
            )
            unique = [key] if key else []
            for _, index, is_unique, _, partial in self._query(
                f"PRAGMA {self._home}.index_list({name})"
            ):
                if is_unique and not partial:
                    info = self._query(f"PRAGMA {self._home}.index_info({self.quote(index)})")
                    names = tuple(r[2] for r in info)
                    if None not in names and names not in unique:
                        unique.append(names)
            return TargetTable(columns, tuple(unique))

    def stage(self, table: TargetTable | None, columns: Sequence[str]) -> list[TargetColumn]:
        self._is_new = table is None
        known = {} if table is None else {column.name: column for column in table.columns}
        self._unique = () if table is None else table.unique
        for name in columns:
            declared = self.target.types.get(name, "TEXT")
            column = known.get(name) or TargetColumn(name, kind_of(declared), declared)
            self._columns.append(column)
        made = ", ".join(f"{self.quote(c.name)} {c.declared}" for c in self._columns)
        with self._told():
            self._query(f"CREATE TABLE {self._stage} ({RECORD} INTEGER PRIMARY KEY, {made})")
            self._query("BEGIN")
        places = ", ".join("?" * (len(columns) + 1))
        self._insert = f"INSERT INTO {self._stage} VALUES ({places})"
        return self._columns

    # --- loading ----------------------------------------------------------------------------

    def load(self, first: int, columns: Sequence[Ready]) -> None:
        numbers = range(first, first + len(columns[0]))
        with self._told():
            self._connection.executemany(self._insert, zip(numbers, *columns, strict=True))

    # --- the one step -----------------------------------------------------------------------

    def apply(self, records: int) -> bool:
        with self._told():
            self._query("COMMIT")
            self._query("BEGIN IMMEDIATE")
            try:
                if self._noted() is not None:
                    self._query("ROLLBACK")
                    return False
                self._apply(records)
                self._query("COMMIT")
                return True
            except sqlite3.IntegrityError as error:
                self._query("ROLLBACK")
                names = [column.name for column in self._columns]
                tables = (self._stage, self.table)
                found = find_repeated(self, self._query, self._unique, names, tables)
                raise found or from_sqlite(self.source, error) from None

    def _apply(self, records: int) -> None:
        self._query(
            f"INSERT INTO {self.deliveries} (delivery_id, table_name, rows) VALUES (?, ?, ?)",
            self.delivery_id, self.target.table, records,
        )  # fmt: skip
        columns = [column.name for column in self._columns]
        names = self.names(columns)
        if self._is_new:
            made = ", ".join(f"{self.quote(c.name)} {c.declared}" for c in self._columns)
            if self.describe() is not None:
                raise exists_already(self.target.table)
            self._query(f"CREATE TABLE {self.table} ({made})")
        elif self.target.mode == "replace":
            self._query(f"DELETE FROM {self.table}")
        sql = (
            f"INSERT INTO {self.table} ({names}) SELECT {names} FROM {self._stage} "
            f"WHERE true ORDER BY {RECORD}"
        )
        if self.target.mode == "upsert":
            key = {name.casefold() for name in self.target.key}
            rest = [self.quote(name) for name in columns if name.casefold() not in key]
            update = ", ".join(f"{name} = excluded.{name}" for name in rest)
            sql += f" ON CONFLICT ({self.names(self.target.key)}) DO "
            sql += f"UPDATE SET {update}" if rest else "NOTHING"
        self._query(sql)

    def close(self) -> None:
        with suppress(Exception):
            self._connection.close()
