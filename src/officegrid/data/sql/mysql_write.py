"""Writing to MySQL and MariaDB.

append, upsert   A temporary table, which the server drops with the connection, takes the
                 records. Then one transaction notes the delivery and does INSERT … SELECT.
create, replace  A real table `og_stage_…` takes them, the delivery is noted, and RENAME TABLE,
                 which is atomic, puts it in place. A noted delivery whose staging table is still
                 there was cut off between the two: the next run does the RENAME. Leftovers of other
                 runs that died are known by their lock, which the server frees with the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pymysql
from pymysql.converters import escape_string

from officegrid.core.errors import InputError, UnavailableError
from officegrid.data.sql.fit import Ready
from officegrid.data.sql.incoming import misfit
from officegrid.data.sql.mysql_connect import connect_mysql
from officegrid.data.sql.mysql_table import describe_table, refuse_swap, sweep, unused_by_others
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.target import RECORD, Target, TargetColumn, TargetTable, staging_name
from officegrid.data.sql.troubles import exists_already, from_mysql, said
from officegrid.data.sql.writer import Writer, find_repeated, other_delivery

_STRICT = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO',"
    " innodb_lock_wait_timeout = 50, autocommit = 1"
)
_LOCK_WAIT_S = 20
_DUPLICATE, _IS_THERE, _NO_TABLE, _CANNOT_BE_NULL = 1062, 1050, 1146, 1048
# What the server says of one value: range, NULL, type, length, character set, checks.
_MISFITS = {1048, 1264, 1265, 1292, 1366, 1406, 1411, 1416, 1690, 3140, 3819, 4025, 4078}
_AT_ROW = re.compile(r"at row (\d+)")
_COLUMN = re.compile(r"(?:for column|Column) (?:`[^`]*`\.)*[`']([^`']+)[`']")
_ESCAPED = re.compile(r"[\0\n\r\x1a\"'\\]")  # what escape_string changes
_BARE = {"integer", "bit"}
_TRANSACTIONAL = ("INNODB", "ROCKSDB", "TOKUDB")


class MySqlWriter(Writer):
    def __init__(self, source: SqlSource, target: Target, delivery_id: str) -> None:
        super().__init__(source, target, delivery_id)
        self._swaps = target.mode in ("create", "replace")
        self._connection = connect_mysql(source)
        self._database = self.schema or source.database
        home = self.quote(self._database)
        self._stage = f"{home}.{self.quote(self.stage_name)}"
        self._old = f"{home}.{self.quote(staging_name(delivery_id, 'old'))}"
        self._columns: list[TargetColumn] = []
        self._unique: tuple[tuple[str, ...], ...] = ()
        self._is_there = False
        self._keep_stage = False
        try:
            with self._told():
                self._query(_STRICT)
                self._packet_bytes = int(self._query("SELECT @@max_allowed_packet")[0][0])
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except pymysql.Error as error:
            raise from_mysql(self.source, error) from None

    def _query(self, sql: str | bytes, *arguments: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return list(cursor.fetchall())

    # --- before loading ---------------------------------------------------------------------

    def delivered(self) -> int | None:
        with self._told():
            if self._swaps:
                self._lock()
                sweep(self._query, self._database, self.stage_name, self.deliveries)
            if not self._there(self.deliveries):
                self._query(
                    f"CREATE TABLE IF NOT EXISTS {self.deliveries} (delivery_id VARCHAR(190) "
                    "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL PRIMARY KEY, "
                    "table_name VARCHAR(190) CHARACTER SET utf8mb4 NOT NULL, "
                    "`rows` BIGINT NOT NULL, `at` TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) "
                    "ENGINE=InnoDB"
                )
            rows = self._noted()
            if self._swaps and rows is not None and self._there(self._stage):
                self._swap()
            self._query(f"DROP TABLE IF EXISTS {self._old}") if self._swaps else None
            return rows

    def _lock(self) -> None:
        free = self._query("SELECT GET_LOCK(%s, %s)", self.stage_name, _LOCK_WAIT_S)[0][0]
        if free != 1:
            raise UnavailableError(
                f"The delivery {self.delivery_id!r} is being made at this moment.",
                "Another connection holds its lock.",
                "Wait until that one has ended.",
            )

    def _there(self, table: str) -> bool:
        try:
            self._query(f"SELECT 1 FROM {table} LIMIT 0")
        except pymysql.ProgrammingError as error:
            if error.args[0] == _NO_TABLE:
                return False
            raise
        return True

    def _noted(self) -> int | None:
        found = self._query(
            f"SELECT `rows`, table_name FROM {self.deliveries} WHERE delivery_id = %s",
            self.delivery_id,
        )
        if not found:
            return None
        if found[0][1] != self.target.table:
            raise other_delivery(self, str(found[0][1]))
        return int(found[0][0])

    def _note(self, records: int) -> None:
        self._query(
            f"INSERT INTO {self.deliveries} (delivery_id, table_name, `rows`) VALUES (%s, %s, %s)",
            self.delivery_id, self.target.table, records,
        )  # fmt: skip

    def describe(self) -> TargetTable | None:
        with self._told():
            found = describe_table(self._query, self._database, self.name)
            if found is None:
                return None
            table, engine = found
            if not self._swaps and engine.upper() not in _TRANSACTIONAL:
                raise InputError(
                    f"The table {self.target.table} is {engine}, which has no transactions.",
                    "A crash in the middle would leave a part of the records in it.",
                    f"Run ALTER TABLE {self.target.table} ENGINE=InnoDB, or use replace.",
                )
            if self.target.mode == "replace":
                refuse_swap(self._query, self._database, self.name)
            return table

    def stage(self, table: TargetTable | None, columns: Sequence[str]) -> list[TargetColumn]:
        self._is_there = table is not None
        with self._told():
            if not self._swaps:
                self._query(
                    f"CREATE TEMPORARY TABLE {self._stage} ({RECORD} BIGINT UNSIGNED NOT NULL "
                    "DEFAULT 0 PRIMARY KEY) ENGINE=InnoDB "
                    f"AS SELECT {self.names(columns)} FROM {self.table} "
                    "LIMIT 0"
                )
            else:
                self._query(f"DROP TABLE IF EXISTS {self._stage}")
                if table is None:
                    types = self.target.types
                    made = (f"{self.quote(n)} {types.get(n, 'LONGTEXT')}" for n in columns)
                    self._query(
                        f"CREATE TABLE {self._stage} ({', '.join(made)}) ENGINE=InnoDB "
                        "DEFAULT CHARACTER SET utf8mb4"
                    )
                else:
                    self._query(f"CREATE TABLE {self._stage} LIKE {self.table}")
                found = describe_table(self._query, self._database, self.stage_name)
                table = found[0] if found else table
        assert table is not None  # without one, plan() has refused append and upsert
        known = {column.name: column for column in table.columns}
        self._unique = table.unique
        self._columns = [known[name] for name in columns]
        return self._columns

    # --- loading ----------------------------------------------------------------------------

    def load(self, first: int, columns: Sequence[Ready]) -> None:
        literals = [
            _literals(values, column.kind in _BARE)
            for values, column in zip(columns, self._columns, strict=True)
        ]
        names = self.names([column.name for column in self._columns])
        if not self._swaps:
            names = f"{RECORD}, {names}"
            literals.insert(0, [str(first + i) for i in range(len(columns[0]))])
        head = f"INSERT INTO {self._stage} ({names}) VALUES "
        rows = [f"({row})" for row in map(",".join, zip(*literals, strict=True))]
        most = min(1024 * 1024, self._packet_bytes // 2)
        begin, size = 0, 0
        for index, row in enumerate(rows):
            if size and size + len(row) > most:
                self._insert(head, rows[begin:index], first + begin, columns, begin)
                begin, size = index, 0
            size += len(row)
        self._insert(head, rows[begin:], first + begin, columns, begin)

    def _insert(
        self, head: str, rows: list[str], first: int, columns: Sequence[Ready], at: int
    ) -> None:
        sql = (head + ",".join(rows)).encode()
        if len(sql) > self._packet_bytes - 1024:
            if len(rows) > 1:  # many bytes per character: one by one
                for index, row in enumerate(rows):
                    self._insert(head, [row], first + index, columns, at + index)
                return
            why = f"The server takes at most {self._packet_bytes} bytes (max_allowed_packet)"
            raise misfit(first, "(all)", f"{len(sql)} bytes", why)
        try:
            self._query(sql)
        except pymysql.Error as error:
            code = error.args[0] if error.args else 0
            if (code == _DUPLICATE and len(rows) > 1) or (code in _MISFITS and len(rows) > 1):
                said_row = _AT_ROW.search(str(error.args[-1]))
                if said_row is None:
                    for index, row in enumerate(rows):  # the statement left nothing behind
                        self._insert(head, [row], first + index, columns, at + index)
                    return
                self._refuse(error, first, at, int(said_row.group(1)) - 1, columns)
            if code in _MISFITS or code == _DUPLICATE:
                self._refuse(error, first, at, 0, columns)
            raise from_mysql(self.source, error) from None

    def _refuse(
        self, error: pymysql.Error, first: int, at: int, row: int, columns: Sequence[Ready]
    ) -> None:
        why = f"The database says: {said(self.source, error)}"
        named = _COLUMN.search(str(error.args[-1]))
        for column, values in zip(self._columns, columns, strict=True):
            if named is not None and column.name == named.group(1):
                raise misfit(first + row, column.name, values[at + row], why) from None
        shown = ", ".join(str(values[at + row])[:20] for values in columns)
        raise misfit(first + row, "(all)", shown, why) from None

    # --- the one step -----------------------------------------------------------------------

    def apply(self, records: int) -> bool:
        with self._told():
            return self._apply_swap(records) if self._swaps else self._apply_rows(records)

    def _apply_swap(self, records: int) -> bool:
        if not self._is_there and describe_table(self._query, self._database, self.name):
            raise exists_already(self.target.table)
        self._keep_stage = True  # from the note on it belongs to the delivery, not to this run
        self._note(records)
        self._swap()
        return True

    def _swap(self) -> None:
        """Finish a noted delivery. The staging table is there."""
        is_there = describe_table(self._query, self._database, self.name) is not None
        if is_there and self.target.mode == "create":
            self._query(f"DELETE FROM {self.deliveries} WHERE delivery_id = %s", self.delivery_id)
            self._query(f"DROP TABLE {self._stage}")
            raise exists_already(self.target.table)
        moves = [f"{self.table} TO {self._old}"] if is_there else []
        self._query(f"RENAME TABLE {', '.join([*moves, f'{self._stage} TO {self.table}'])}")
        self._query(f"DROP TABLE IF EXISTS {self._old}")

    def _apply_rows(self, records: int) -> bool:
        columns = [column.name for column in self._columns]
        names = self.names(columns)
        rows = f"SELECT {names} FROM {self._stage} ORDER BY {RECORD}"
        sql = f"INSERT INTO {self.table} ({names}) {rows}"
        self._query("BEGIN")
        try:
            try:
                self._note(records)
            except pymysql.IntegrityError:
                self._query("ROLLBACK")
                return False
            if self.target.mode == "upsert":
                key = {name.casefold() for name in self.target.key}
                unused_by_others(
                    self._query, self._unique, columns, key, (self._stage, self.table), self.quote
                )
                rest = [n for n in columns if n.casefold() not in key] or columns[:1]
                quoted = map(self.quote, rest)
                sql += " ON DUPLICATE KEY UPDATE " + ", ".join(f"{q} = VALUES({q})" for q in quoted)
            self._query(sql)
            self._query("COMMIT")
        except pymysql.IntegrityError as error:
            self._query("ROLLBACK")
            tables = (self._stage, self.table)
            found = None
            if error.args[0] == _DUPLICATE:
                found = find_repeated(self, self._query, self._unique, columns, tables)
            raise found or from_mysql(self.source, error) from None
        return True

    def close(self) -> None:
        with suppress(Exception):
            if self._swaps and not self._keep_stage and self._connection.open:
                self._query(f"DROP TABLE IF EXISTS {self._stage}")
        with suppress(Exception):
            self._connection.close()


def _literals(values: Ready, bare: bool) -> list[str]:
    """SQL text of each value; `bare` numbers need no quotes (they have been looked at)."""
    if set(map(type, values)) <= {str}:
        if bare:
            return values  # type: ignore[return-value]
        if not _ESCAPED.search("".join(values)):  # type: ignore[arg-type]
            return list(map("'{}'".format, values))
    found = []
    for value in values:
        if value is None:
            found.append("NULL")
        elif isinstance(value, bytes):
            found.append(f"x'{value.hex()}'")
        else:
            found.append(value if bare else f"'{escape_string(value)}'")
    return found
