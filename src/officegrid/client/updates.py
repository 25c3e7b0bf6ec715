"""Pushing a release of officegrid that workers update themselves to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from officegrid.bundles.wheel import inspect_wheel, installed_wheel
from officegrid.core.errors import InputError, LimitError
from officegrid.transport.http import Connection
from officegrid.wire.jobs import MissingReply, MissingRequest
from officegrid.wire.updates import MAX_WHEEL_BYTES, ReleasePush, UpdateList


def push(connection: Connection, wheel: Path | None) -> UpdateList:
    """Push a wheel, or what is installed here. Raises InputError for a file that is no release,
    ConflictError when the coordinator does not take that version."""
    payload = installed_wheel() if wheel is None else _read(wheel)
    inspect_wheel(payload)  # before anything is sent
    digest = hashlib.sha256(payload).hexdigest()
    asked = MissingRequest(digests=[digest])
    reply = connection.call("POST", "/v1/objects/missing", body=asked, reply=MissingReply)
    if reply.missing:
        connection.upload(f"/v1/objects/{digest}", payload)
    return connection.call(
        "POST", "/v1/updates", body=ReleasePush(digest=digest), reply=UpdateList
    )  # fmt: skip


def _read(wheel: Path) -> bytes:
    try:
        if wheel.stat().st_size > MAX_WHEEL_BYTES:
            raise LimitError(f"{wheel} is larger than {MAX_WHEEL_BYTES // 1024**2} MB.")
        return wheel.read_bytes()
    except OSError as error:
        raise InputError(
            f"{wheel} cannot be read.", error.strerror or str(error), "Name a wheel of officegrid."
        ) from None
