"""Follow a job by server-sent events; a broken stream is taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pydantic import ValidationError

from officegrid.core.errors import UnavailableError
from officegrid.core.jobs import ENDED
from officegrid.transport.http import Connection
from officegrid.wire.jobs import JobView

PATIENCE_S = 300.0  # how long a coordinator may be away before watching is given up


def follow(connection: Connection, job_id: str) -> Iterator[JobView]:
    """The job whenever it changes, the last time when it has ended. A coordinator that restarts
    is waited for. Raises UnavailableError when it stays away."""
    away_since: float | None = None
    while True:
        try:
            for line in connection.stream_lines(f"/v1/jobs/{job_id}/events"):
                if not line.startswith(b"data: "):
                    continue
                away_since = None
                view = _view(line)
                if view is None:
                    continue
                yield view
                if view.state in ENDED:
                    return
        except UnavailableError:
            now = time.monotonic()
            away_since = away_since or now
            if now - away_since > PATIENCE_S:
                raise
        time.sleep(0.5)


def _view(line: bytes) -> JobView | None:
    try:
        return JobView.model_validate_json(line.removeprefix(b"data: "))
    except ValidationError:  # half a line of a stream that broke off
        return None
