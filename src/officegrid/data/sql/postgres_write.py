"""Writing to PostgreSQL: one transaction from the first record to the note of the delivery.

COPY fills a temporary table (a new table itself for create), which the server drops with the
connection. Then INSERT … SELECT, or DELETE before it for replace: the table keeps its rights,
views, triggers, foreign keys and identity columns, and readers see the old rows until the commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psycopg

from officegrid.core.errors import InputError
from officegrid.data.sql.fit import Ready
from officegrid.data.sql.incoming import misfit
from officegrid.data.sql.postgres_connect import connect_postgres
from officegrid.data.sql.postgres_read import KINDS
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.target import RECORD, Target, TargetColumn, TargetTable
from officegrid.data.sql.troubles import exists_already, from_postgres
from officegrid.data.sql.writer import Writer, find_repeated, other_delivery

_COLUMNS = """
    SELECT a.attname, COALESCE(NULLIF(t.typbasetype, 0), t.oid)::int8,
           format_type(a.atttypid, a.atttypmod), NOT (a.attnotnull OR t.typnotnull),
           a.atthasdef OR a.attidentity <> '', a.attgenerated <> '',
           COALESCE(NULLIF(a.atttypmod, -1), t.typtypmod)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_UNIQUE = """
    SELECT array_agg(a.attname::text ORDER BY k.n)
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k(at, n)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.at
    WHERE i.indrelid = %s AND i.indisunique AND i.indimmediate AND i.indisvalid
      AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid ORDER BY i.indexrelid"""
_CONTEXT = re.compile(
    r"^COPY [^\n]*?, line (\d+)(?:, column ([^\n]+?))?(?:: (.*))?\Z", re.DOTALL | re.MULTILINE
)
_ESCAPED = re.compile(r"[\\\t\n\r]")
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NUMERIC = 1700
_MOST_DIGITS = 1000  # a larger one is a negative scale, by two's complement
# What the slower of two gets that create one table at the same time.
_TABLE_MADE = (
    psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject,
)  # fmt: skip


class PostgresWriter(Writer):
    def __init__(self, source: SqlSource, target: Target, delivery_id: str) -> None:
        super().__init__(source, target, delivery_id)
        self._connection = connect_postgres(source)
        self._stage = self.quote(self.stage_name)
        self._columns: list[TargetColumn] = []
        self._unique: tuple[tuple[str, ...], ...] = ()
        self._is_new = False
        self._copying: AbstractContextManager[psycopg.Copy] | None = None
        self._copy: psycopg.Copy | None = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._misfit(error) or from_postgres(self.source, error) from None

    def _misfit(self, error: psycopg.Error) -> InputError | None:
        """What COPY says of one value, with its record."""
        state, found = error.sqlstate or "", _CONTEXT.search(error.diag.context or "")
        if found is None or not state.startswith(("22", "23")):
            return None
        column = found.group(2) or error.diag.column_name or "(all)"
        value: str | None = (found.group(3) or "").strip('"')
        if state == "23502":
            value = None
        why = f"The database says: {self.source.scrub(error.diag.message_primary or str(error))}"
        return misfit(int(found.group(1)) - 1, column, value, why)

    def _query(self, sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql.encode(), arguments or None)
        return cursor.fetchall() if cursor.description else []

    # --- before loading ---------------------------------------------------------------------

    def delivered(self) -> int | None:
        with self._told():
            if self._query("SELECT to_regclass(%s)", self.deliveries)[0][0] is None:
                # Two that create it at once: one of them fails, and the table is there.
                with suppress(*_TABLE_MADE):
                    self._query(
                        f"CREATE TABLE IF NOT EXISTS {self.deliveries} (delivery_id text "
                        "PRIMARY KEY, table_name text NOT NULL, rows bigint NOT NULL, "
                        "at timestamptz NOT NULL DEFAULT now())"
                    )
            found = self._query(
                f"SELECT rows, table_name FROM {self.deliveries} WHERE delivery_id = %s",
                self.delivery_id,
            )
            if found and found[0][1] != self.target.table:
                raise other_delivery(self, str(found[0][1]))
            self._query("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            return int(found[0][0]) if found else None

    def describe(self) -> TargetTable | None:
        with self._told():
            return self._describe(self.table)

    def _describe(self, table: str) -> TargetTable | None:
        found = self._query(
            "SELECT oid::int8, relkind::text FROM pg_class WHERE oid = to_regclass(%s)", table
        )
        if not found:
            return None
        oid, kind = found[0]
        if kind not in ("r", "p"):
            raise InputError(f"{self.target.table} is no table.", "Only a table can be filled.")
        columns = [
            TargetColumn(
                str(name), KINDS.get(type_oid, "other"), str(declared), nullable, default,
                generated, _scale(modifier) if type_oid == _NUMERIC else None,
            )
            for name, type_oid, declared, nullable, default, generated, modifier in self._query(
                _COLUMNS, oid
            )
        ]  # fmt: skip
        unique = tuple(tuple(names) for (names,) in self._query(_UNIQUE, oid))
        return TargetTable(tuple(columns), unique)

    def stage(self, table: TargetTable | None, columns: Sequence[str]) -> list[TargetColumn]:
        self._is_new = table is None
        with self._told():
            if table is None:
                types = self.target.types
                made = ", ".join(f"{self.quote(n)} {types.get(n, 'text')}" for n in columns)
                self._create(f"CREATE TABLE {self.table} ({made})")
                table = self._describe(self.table)
            else:
                self._query(
                    f"CREATE TEMP TABLE {self._stage} ON COMMIT DROP AS SELECT 0::bigint AS "
                    f"{RECORD}, {self.names(columns)} FROM {self.table} WITH NO DATA"
                )
            assert table is not None
            known = {column.name: column for column in table.columns}
            self._unique = table.unique
            self._columns = [known[name] for name in columns]
            into, names = self.table, self.names(columns)
            if not self._is_new:
                into, names = self._stage, f"{RECORD}, {names}"
            cursor = self._connection.cursor()
            self._copying = cursor.copy(f"COPY {into} ({names}) FROM STDIN".encode())
            self._copy = self._copying.__enter__()
        return self._columns

    def _create(self, sql: str) -> None:
        try:
            self._query(sql)
        except _TABLE_MADE:
            raise exists_already(self.target.table) from None

    # --- loading ----------------------------------------------------------------------------

    def load(self, first: int, columns: Sequence[Ready]) -> None:
        assert self._copy is not None
        texts = [_copy_texts(values) for values in columns]
        if not self._is_new:
            texts.insert(0, list(map(str, range(first, first + len(columns[0])))))
        lines = "\n".join(map("\t".join, zip(*texts, strict=True))) + "\n"
        with self._told():
            self._copy.write(lines.encode())

    # --- the one step -----------------------------------------------------------------------

    def apply(self, records: int) -> bool:
        with self._told():
            copying, self._copying = self._copying, None
            if copying is not None:
                copying.__exit__(None, None, None)
            self._query("SAVEPOINT loaded")
            try:
                return self._apply(records)
            except psycopg.errors.UniqueViolation as error:
                self._query("ROLLBACK TO SAVEPOINT loaded")
                tables = (self._stage, self.table)
                names = [column.name for column in self._columns]
                found = find_repeated(self, self._query, self._unique, names, tables)
                raise found or from_postgres(self.source, error) from None

    def _apply(self, records: int) -> bool:
        noted = self._query(
            f"INSERT INTO {self.deliveries} (delivery_id, table_name, rows) VALUES (%s, %s, %s) "
            "ON CONFLICT (delivery_id) DO NOTHING RETURNING 1",
            self.delivery_id, self.target.table, records,
        )  # fmt: skip
        if not noted:
            self._query("ROLLBACK")
            return False
        names = self.names([column.name for column in self._columns])
        if self.target.mode == "upsert":
            self._upsert(names)
        elif not self._is_new:
            if self.target.mode == "replace":
                self._query(f"DELETE FROM {self.table}")
            self._query(
                f"INSERT INTO {self.table} ({names}) SELECT {names} FROM {self._stage} "
                f"ORDER BY {RECORD}"
            )
        self._query("COMMIT")
        return True

    def _upsert(self, names: str) -> None:
        """Of records with one key the last one counts, as if they had come one by one."""
        key = self.names(self.target.key)
        rest = [c.name for c in self._columns if c.name not in self.target.key]
        update = ", ".join(f"{self.quote(name)} = EXCLUDED.{self.quote(name)}" for name in rest)
        self._query(
            f"INSERT INTO {self.table} ({names}) SELECT DISTINCT ON ({key}) {names} "
            f"FROM {self._stage} ORDER BY {key}, {RECORD} DESC "
            f"ON CONFLICT ({key}) DO " + (f"UPDATE SET {update}" if rest else "NOTHING")
        )

    def close(self) -> None:
        # The server rolls back what has not been committed.
        with suppress(Exception):
            self._connection.pgconn.finish()


def _scale(modifier: int) -> int | None:
    """Digits behind the point that a numeric type has room for; None if it sets no limit there."""
    scale = (modifier - 4) & 0x7FF
    return scale if modifier >= 4 and scale <= _MOST_DIGITS else None


def _copy_texts(values: Ready) -> list[str]:
    """Each value in the text form of COPY."""
    plain = set(map(type, values)) <= {str}
    if plain and not _ESCAPED.search("".join(values)):  # type: ignore[arg-type]
        return values  # type: ignore[return-value]
    found = []
    for value in values:
        if value is None:
            found.append("\\N")
        elif isinstance(value, bytes):
            found.append("\\\\x" + value.hex())
        else:
            found.append(value.translate(_ESCAPES))
    return found
