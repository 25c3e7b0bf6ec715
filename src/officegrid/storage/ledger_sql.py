"""Verbs on ledgers and leases: carrying out edits, and leases across jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from officegrid.core.errors import InternalError
from officegrid.core.invariants import broken, check_edit
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import Edit, Lease, LeaseState, Span, SpanState
from officegrid.storage.ledger_view_sql import LEASE_COLUMNS
from officegrid.storage.rows import column_names, to_lease
from officegrid.storage.verbs import COUNTERS, Verbs

_DELETE_SPAN = (
    'DELETE FROM spans WHERE job = ? AND start = ? AND "end" = ? AND state = ? AND attempts = ?'
)
_CHANGE_SPAN = (
    'UPDATE spans SET "end" = ?, state = ?, attempts = ? '
    'WHERE job = ? AND start = ? AND "end" = ? AND state = ? AND attempts = ?'
)
_INSERT_SPAN = 'INSERT INTO spans (job, start, "end", state, attempts) VALUES (?, ?, ?, ?, ?)'
_RESTORE_SPAN = _INSERT_SPAN.replace("INSERT", "INSERT OR REPLACE", 1)

_LEASE_STATE = "SELECT job, state FROM leases WHERE id = ?"
_INSERT_LEASE = (
    f"INSERT OR IGNORE INTO leases ({LEASE_COLUMNS}, job) VALUES ("
    + ", ".join("?" * (len(column_names(Lease)) + 1))
    + ")"
)
_CHANGE_LEASE = (
    'UPDATE leases SET start = ?, "end" = ?, machine = ?, deadline = ?, claimed_at = ?, '
    "renewed_at = ?, expected_s = ?, state = ? WHERE id = ?"
)
_END_LEASE = f"{_CHANGE_LEASE} AND job = ? AND state = 'live'"
_OWNER = f"SELECT {LEASE_COLUMNS}, job FROM leases WHERE id = ?"
_EXPIRED = (
    f"SELECT {LEASE_COLUMNS}, job FROM leases WHERE state = 'live' AND deadline < ? "
    "ORDER BY deadline, id LIMIT ?"
)
_LIVE_OF = (
    f"SELECT {LEASE_COLUMNS}, job FROM leases WHERE state = 'live' AND machine = ? "
    "ORDER BY job, start, id"
)
_TOUCH = (
    "UPDATE leases SET deadline = ?, renewed_at = ? WHERE id = ? AND machine = ? AND state = 'live'"
)
_SPANS_PAGE = (
    'SELECT start, "end", state, attempts FROM spans WHERE job = ? AND start >= ? '
    "ORDER BY start LIMIT 2000"
)
_COUNTER_OF = {state: COUNTERS.index(state.value) for state in SpanState}
_LIVE_LEASES = COUNTERS.index("live_leases")


class LedgerVerbs(Verbs):
    """Spans and leases."""

    def ledger(self, job_id: str) -> LedgerView:
        """See `api.Tx`. Raises NotFoundError for an unknown job."""
        return self._known_ledger(job_id)

    def apply(self, job_id: str, edit: Edit) -> None:
        """See `api.Tx`. Raises InternalError for a broken edit, NotFoundError for no such job."""
        check_edit(edit)
        self._known_ledger(job_id)
        change = [0] * len(COUNTERS)
        self._replace_spans(job_id, edit)
        for span in edit.remove:
            change[_COUNTER_OF[span.state]] -= span.end - span.start
        for span in edit.insert:
            change[_COUNTER_OF[span.state]] += span.end - span.start
        for lease in edit.leases:
            change[_LIVE_LEASES] += self._put_lease(job_id, lease)
        self._count(job_id, *change)

    def _replace_spans(self, job_id: str, edit: Edit) -> None:
        execute = self._cursor.execute
        added = {span.start: span for span in edit.insert}
        gone: list[Span] = []
        for old in edit.remove:
            # A span that begins where a removed one began takes over its row.
            new = added.pop(old.start, None)
            key = (job_id, old.start, old.end, old.state.value, old.attempts)
            if new is None:
                found = execute(_DELETE_SPAN, key).rowcount
            else:
                change = (new.end, new.state.value, new.attempts)
                found = execute(_CHANGE_SPAN, (*change, *key)).rowcount
            if found != 1:
                raise self._restored(job_id, gone, old)
            gone.append(old)
        for span in added.values():
            execute(_INSERT_SPAN, _span_row(job_id, span))

    def _restored(self, job_id: str, gone: Sequence[Span], missing: Span) -> InternalError:
        """Put back what was removed; the error that says which span was not as expected."""
        for span in gone:
            self._cursor.execute(_RESTORE_SPAN, _span_row(job_id, span))
        ledger = self._known_ledger(job_id)
        present = ledger.spans_over(missing.start, missing.end)
        return broken(
            "The ledger is not as the operation assumed.",
            f"Job {job_id}: it expected {missing} and found {present}.",
        )

    def _put_lease(self, job_id: str, lease: Lease) -> int:
        """Insert or change; returns the change in the number of live leases.

        Nearly all leases are either new or stop being live: one statement does for these.
        """
        execute = self._cursor.execute
        is_live = lease.state is LeaseState.LIVE
        values = (
            lease.start,
            lease.end,
            lease.machine,
            lease.deadline,
            lease.claimed_at,
            lease.renewed_at,
            lease.expected_s,
            lease.state.value,
        )
        if is_live:
            if execute(_INSERT_LEASE, (lease.id, *values, job_id)).rowcount == 1:
                return 1
        elif execute(_END_LEASE, (*values, lease.id, job_id)).rowcount == 1:
            return -1
        before = execute(_LEASE_STATE, (lease.id,)).fetchone()
        if before is None:
            execute(_INSERT_LEASE, (lease.id, *values, job_id))
            return int(is_live)
        if before[0] != job_id:
            # The spans are changed by now; this makes the whole operation be undone.
            self.failure = broken(f"Lease {lease.id} belongs to job {before[0]}, not {job_id}.")
            raise self.failure
        execute(_CHANGE_LEASE, (*values, lease.id))
        return int(is_live) - int(before[1] == "live")

    def spans(self, job_id: str) -> Iterator[tuple[int, int, str, int]]:
        """See `api.Tx`; read in pages, so a job of any size costs little memory."""
        start = 0
        while rows := self._all(_SPANS_PAGE, (job_id, start)):
            yield from rows
            start = rows[-1][1]

    # leases across jobs

    def lease_owner(self, lease_id: str) -> tuple[str, Lease] | None:
        """See `api.Tx`."""
        row = self._one(_OWNER, (lease_id,))
        return None if row is None else (row[-1], to_lease(row[:-1]))

    def expired_leases(self, now: float, limit: int = 500) -> list[tuple[str, Lease]]:
        """See `api.Tx`."""
        return [(row[-1], to_lease(row[:-1])) for row in self._all(_EXPIRED, (now, limit))]

    def live_leases_of(self, machine: str) -> list[tuple[str, Lease]]:
        """See `api.Tx`; by (job, start, id)."""
        return [(row[-1], to_lease(row[:-1])) for row in self._all(_LIVE_OF, (machine,))]

    def touch_leases(
        self, lease_ids: Sequence[str], machine: str, now: float, deadline: float
    ) -> list[str]:
        """See `api.Tx`."""
        return [x for x in lease_ids if self._run(_TOUCH, (deadline, now, x, machine))]


def _span_row(job_id: str, span: Span) -> tuple[str, int, int, str, int]:
    return (job_id, span.start, span.end, span.state.value, span.attempts)
