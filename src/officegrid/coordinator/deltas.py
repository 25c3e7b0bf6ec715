"""Deltas between versions: made once when a version is pushed, then served as they are.

The streams of both versions are put together in a folder beside the objects, which goes away
afterwards. A delta is a courtesy: where it cannot be made, workers fetch the version whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from backports import zstd

from officegrid.bundles.delta import apply_delta, make_delta
from officegrid.bundles.pieces import cut, join
from officegrid.coordinator.aside import Threads
from officegrid.coordinator.log import get_logger
from officegrid.coordinator.objects import ObjectStore
from officegrid.core.errors import LimitError, NotFoundError, OfficeGridError, UnavailableError
from officegrid.storage.api import Archive, Delta
from officegrid.wire.archives import ArchiveSpec, DeltaSpec, Piece

log = get_logger("deltas")

WORTH_SHARE = 0.9  # of a full download; a larger delta saves too little
BUNDLE_MOST_BYTES = 1536 * 1024 * 1024
BUNDLE = "bundle"
RESERVE_BYTES = 1024 * 1024 * 1024
RESERVE_SHARE = 0.05  # of the disk
_STEP_BYTES = 1024 * 1024


class DeltaMaker:
    """One delta at a time: each takes a core and the space of three streams."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self.turn = Threads("delta", 1)
        """For `make`: who waits for a turn takes no thread from requests."""
        self.inflating = Threads("inflate", 2)
        """For `bundle_archive`, which must not wait for a delta."""

    def make(self, old: Archive, new: Archive) -> Delta | None:
        """What leads from `old` to `new`, stored durably; None when it is not worth it or cannot
        be made, which is logged. Run it in `turn`: it may take minutes."""
        try:
            self._check_room(old, new)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".delta-") as tmp:
                return self._make(old, new, Path(tmp))
        except LimitError:
            return None
        except (OSError, OfficeGridError, zstd.ZstdError) as error:
            log.warning("no_delta", old=old.digest[:12], new=new.digest[:12], why=str(error))
            return None

    def _check_room(self, old: Archive, new: Archive) -> None:
        """Raises UnavailableError unless the disk holds what is going to be written, and more. A
        few stored bytes can be a stream of any length."""
        needed = old.raw_bytes + 2 * new.raw_bytes + new.stored_bytes
        disk = shutil.disk_usage(self._folder)
        reserve = max(RESERVE_BYTES, int(RESERVE_SHARE * disk.total))
        if disk.free - reserve < needed:
            raise UnavailableError(
                "The coordinator's disk has no room to make a delta.",
                f"It takes {needed:,} bytes; {disk.free:,} are free, of which {reserve:,} stay so.",
            )

    def _make(self, old: Archive, new: Archive, folder: Path) -> Delta:
        for archive, name in ((old, "old"), (new, "new")):
            self._put_together(archive, folder / name)
        most_bytes = int(WORTH_SHARE * new.stored_bytes)
        made = make_delta(
            folder / "old", folder / "new", folder / "delta", max_bytes=max(1, most_bytes)
        )
        # What all workers are going to rely on is tried once, here.
        apply_delta(
            folder / "old", folder / "delta", folder / "tried", new_sha256=made.header.new_sha256
        )
        pieces = []
        for one in cut(folder / "delta", plain=True):
            self._store.put(one.piece.sha256, [one.payload], max_bytes=len(one.payload))
            pieces.append(one.piece)
        spec = DeltaSpec(
            old=old.digest, new=new.digest, sha256=made.sha256, stored_bytes=made.stored_bytes,
            pieces=pieces, memory_bytes=made.memory_bytes,
        )  # fmt: skip
        return Delta(new.digest, old.digest, spec.model_dump(mode="json"), made.stored_bytes)

    def _put_together(self, archive: Archive, path: Path) -> None:
        if archive.kind == BUNDLE:
            with path.open("xb") as out:
                for block in self._inflated(archive.digest):
                    out.write(block)
            return
        spec = ArchiveSpec.model_validate(archive.spec)
        join(spec.pieces, self._payload, path, spec.raw_sha256)

    def _payload(self, piece: Piece) -> bytes:
        with self._store.open(piece.sha256) as file:
            return file.read()

    def _inflated(self, bundle: str) -> Iterator[bytes]:
        """Raises LimitError beyond what any worker would unpack."""
        left_bytes = BUNDLE_MOST_BYTES
        with self._store.open(bundle) as file, zstd.ZstdFile(file, "rb") as plain:
            while block := plain.read(_STEP_BYTES):
                left_bytes -= len(block)
                if left_bytes < 0:
                    raise LimitError("The bundle is too large to unpack.")
                yield block

    def bundle_archive(self, bundle: str, now: float) -> Archive:
        """The facts of a bundle in the store, as an archive. Raises NotFoundError."""
        size = self._store.size(bundle)
        if size is None:
            raise NotFoundError(f"There is no bundle {bundle[:12]}… in the store.")
        try:
            raw_bytes = sum(len(block) for block in self._inflated(bundle))
        except (zstd.ZstdError, EOFError, LimitError):
            raw_bytes = 0  # a worker will say what is wrong with it
        return Archive(bundle, BUNDLE, raw_bytes, size, {}, now)
