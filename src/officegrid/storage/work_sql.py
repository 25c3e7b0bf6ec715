"""Verbs on what units leave behind: parts, quarantined records, measured rates."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from officegrid.core.invariants import broken
from officegrid.storage.api import Part, Quarantined, Rate
from officegrid.storage.rows import (
    column_names,
    from_part,
    insert_sql,
    select_list,
    to_part,
    to_quarantined,
    upsert_sql,
)
from officegrid.storage.verbs import Verbs

_PART = f"SELECT {select_list(Part)} FROM parts"
_INSERT_PART = insert_sql("parts", column_names(Part))
_PART_OF_LEASE = f"{_PART} WHERE lease_id = ?"
_PARTS = f"{_PART} WHERE job = ? AND start >= ? ORDER BY start, generation LIMIT ?"
_RETRIED = (
    # Few parts are retries; without the hint the planner walks all parts of the range.
    f"{_PART} INDEXED BY ix_parts_retried WHERE job = ? AND generation > 0 "
    "AND start >= ? AND start < ? ORDER BY start, generation"
)
_MACHINES = (
    'SELECT machine, count(*), sum("end" - start) FROM parts WHERE job = ? '
    "GROUP BY machine ORDER BY machine"
)
_PUT_QUARANTINED = upsert_sql("quarantine", column_names(Quarantined), ("job", "record"))
_QUARANTINED = (
    f"SELECT {select_list(Quarantined)} FROM quarantine WHERE job = ? AND record >= ? "
    "ORDER BY record LIMIT ?"
)
_DROP_QUARANTINED = "DELETE FROM quarantine WHERE job = ? AND record >= ? AND record < ?"
_RATE = f"SELECT {select_list(Rate)} FROM rates WHERE job = ? AND machine = ?"
_PUT_RATE = upsert_sql("rates", column_names(Rate), ("job", "machine"))
_RATES = f"SELECT {select_list(Rate)} FROM rates WHERE job = ? ORDER BY machine"


class WorkVerbs(Verbs):
    """Parts, quarantine, rates."""

    def add_part(self, part: Part) -> None:
        """See `api.Tx`. Raises InternalError if the lease, or this range in this generation,
        has a part already; NotFoundError for an unknown job."""
        self._known_ledger(part.job)
        try:
            self._cursor.execute(_INSERT_PART, from_part(part))
        except sqlite3.IntegrityError as error:
            raise broken(
                f"Records [{part.start}, {part.end}) of job {part.job} have an output already.",
                f"Lease {part.lease_id}, generation {part.generation}: {error}.",
            ) from error
        self._count(part.job, 0, 0, 0, 0, 0, part.records_out, 1)

    def part_of_lease(self, lease_id: str) -> Part | None:
        """See `api.Tx`."""
        row = self._one(_PART_OF_LEASE, (lease_id,))
        return None if row is None else to_part(row)

    def parts(self, job_id: str, *, from_start: int = 0, limit: int = 500) -> list[Part]:
        """See `api.Tx`."""
        return [to_part(row) for row in self._all(_PARTS, (job_id, from_start, limit))]

    def retried_parts(self, job_id: str, start: int, end: int) -> list[Part]:
        """See `api.Tx`."""
        return [to_part(row) for row in self._all(_RETRIED, (job_id, start, end))]

    def machines_of_job(self, job_id: str) -> list[tuple[str, int, int]]:
        """See `api.Tx`; by machine id, all generations counted."""
        return [(row[0], row[1], row[2]) for row in self._all(_MACHINES, (job_id,))]

    def put_quarantined(self, rows: Sequence[Quarantined]) -> None:
        """See `api.Tx`."""
        names = column_names(Quarantined)
        values = [[getattr(row, name) for name in names] for row in rows]
        self._cursor.executemany(_PUT_QUARANTINED, values)

    def drop_quarantined(self, job_id: str, start: int, end: int) -> None:
        """Forget the quarantined records `[start, end)`."""
        self._run(_DROP_QUARANTINED, (job_id, start, end))

    def quarantined(
        self, job_id: str, *, from_record: int = 0, limit: int = 500
    ) -> list[Quarantined]:
        """By record, from `record >= from_record`."""
        return [
            to_quarantined(row) for row in self._all(_QUARANTINED, (job_id, from_record, limit))
        ]

    def rate(self, machine: str, job: str) -> Rate | None:
        """See `api.Tx`."""
        row = self._one(_RATE, (job, machine))
        return None if row is None else Rate(*row)

    def put_rate(self, rate: Rate) -> None:
        """Insert or replace by (machine, job)."""
        self._cursor.execute(
            _PUT_RATE,
            (rate.machine, rate.job, rate.records_per_s, rate.last_size, rate.last_end),
        )

    def rates_of_job(self, job: str) -> list[Rate]:
        """By machine id."""
        return [Rate(*row) for row in self._all(_RATES, (job,))]
