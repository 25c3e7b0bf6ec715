"""The records a job set aside, page by page."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from officegrid.transport.http import Connection
from officegrid.wire.jobs import QuarantinePage, QuarantineRow


def quarantined(connection: Connection, job_id: str) -> Iterator[QuarantineRow]:
    """All quarantined records, by record number."""
    at: int | None = 0
    while at is not None:
        page = connection.call(
            "GET",
            f"/v1/jobs/{job_id}/quarantine",
            params={"from_record": at},
            reply=QuarantinePage,
        )
        yield from page.rows
        at = page.next_record


def plain(row: QuarantineRow) -> dict[str, object]:
    """For JSON: `raw` as text where it is UTF-8, else `raw_base64`."""
    raw = base64.b64decode(row.raw_base64)
    found = row.model_dump(exclude={"raw_base64"})
    try:
        found["raw"] = raw.decode()
    except UnicodeDecodeError:
        found["raw_base64"] = row.raw_base64
    return found


def save_quarantine(connection: Connection, job_id: str, path: Path) -> int:
    """Write all of them as NDJSON; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in quarantined(connection, job_id):
            file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
            count += 1
    return count
