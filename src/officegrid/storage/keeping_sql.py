"""The verbs that the clean-up asks: what refers to what, and dropping what nothing needs.

See `api.Tx` for what each promises.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from officegrid.core.jobs import JobState
from officegrid.storage.model import JobMark
from officegrid.storage.rows import select_list
from officegrid.storage.verbs import Verbs

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_MARKS = f"SELECT {select_list(JobMark)} FROM jobs"
_USING = f"{_MARKS} WHERE id IN (SELECT job FROM job_archives WHERE archive = ?) ORDER BY id"
# Rows are walked in the order of their keys, a page at a time, from behind the last key seen.
_PARTS = (
    "SELECT job, start, generation, blocks FROM parts "
    "WHERE (job, start, generation) > (?, ?, ?) ORDER BY job, start, generation LIMIT ?"
)
_BLOCKS = (
    "SELECT dataset, start, sha256 FROM dataset_blocks "
    "WHERE (dataset, start) > (?, ?) ORDER BY dataset, start LIMIT ?"
)
_CHUNKS = (
    "SELECT sha256, image FROM image_chunks WHERE (sha256, image) > (?, ?) "
    "ORDER BY sha256, image LIMIT ?"
)
_UNUSED_DATASETS = (
    "SELECT id FROM datasets WHERE created_at < ? "
    "AND id NOT IN (SELECT dataset FROM jobs WHERE dataset IS NOT NULL) ORDER BY id"
)
_DROP_DATASET = (
    "DELETE FROM datasets WHERE id = ?1 AND created_at < ?2 "
    "AND NOT EXISTS (SELECT 1 FROM jobs WHERE dataset = ?1)"
)
# From one dataset to the next through the key, not over all blocks.
_LEFT_OVER = (
    "WITH RECURSIVE met(id) AS (SELECT min(dataset) FROM dataset_blocks UNION ALL "
    "SELECT (SELECT min(dataset) FROM dataset_blocks WHERE dataset > met.id) FROM met "
    "WHERE met.id IS NOT NULL) "
    "SELECT id FROM met WHERE id IS NOT NULL AND id NOT IN (SELECT id FROM datasets)"
)
_DROP_BLOCKS = (
    "DELETE FROM dataset_blocks WHERE dataset = ?1 "
    "AND NOT EXISTS (SELECT 1 FROM datasets WHERE id = ?1) "
    "AND start IN (SELECT start FROM dataset_blocks WHERE dataset = ?1 ORDER BY start LIMIT ?2)"
)

# Of a job that was dropped, in this order.
_OF_JOB = tuple(
    f"DELETE FROM {table} WHERE {owner} = ?1 {more} "
    f"AND NOT EXISTS (SELECT 1 FROM jobs WHERE id = ?1) AND ({key}) IN "
    f"(SELECT {key} FROM {table} WHERE {owner} = ?1 {more} LIMIT ?2)"
    for table, owner, key, more in (
        ("parts", "job", "start, generation", ""),
        ("quarantine", "job", "record", ""),
        ("spans", "job", "start", ""),
        ("events", "subject", "n", "AND kind <> 'removed'"),
    )
)

Key = tuple[Any, ...]


class KeepingVerbs(Verbs):
    """Part of `api.Tx`."""

    def job_marks(self, using: str | None = None) -> list[JobMark]:
        """See `api.Tx`."""
        self.flush()
        rows = self._all(f"{_MARKS} ORDER BY id") if using is None else self._all(_USING, (using,))
        return [JobMark(a, JobState(b), *rest) for a, b, *rest in rows]

    def jobs_archives(self) -> list[tuple[str, str]]:
        """See `api.Tx`."""
        return self._all("SELECT job, archive FROM job_archives ORDER BY job, archive")

    def settings(self) -> list[tuple[str, str]]:
        """See `api.Tx`."""
        return self._all("SELECT key, value FROM settings ORDER BY key")

    def objects_of_parts(self, after: Key, limit: int) -> tuple[list[str], Key | None]:
        """See `api.Tx`."""
        rows = self._all(_PARTS, (*(after or ("", -1, -1)), limit))
        # Half of the digits are found as text: unpacking every block takes ten times as long.
        found = [digest for row in rows for digest in _DIGEST.findall(row[3])]
        return found, _next(rows, limit, 3)

    def objects_of_datasets(
        self, after: Key, limit: int, leaving: Collection[str] = ()
    ) -> tuple[list[str], Key | None]:
        """See `api.Tx`."""
        rows = self._all(_BLOCKS, (*(after or ("", -1)), limit))
        return [row[2] for row in rows if row[0] not in leaving], _next(rows, limit, 2)

    def objects_of_images(self, after: Key, limit: int) -> tuple[list[str], Key | None]:
        """See `api.Tx`."""
        rows = self._all(_CHUNKS, (*(after or ("", "")), limit))
        return [row[0] for row in rows], _next(rows, limit, 2)

    def unused_datasets(self, before: float) -> list[str]:
        """See `api.Tx`."""
        return [row[0] for row in self._all(_UNUSED_DATASETS, (before,))]

    def touch_dataset(self, dataset_id: str, at: float) -> None:
        """See `api.Tx`."""
        sql = "UPDATE datasets SET created_at = max(created_at, ?) WHERE id = ?"
        self._run(sql, (at, dataset_id))

    def drop_dataset(self, dataset_id: str, before: float) -> bool:
        """See `api.Tx`."""
        return self._run(_DROP_DATASET, (dataset_id, before)) > 0

    def drop_job(self, job_id: str) -> None:
        """See `api.Tx`."""
        self.flush()
        self._run("DELETE FROM jobs WHERE id = ?", (job_id,))
        for table in ("job_pins", "job_archives", "deliveries", "rates"):
            self._run(f"DELETE FROM {table} WHERE job = ?", (job_id,))
        keys = (f"columns:{job_id}", f"schedule:{job_id}")
        self._run("DELETE FROM settings WHERE key IN (?, ?)", keys)
        self._ledgers.pop(job_id, None)

    def drop_left_over_of_job(self, job_id: str, limit: int) -> int:
        """See `api.Tx`."""
        for sql in _OF_JOB:
            if dropped := self._run(sql, (job_id, limit)):
                return dropped
        return 0

    def lone_leases(self) -> list[str]:
        """See `api.Tx`."""
        rows = self._all("SELECT id FROM leases WHERE job NOT IN (SELECT id FROM jobs)")
        return [row[0] for row in rows]

    def drop_leases(self, lease_ids: Sequence[str]) -> None:
        """See `api.Tx`."""
        sql = "DELETE FROM leases WHERE id = ? AND job NOT IN (SELECT id FROM jobs)"
        self._cursor.executemany(sql, [(one,) for one in lease_ids])

    def left_over_datasets(self) -> list[str]:
        """See `api.Tx`."""
        return [row[0] for row in self._all(_LEFT_OVER)]

    def drop_left_over_blocks(self, dataset_id: str, limit: int) -> int:
        """See `api.Tx`."""
        return self._run(_DROP_BLOCKS, (dataset_id, limit))


def _next(rows: Sequence[Key], limit: int, length: int) -> Key | None:
    return rows[-1][:length] if len(rows) == limit else None
