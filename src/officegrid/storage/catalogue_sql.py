"""Verbs on datasets, machines, join codes, events and settings."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from officegrid.core.errors import ConflictError, InternalError, NotFoundError
from officegrid.storage.api import Dataset, Event, JoinCode, Machine, PlacedBlock
from officegrid.storage.rows import (
    ColumnLists,
    Row,
    column_names,
    from_dataset,
    from_json,
    from_machine,
    from_placed,
    insert_sql,
    select_list,
    to_dataset,
    to_event,
    to_json,
    to_machine,
    to_slice,
    upsert_sql,
)
from officegrid.storage.schema import DATASET_BLOCKS
from officegrid.storage.verbs import Verbs

_DATASET = f"SELECT {select_list(Dataset)} FROM datasets WHERE id = ?"
_INSERT_DATASET = insert_sql("datasets", [*column_names(Dataset), "column_lists"])
_INSERT_BLOCK = insert_sql("dataset_blocks", [column.name for column in DATASET_BLOCKS.c])
# Blocks follow one another, so the first one over a range is the last that begins at or
# before it; the index on (dataset, start) answers both halves.
BLOCKS_OVER = (
    "SELECT start, sha256, stored_bytes, raw_bytes, offset, length, records, columns "
    "FROM dataset_blocks WHERE dataset = ?1 AND start < ?3 AND start + records > ?2 "
    "AND start >= coalesce("
    "(SELECT max(start) FROM dataset_blocks WHERE dataset = ?1 AND start <= ?2), 0) "
    "ORDER BY start"
)
_COLUMN_LISTS = "SELECT column_lists FROM datasets WHERE id = ?"
_MAY_READ = """
SELECT 1 FROM leases l JOIN jobs j ON j.id = l.job
WHERE l.machine = ?1 AND l.state = 'live' AND (EXISTS (
    SELECT 1 FROM job_archives a WHERE a.job = l.job AND a.archive = ?2
) OR EXISTS (
    SELECT 1 FROM dataset_blocks b
    WHERE b.dataset = j.dataset AND b.start < l."end" AND b.start + b.records > l.start
      AND b.start >= coalesce((SELECT max(start) FROM dataset_blocks
                               WHERE dataset = j.dataset AND start <= l.start), 0)
      AND b.sha256 = ?2))
LIMIT 1
"""
_MACHINE = f"SELECT {select_list(Machine)} FROM machines"
_PUT_MACHINE = upsert_sql("machines", column_names(Machine), ("id",))
_TOUCHABLE = frozenset(
    {
        "session",
        "last_seen",
        "state",
        "facts",
        "name",
        "revoked",
        "status",
        "stats",
        "drain",
        "cloned_from",
    }
)
_ADD_CODE = insert_sql("join_codes", column_names(JoinCode))
_USE_CODE = (
    "UPDATE join_codes SET uses_left = uses_left - 1 "
    "WHERE code_hash = ? AND uses_left > 0 AND expires_at > ? "
    f"RETURNING {select_list(JoinCode)}"
)
_ADD_EVENT = insert_sql("events", ["at", "subject", "kind", "text", "facts"])
_EVENT = f"SELECT {select_list(Event)} FROM events"
_PUT_SETTING = upsert_sql("settings", ["key", "value"], ("key",))


class CatalogueVerbs(Verbs):
    """Everything that is neither a job nor its work."""

    # datasets

    def add_dataset(self, dataset: Dataset, blocks: Iterable[PlacedBlock]) -> None:
        """See `api.Tx`. Blocks without records are not kept: no record is ever read from one."""
        if self.dataset(dataset.id) is not None:
            return
        # One of this id may have been dropped, and not all of its blocks yet.
        self._run("DELETE FROM dataset_blocks WHERE dataset = ?", (dataset.id,))
        lists = ColumnLists()
        self._cursor.executemany(
            _INSERT_BLOCK,
            (
                from_placed(dataset.id, placed, lists.number(placed.slice.columns))
                for placed in blocks
                if placed.slice.records > 0
            ),
        )
        self._run(_INSERT_DATASET, (*from_dataset(dataset), to_json(lists.lists)))

    def dataset(self, dataset_id: str) -> Dataset | None:
        """See `api.Tx`."""
        row = self._one(_DATASET, (dataset_id,))
        return None if row is None else to_dataset(row)

    def blocks_over(self, dataset_id: str, start: int, end: int) -> list[PlacedBlock]:
        """See `api.Tx`."""
        if start >= end:
            return []
        rows = self._all(BLOCKS_OVER, (dataset_id, start, end))
        lists: list[list[str]] = []
        if any(row[7] is not None for row in rows):
            found = self._one(_COLUMN_LISTS, (dataset_id,))
            lists = from_json(found[0]) if found else []
        return [PlacedBlock(row[0], to_slice(row[1:], lists)) for row in rows]

    def lease_may_read(self, machine: str, sha256: str) -> bool:
        """See `api.Tx`."""
        return self._one(_MAY_READ, (machine, sha256)) is not None

    # machines and codes

    def put_machine(self, machine: Machine) -> None:
        """See `api.Tx`."""
        self._run(_PUT_MACHINE, from_machine(machine))

    def machine(self, machine_id: str) -> Machine | None:
        """See `api.Tx`."""
        return self._machine("id", machine_id)

    def machine_by_token(self, token_hash: str) -> Machine | None:
        """The machine with this token, revoked or not: the caller must look at `revoked`."""
        return self._machine("token_hash", token_hash)

    def _machine(self, column: str, value: str) -> Machine | None:
        row = self._one(f"{_MACHINE} WHERE {column} = ? LIMIT 1", (value,))
        return None if row is None else to_machine(row)

    def machines(self) -> list[Machine]:
        """By name, then id."""
        return [to_machine(row) for row in self._all(f"{_MACHINE} ORDER BY name, id")]

    def machines_on(self, host: str) -> list[Machine]:
        """See `api.Tx`."""
        return [
            to_machine(row) for row in self._all(f"{_MACHINE} WHERE host = ? ORDER BY id", (host,))
        ]

    def touch_machine(self, machine_id: str, **changes: Any) -> None:
        """See `api.Tx`. Raises NotFoundError; InternalError for any other column."""
        if refused := sorted(set(changes) - _TOUCHABLE):
            raise InternalError(f"A machine's {', '.join(refused)} cannot be set directly.")
        for name in {"facts", "status", "stats"} & changes.keys():
            changes[name] = to_json(changes[name])
        names = ", ".join(f'"{name}" = ?' for name in changes) or "id = id"
        sql = f"UPDATE machines SET {names} WHERE id = ?"
        if not self._run(sql, (*changes.values(), machine_id)):
            raise NotFoundError(
                f"There is no machine {machine_id}.", fix="See `officegrid machines`."
            )

    def add_join_code(self, code: JoinCode) -> None:
        """Raises ConflictError if the code is there already."""
        values = [getattr(code, name) for name in column_names(JoinCode)]
        try:
            self._run(_ADD_CODE, values)
        except sqlite3.IntegrityError as error:
            raise ConflictError("This join code exists already.", fix="Make a new one.") from error

    def use_join_code(self, code_hash: str, now: float) -> JoinCode | None:
        """See `api.Tx`; `uses_left` in the answer is what remains after this use."""
        row = self._one(_USE_CODE, (code_hash, now))
        return None if row is None else JoinCode(*row)

    def drop_join_codes(self, host: str) -> None:
        """See `api.Tx`."""
        self._run("DELETE FROM join_codes WHERE host = ?", (host,))

    # story and settings

    def add_event(
        self, at: float, subject: str, kind: str, text: str, facts: dict[str, Any] | None = None
    ) -> None:
        """Append one line to the story of `subject`; numbers grow in the order of commits."""
        self._run(_ADD_EVENT, (at, subject, kind, text, to_json(facts or {})))

    def events(
        self, subject: str | None, *, after: int = 0, limit: int = 500, newest: bool = False
    ) -> list[Event]:
        """See `api.Tx`."""
        where, values = "n > ?", [after, limit]
        if subject is not None:
            where, values = "subject = ? AND n > ?", [subject, after, limit]  # type: ignore[list-item]
        order = "DESC" if newest else "ASC"
        rows: list[Row] = self._all(f"{_EVENT} WHERE {where} ORDER BY n {order} LIMIT ?", values)
        return [to_event(row) for row in (reversed(rows) if newest else rows)]

    def setting(self, key: str) -> str | None:
        """The value stored under `key`."""
        row = self._one("SELECT value FROM settings WHERE key = ?", (key,))
        return None if row is None else row[0]

    def put_setting(self, key: str, value: str) -> None:
        """Insert or replace by key."""
        self._run(_PUT_SETTING, (key, value))
