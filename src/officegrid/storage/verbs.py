"""What the groups of SQL verbs share: one cursor, and counters written once per transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import add
from typing import Any

from officegrid.core.errors import InternalError, NotFoundError
from officegrid.storage.ledger_view_sql import SqlLedger
from officegrid.storage.rows import Row

# The order of the numbers kept in `Verbs._counts`.
COUNTERS = ("pending", "leased", "done", "quarantined", "live_leases", "records_out", "units")
_ADD_COUNTS = (
    "UPDATE jobs SET " + ", ".join(f"{name} = {name} + ?" for name in COUNTERS) + " WHERE id = ?"
)
Counts = tuple[int, ...]


class Verbs:
    """Base of the verb groups. All statements of one transaction go through one cursor.

    Every read fetches at once, so the cursor is free again when a verb returns. Closing it
    makes views that outlive their transaction fail instead of reading some later state.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._cursor = connection.cursor()
        self._counts: dict[str, Counts] = {}
        self._saved_counts: dict[str, Counts] = {}
        self._ledgers: dict[str, SqlLedger] = {}
        # Set by a verb that raised half-way: the operation is undone even if it goes on.
        self.failure: InternalError | None = None

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Row | None:
        row: Row | None = self._cursor.execute(sql, values).fetchone()
        return row

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        return self._cursor.execute(sql, values).fetchall()

    def _run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a change; the number of rows it touched."""
        return self._cursor.execute(sql, values).rowcount

    def _known_ledger(self, job_id: str) -> SqlLedger:
        ledger = self._ledgers.get(job_id)
        if ledger is None:
            row = self._one("SELECT total FROM jobs WHERE id = ?", (job_id,))
            if row is None:
                raise NotFoundError(f"There is no job {job_id}.", fix="See `officegrid jobs`.")
            ledger = self._ledgers[job_id] = SqlLedger(self._cursor, job_id, row[0])
        return ledger

    # Each unit changes its job's counters several times; they are summed here and written to
    # the job's row once, before the row is read or the transaction ends.

    def _count(self, job_id: str, *change: int) -> None:
        before = self._counts.get(job_id)
        self._counts[job_id] = change if before is None else tuple(map(add, before, change))

    def flush(self) -> None:
        """Write the summed counters to their jobs' rows."""
        if self._counts:
            for job_id, change in self._counts.items():
                self._cursor.execute(_ADD_COUNTS, (*change, job_id))
            self._counts = {}

    def begin_operation(self) -> None:
        """Remember the counters, in case the operation about to run is rolled back."""
        self._saved_counts = self._counts.copy()
        self.failure = None

    def undo_operation(self) -> None:
        """After ROLLBACK TO: forget what the operation counted and what it read."""
        self._counts = self._saved_counts
        self._ledgers.clear()

    def end(self) -> None:
        """The transaction is over; views and iterators made in it stop working."""
        self._cursor.close()
