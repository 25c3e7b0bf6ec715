"""Push reference data: one file or folder as the newest version of a name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from officegrid.bundles.archive import Archive, make_archive
from officegrid.bundles.pieces import CutPiece, cut
from officegrid.client.catalogue import versions, versions_path
from officegrid.client.leftout import OnLeftOut, silent
from officegrid.core.errors import InputError, NotFoundError
from officegrid.transport.http import Connection
from officegrid.wire.archives import ArchiveSpec, Piece
from officegrid.wire.catalogue import DataPush, VersionView
from officegrid.wire.jobs import MissingReply, MissingRequest

GROUP_PIECES = 4
PUSH_TIMEOUT_S = 3600.0
"""The coordinator answers when it has made the delta from the version before."""


@dataclass
class DataProgress:
    """How far a push is: `bytes_read` of `bytes_total`, and what of it had to travel."""

    bytes_total: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    done: bool = False


OnProgress = Callable[[DataProgress], None]


def _silent(_: DataProgress) -> None:
    return


def push(
    connection: Connection, name: str, path: Path, on_progress: OnProgress = _silent,
    on_left_out: OnLeftOut = silent,
) -> VersionView:  # fmt: skip
    """Upload what the coordinator lacks of the file or folder, and make it the newest version.

    Content that is the newest already is not sent, but for what the coordinator has lost of it.
    Raises InputError for a path that is not there, or changes meanwhile."""
    if not path.exists():
        raise InputError(
            f"{path} does not exist.", fix="Correct the path; relative ones start here."
        )
    with tempfile.TemporaryDirectory(prefix="officegrid-push-") as folder:
        stream = Path(folder) / "stream"
        made = make_archive(path, stream, what="data folder")
        on_left_out(f"data {name}", made.left_out)
        newest = _newest(connection, name)
        progress = DataProgress(bytes_total=made.raw_bytes)
        plain = ArchiveSpec.model_construct(kind=made.kind, raw_sha256=made.raw_sha256)
        if newest is not None and newest.digest == plain.digest and not newest.lost:
            progress.done = True
            on_progress(progress)
            return newest.model_copy(update={"new": False})
        spec = _upload(connection, stream, made, progress, on_progress)
    request = DataPush(
        spec=spec, origin=f"{made.kind} {path.resolve().name}",
        file_name=path.resolve().name if made.kind == "file" else "",
    )  # fmt: skip
    view = connection.call(
        "POST", versions_path("data", name), body=request, reply=VersionView,
        timeout_s=PUSH_TIMEOUT_S,
    )  # fmt: skip
    progress.done = True
    on_progress(progress)
    return view


def _newest(connection: Connection, name: str) -> VersionView | None:
    try:
        return next((one for one in versions(connection, "data", name) if one.newest), None)
    except NotFoundError:
        return None


def _upload(
    connection: Connection, stream: Path, made: Archive, progress: DataProgress,
    on_progress: OnProgress,
) -> ArchiveSpec:  # fmt: skip
    pieces: list[Piece] = []
    for group in _groups(cut(stream)):
        request = MissingRequest(digests=[one.piece.sha256 for one in group])
        reply = connection.call("POST", "/v1/objects/missing", body=request, reply=MissingReply)
        absent = set(reply.missing)
        for one in group:
            if one.piece.sha256 in absent:
                connection.upload(f"/v1/objects/{one.piece.sha256}", one.payload, timeout_s=120)
                absent.discard(one.piece.sha256)
                progress.bytes_sent += len(one.payload)
            progress.bytes_read += one.piece.raw_bytes
            pieces.append(one.piece)
            on_progress(progress)
    return ArchiveSpec(
        kind=made.kind, raw_bytes=made.raw_bytes, raw_sha256=made.raw_sha256, files=made.files,
        pieces=pieces,
    )  # fmt: skip


def _groups(pieces: Iterator[CutPiece]) -> Iterator[list[CutPiece]]:
    group: list[CutPiece] = []
    for piece in pieces:
        group.append(piece)
        if len(group) == GROUP_PIECES:
            yield group
            group = []
    if group:
        yield group
