"""Verbs on the job table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from officegrid.core.errors import ConflictError, InternalError, NotFoundError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Job
from officegrid.storage.rows import (
    column_names,
    from_job,
    insert_sql,
    select_list,
    to_job,
    to_json,
)
from officegrid.storage.verbs import COUNTERS, Verbs

_SELECT = f"SELECT {select_list(Job)} FROM jobs"
_INSERT = insert_sql("jobs", column_names(Job))
_FIRST_SPAN = (
    "INSERT INTO spans (job, start, \"end\", state, attempts) VALUES (?, 0, ?, 'pending', 0)"
)
_HAS_LEDGER = "SELECT 1 FROM spans WHERE job = ? LIMIT 1"
_CLAIMABLE = (
    f"{_SELECT} WHERE state = 'running' AND (pending > 0 OR live_leases > 0) "
    "ORDER BY priority DESC, created_at, id"
)
_CHANGEABLE = frozenset(column_names(Job)) - {"id", *COUNTERS}


class JobVerbs(Verbs):
    """Jobs; every read first writes the counters this transaction has summed so far."""

    def add_job(self, job: Job) -> None:
        """See `api.Tx`; counters start from the ledger. Raises ConflictError for a used id."""
        zeroed: dict[str, Any] = dict.fromkeys(COUNTERS, 0)
        zeroed["pending"] = job.total
        try:
            self._run(_INSERT, from_job(replace(job, **zeroed)))
        except sqlite3.IntegrityError as error:
            raise ConflictError(
                f"Job {job.id} exists already.", str(error), "Submit it under a new id."
            ) from error
        if job.total > 0:
            self._run(_FIRST_SPAN, (job.id, job.total))

    def job(self, job_id: str) -> Job | None:
        """See `api.Tx`."""
        self.flush()
        row = self._one(f"{_SELECT} WHERE id = ?", (job_id,))
        return None if row is None else to_job(row)

    def jobs(
        self,
        *,
        states: Iterable[JobState] | None = None,
        name: str | None = None,
        limit: int = 1000,
    ) -> list[Job]:
        """See `api.Tx`; jobs created at the same moment are ordered by id, highest first."""
        self.flush()
        wanted, values = ["1"], []
        if states is not None:
            values += [state.value for state in states]
            wanted.append(f"state IN ({', '.join('?' * len(values))})")
        if name is not None:
            wanted.append("name = ?")
            values.append(name)
        sql = f"{_SELECT} WHERE {' AND '.join(wanted)} ORDER BY created_at DESC, id DESC LIMIT ?"
        return [to_job(row) for row in self._all(sql, (*values, limit))]

    def update_job(self, job_id: str, **changes: Any) -> None:
        """See `api.Tx`. Raises NotFoundError; InternalError for a counter or unknown column,
        or for a new `total` when the ledger has spans already."""
        if refused := sorted(set(changes) - _CHANGEABLE):
            raise InternalError(f"A job's {', '.join(refused)} cannot be set directly.")
        total = changes.pop("total", None)
        if total is not None:
            self._start_ledger(job_id, total)
        if "state" in changes:
            changes["state"] = JobState(changes["state"]).value
        if "spec" in changes:
            changes["spec"] = to_json(changes["spec"])
        names = ", ".join(f'"{name}" = ?' for name in changes) or "id = id"
        if not self._run(f"UPDATE jobs SET {names} WHERE id = ?", (*changes.values(), job_id)):
            raise NotFoundError(f"There is no job {job_id}.", fix="See `officegrid jobs`.")

    def _start_ledger(self, job_id: str, total: int) -> None:
        ledger = self._known_ledger(job_id)
        if total == ledger.total:
            return
        if self._one(_HAS_LEDGER, (job_id,)) is not None:
            raise InternalError(
                f"The number of records of job {job_id} cannot change any more.",
                f"Its ledger of {ledger.total} records has begun; {total} were asked for.",
            )
        self._run("UPDATE jobs SET total = ?, pending = ? WHERE id = ?", (total, total, job_id))
        if total > 0:
            self._run(_FIRST_SPAN, (job_id, total))
        del self._ledgers[job_id]

    def claimable_jobs(self) -> list[Job]:
        """See `api.Tx`; highest priority first, then oldest first."""
        self.flush()
        return [to_job(row) for row in self._all(_CLAIMABLE)]
