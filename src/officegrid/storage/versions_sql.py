"""The verbs about versions of code and data, and what jobs pinned of them, as SQL.

See `api.Tx` for what each promises.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from officegrid.core.errors import ConflictError
from officegrid.storage.api import Archive, Delivery, Delta, JobPin, PinnedData, Version
from officegrid.storage.rows import (
    Row,
    column_names,
    from_json,
    insert_sql,
    select_list,
    to_json,
    upsert_sql,
)
from officegrid.storage.verbs import Verbs

_VERSION = f"SELECT {select_list(Version)} FROM versions"
_ADD_VERSION = insert_sql("versions", column_names(Version))
_ARCHIVE = f"SELECT {select_list(Archive)} FROM archives"
_PUT_ARCHIVE = upsert_sql("archives", column_names(Archive), ["digest"])
_DELTA = f"SELECT {select_list(Delta)} FROM deltas"
_PUT_DELTA = upsert_sql("deltas", column_names(Delta), ["new", "old"])
_PIN = f"SELECT {select_list(JobPin)} FROM job_pins"
_ADD_PIN = insert_sql("job_pins", column_names(JobPin))
_ADD_JOB_ARCHIVE = insert_sql("job_archives", ["job", "archive"], "INSERT OR IGNORE")
_MAY_USE = """
SELECT 1 FROM leases l JOIN job_archives a ON a.job = l.job
WHERE l.machine = ? AND l.state = 'live' AND a.archive = ? LIMIT 1
"""
_DELIVERY = f"SELECT {select_list(Delivery)} FROM deliveries"
_PUT_DELIVERY = upsert_sql("deliveries", column_names(Delivery), ["job", "generation"])


class VersionVerbs(Verbs):
    """Part of `api.Tx`."""

    # versions

    def add_version(self, version: Version) -> None:
        """See `api.Tx`."""
        try:
            self._run(_ADD_VERSION, [getattr(version, name) for name in column_names(Version)])
        except sqlite3.IntegrityError as error:
            raise ConflictError(
                f"Version {version.n} of {version.name} exists already.", str(error)
            ) from error

    def version(self, kind: str, name: str, n: int | None = None) -> Version | None:
        """See `api.Tx`."""
        if n is None:
            where, values = "NOT gone", [kind, name]
        else:
            where, values = "n = ?", [kind, name, n]  # type: ignore[list-item]
        row = self._one(
            f"{_VERSION} WHERE kind = ? AND name = ? AND {where} ORDER BY n DESC LIMIT 1", values
        )
        return None if row is None else _to_version(row)

    def versions(self, kind: str, *, name: str | None = None, limit: int = 1000) -> list[Version]:
        """See `api.Tx`."""
        where, values = "kind = ?", [kind]
        if name is not None:
            where, values = "kind = ? AND name = ?", [kind, name]
        sql = f"{_VERSION} WHERE {where} ORDER BY name, n DESC LIMIT ?"
        return [_to_version(row) for row in self._all(sql, [*values, limit])]

    def versions_with(self, digest: str) -> list[Version]:
        """See `api.Tx`."""
        sql = f"{_VERSION} WHERE digest = ? ORDER BY kind, name, n"
        return [_to_version(row) for row in self._all(sql, (digest,))]

    def set_version_gone(self, kind: str, name: str, n: int) -> None:
        """See `api.Tx`."""
        self._run(
            "UPDATE versions SET gone = 1 WHERE kind = ? AND name = ? AND n = ?", (kind, name, n)
        )

    # archives and deltas

    def put_archive(self, archive: Archive) -> None:
        """See `api.Tx`."""
        self._run(_PUT_ARCHIVE, _with_json(archive, column_names(Archive), "spec"))

    def archive(self, digest: str) -> Archive | None:
        """See `api.Tx`."""
        row = self._one(f"{_ARCHIVE} WHERE digest = ?", (digest,))
        return None if row is None else _to_archive(row)

    def archives(self) -> list[Archive]:
        """See `api.Tx`."""
        return [_to_archive(row) for row in self._all(f"{_ARCHIVE} ORDER BY digest")]

    def drop_archive(self, digest: str) -> None:
        """See `api.Tx`."""
        self._run("DELETE FROM archives WHERE digest = ?", (digest,))
        self._run('DELETE FROM deltas WHERE "new" = ? OR "old" = ?', (digest, digest))

    def put_delta(self, delta: Delta) -> None:
        """See `api.Tx`."""
        self._run(_PUT_DELTA, _with_json(delta, column_names(Delta), "spec"))

    def deltas_to(self, new: str) -> list[Delta]:
        """See `api.Tx`."""
        rows = self._all(f'{_DELTA} WHERE "new" = ? ORDER BY "old"', (new,))
        return [_to_delta(row) for row in rows]

    def deltas(self) -> list[Delta]:
        """See `api.Tx`."""
        return [_to_delta(row) for row in self._all(f'{_DELTA} ORDER BY "new", "old"')]

    # pins

    def add_pin(self, pin: JobPin) -> None:
        """See `api.Tx`."""
        values = [getattr(pin, name) for name in column_names(JobPin)]
        plain = {key: asdict(one) for key, one in pin.data.items()}
        values[column_names(JobPin).index("data")] = to_json(plain)
        try:
            self._run(_ADD_PIN, values)
        except sqlite3.IntegrityError as error:
            raise ConflictError(
                f"Job {pin.job} has a pin {pin.pin} already.", str(error)
            ) from error
        archives = [one.digest for one in pin.data.values()]
        for digest in [*archives, *([pin.bundle] if pin.bundle else [])]:
            self._run(_ADD_JOB_ARCHIVE, (pin.job, digest))

    def pin(self, job_id: str, number: int | None = None) -> JobPin | None:
        """See `api.Tx`."""
        if number is None:
            row = self._one(f"{_PIN} WHERE job = ? ORDER BY pin DESC LIMIT 1", (job_id,))
        else:
            row = self._one(f"{_PIN} WHERE job = ? AND pin = ?", (job_id, number))
        return None if row is None else _to_pin(row)

    def pins(self, job_id: str) -> list[JobPin]:
        """See `api.Tx`."""
        return [_to_pin(row) for row in self._all(f"{_PIN} WHERE job = ? ORDER BY pin", (job_id,))]

    def jobs_with_archive(self, digest: str) -> list[str]:
        """See `api.Tx`."""
        sql = "SELECT job FROM job_archives WHERE archive = ? ORDER BY job"
        return [row[0] for row in self._all(sql, (digest,))]

    def lease_may_use(self, machine: str, archive: str) -> bool:
        """See `api.Tx`."""
        return self._one(_MAY_USE, (machine, archive)) is not None

    # deliveries

    def put_delivery(self, delivery: Delivery) -> None:
        """See `api.Tx`."""
        self._run(_PUT_DELIVERY, [getattr(delivery, name) for name in column_names(Delivery)])

    def delivery(self, job_id: str, generation: int) -> Delivery | None:
        """See `api.Tx`."""
        row = self._one(f"{_DELIVERY} WHERE job = ? AND generation = ?", (job_id, generation))
        return None if row is None else Delivery(*row)

    def deliveries(self, states: Iterable[str]) -> list[Delivery]:
        """See `api.Tx`."""
        wanted = list(states)
        marks = ", ".join("?" * len(wanted))
        sql = f"{_DELIVERY} WHERE state IN ({marks}) ORDER BY at, job, generation"
        return [Delivery(*row) for row in self._all(sql, wanted)]


def _with_json(value: Any, names: list[str], column: str) -> list[Any]:
    values = [getattr(value, name) for name in names]
    values[names.index(column)] = to_json(getattr(value, column))
    return values


def _to_version(row: Row) -> Version:
    a, b, c, d, e, f, g, h, gone = row
    return Version(a, b, c, d, e, f, g, h, bool(gone))


def _to_archive(row: Row) -> Archive:
    a, b, c, d, spec, e = row
    return Archive(a, b, c, d, from_json(spec), e)


def _to_delta(row: Row) -> Delta:
    new, old, spec, stored_bytes = row
    return Delta(new, old, from_json(spec), stored_bytes)


def _to_pin(row: Row) -> JobPin:
    job, number, bundle, code_version, data, at, why = row
    pinned = {} if data == "{}" else {k: PinnedData(**v) for k, v in from_json(data).items()}
    return JobPin(job, number, bundle, code_version, pinned, at, why)
