"""Reading one job's ledger in SQL: the look-ups every claim and commit makes."""

from __future__ import annotations

import sqlite3

from officegrid.core.errors import InternalError
from officegrid.core.model import Lease, Span
from officegrid.storage.rows import select_list, to_lease, to_span

SPAN_COLUMNS = 'start, "end", state, attempts'
LEASE_COLUMNS = select_list(Lease)

SPAN_AT = (
    f"SELECT {SPAN_COLUMNS} FROM spans WHERE job = ? AND start <= ? ORDER BY start DESC LIMIT 1"
)
# Spans tile the job, so the first one over a range is the last that begins at or before it.
SPANS_OVER = (
    f"SELECT {SPAN_COLUMNS} FROM spans WHERE job = ?1 AND start < ?3 AND start >= coalesce("
    "(SELECT max(start) FROM spans WHERE job = ?1 AND start <= ?2), 0) ORDER BY start"
)
LARGEST_PENDING = (
    f"SELECT {SPAN_COLUMNS} FROM spans WHERE job = ? AND state = 'pending' "
    "ORDER BY length DESC, start LIMIT 1"
)
LEASE = f"SELECT {LEASE_COLUMNS} FROM leases WHERE id = ? AND job = ?"
LIVE_LEASES = (
    f"SELECT {LEASE_COLUMNS} FROM leases WHERE job = ? AND state = 'live' ORDER BY start, id"
)
# A live lease covers exactly one span (core.invariants.check_leases): none that overlaps the
# range begins before the span that holds the range's first record.
LIVE_LEASES_OVER = (
    f"SELECT {LEASE_COLUMNS} FROM leases WHERE job = ?1 AND state = 'live' "
    'AND start < ?3 AND "end" > ?2 AND start >= coalesce('
    "(SELECT max(start) FROM spans WHERE job = ?1 AND start <= ?2), 0) ORDER BY start, id"
)


class SqlLedger:
    """`core.ledger_view.LedgerView` of one job, valid until its transaction ends."""

    __slots__ = ("_cursor", "_job", "_total")

    def __init__(self, cursor: sqlite3.Cursor, job: str, total: int) -> None:
        self._cursor = cursor
        self._job = job
        self._total = total

    @property
    def total(self) -> int:
        """Number of records."""
        return self._total

    def span_at(self, record: int) -> Span:
        """The span that holds `record`. Raises InternalError outside `[0, total)`."""
        if 0 <= record < self._total:
            row = self._cursor.execute(SPAN_AT, (self._job, record)).fetchone()
            if row is not None:
                return to_span(row)
        raise InternalError(
            f"Record {record} is outside the ledger of {self._total} records.",
            f"Job {self._job}.",
            "Please report this; the operation was undone.",
        )

    def spans_over(self, start: int, end: int) -> list[Span]:
        """All spans that overlap `[start, end)`, in order."""
        if start >= end or end <= 0 or start >= self._total:
            return []
        rows = self._cursor.execute(SPANS_OVER, (self._job, start, end))
        return [to_span(row) for row in rows.fetchall()]

    def largest_pending(self) -> Span | None:
        """The longest pending span; the lowest start among equals."""
        row = self._cursor.execute(LARGEST_PENDING, (self._job,)).fetchone()
        return None if row is None else to_span(row)

    def lease(self, lease_id: str) -> Lease | None:
        """Any lease ever given for this job, live or not."""
        row = self._cursor.execute(LEASE, (lease_id, self._job)).fetchone()
        return None if row is None else to_lease(row)

    def live_leases_over(self, start: int, end: int) -> list[Lease]:
        """Live leases that overlap `[start, end)`, by (start, id)."""
        if start >= end:
            return []
        rows = self._cursor.execute(LIVE_LEASES_OVER, (self._job, start, end))
        return [to_lease(row) for row in rows.fetchall()]

    def live_leases(self) -> list[Lease]:
        """All live leases of the job, by (start, id)."""
        rows = self._cursor.execute(LIVE_LEASES, (self._job,))
        return [to_lease(row) for row in rows.fetchall()]
