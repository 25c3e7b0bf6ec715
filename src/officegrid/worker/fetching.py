"""Fetching a version the cheapest way: deltas from one that is here, else the whole.

What comes out is the raw stream of the version (see `bundles.archive`), verified. A fetch that was
cut off goes on where it was; a delta that does not fit costs one more fetch, never a wrong byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from officegrid.bundles.delta import apply_delta
from officegrid.bundles.pieces import join
from officegrid.core.errors import InputError, NotFoundError
from officegrid.wire.archives import ArchiveKind, Piece
from officegrid.wire.catalogue import FetchWay
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger

log = get_logger("fetch")

HAVE_MOST = 20
StreamOf = Callable[[Path], Path]
"""Gives the raw stream of a version that is here: a file of its own, or one made in a folder."""


@dataclass(frozen=True, slots=True)
class Fetched:
    path: Path
    kind: ArchiveKind


class Fetcher:
    """Fetches streams into `folder`, which it owns."""

    def __init__(self, link: Link, folder: Path, wanted: Callable[[], bool]) -> None:
        self._link = link
        self._folder = folder
        self._wanted = wanted

    def stream(self, digest: str, present: Mapping[str, StreamOf]) -> Fetched | None:
        """The stream of version `digest`, the caller's to move; None for a bundle that no delta
        leads to. Raises InputError, NotFoundError, UnavailableError, GaveUp."""
        way = self._way(digest, list(present)[:HAVE_MOST])
        start = None if way.start is None else present.get(way.start)
        if way.deltas and start is not None:
            try:
                return self._by_deltas(way, start)
            except (InputError, NotFoundError) as error:
                log.warning("delta_failed", archive=digest[:12], what=error.what, why=error.why)
                way = self._way(digest, [])
        if way.spec is None:
            return None
        target = self._folder / digest
        get = self._getter(digest, way.spec.pieces)
        join(way.spec.pieces, get, target, way.spec.raw_sha256)
        log.info("fetched", archive=digest[:12], bytes=way.bytes)
        return Fetched(target, way.spec.kind)

    def _way(self, digest: str, have: list[str]) -> FetchWay:
        return self._link.patiently(lambda: self._link.way(digest, have), self._wanted)

    def _getter(self, digest: str, pieces: Sequence[Piece]) -> Callable[[Piece], bytes]:
        def get(piece: Piece) -> bytes:
            return self._link.patiently(
                lambda: self._link.archive_object(digest, piece.sha256, piece.stored_bytes),
                self._wanted,
            )

        peers = self._link.peers
        return get if peers is None else peers.getter(pieces, get, self._wanted)

    def _by_deltas(self, way: FetchWay, start: StreamOf) -> Fetched:
        work = self._folder / f"{way.digest}.deltas"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            current = start(work)
            for number, step in enumerate(way.deltas):
                delta, after = work / f"{number}.delta", work / f"{number}.stream"
                get = self._getter(way.digest, step.pieces)
                join(step.pieces, get, delta, step.sha256, plain=True)
                apply_delta(current, delta, after)
                delta.unlink()
                if number:
                    current.unlink()
                current = after
            target = self._folder / way.digest
            current.replace(target)
            log.info("updated", archive=way.digest[:12], steps=len(way.deltas), bytes=way.bytes)
            return Fetched(target, "folder" if way.spec is None else way.spec.kind)
        finally:
            shutil.rmtree(work, ignore_errors=True)
