"""Archives: any version of anything as one deterministic raw byte stream in a file.

The stream of a folder is the tar that `pack` makes, uncompressed; the stream of a file is its own
bytes. Unpacked and packed again with `everything`, a folder gives the same stream, byte for byte,
so a worker need not keep the stream to apply a delta to it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, cast

from officegrid.bundles.durable import placing
from officegrid.bundles.ignore_file import LeftOut
from officegrid.bundles.pack import packed_count, scan_folder, write_tar
from officegrid.bundles.untar import MIB, Words, already_there, unpack_stream
from officegrid.core.errors import InputError, LimitError
from officegrid.wire.archives import ArchiveKind, ArchiveSpec, Piece

GIB = 1024 * MIB
DEFAULT_MAX_BYTES = 64 * GIB
_STEP_BYTES = MIB
_WORDS = Words(
    "archive",
    "It is fetched again; if that does not help, push the version again.",
    "Push less: leave out what the program does not need.",
)


@dataclass(frozen=True, slots=True)
class Archive:
    """Facts about a stream. `files` counts files and links, `content_bytes` what is in them."""

    kind: ArchiveKind
    raw_bytes: int
    raw_sha256: str
    files: int
    content_bytes: int
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def spec(self, pieces: Iterable[Piece]) -> ArchiveSpec:
        """The message about this stream cut into `pieces`. Raises ValueError if they are not."""
        return ArchiveSpec(
            kind=self.kind,
            raw_bytes=self.raw_bytes,
            raw_sha256=self.raw_sha256,
            files=self.files,
            pieces=list(pieces),
        )


def make_archive(
    source: Path,
    out_path: Path,
    *,
    exclude: Iterable[Path] = (),
    everything: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    what: str = "folder",
) -> Archive:
    """Write the stream of the file or folder `source` to `out_path`, whole or not at all.

    `everything`: no rule leaves anything out (for a folder that an archive was unpacked to);
    else rules, `exclude`, `max_bytes` and errors are those of `pack.pack_folder`, `what` being
    what errors call the folder. UnavailableError when `out_path` cannot be written.
    """
    if source.is_file():
        return _archive_file(source, out_path, max_bytes)
    if not source.exists():
        raise InputError(
            f"The {what} {source} does not exist.",
            "A version is made of one file or one folder.",
            "Check the path.",
        )
    left_out = LeftOut()
    entries = scan_folder(
        source, exclude=exclude, max_bytes=max_bytes, everything=everything, what=what,
        left_out=left_out,
    )  # fmt: skip
    with placing(out_path) as temporary, temporary.open("xb") as file:
        stream = _Hashing(file)
        write_tar(entries, cast("IO[bytes]", stream))
    content_bytes = sum(entry.size for entry in entries)
    count = packed_count(entries)
    return Archive("folder", stream.bytes, stream.sha256, count, content_bytes, left_out)


def extract_archive(
    stream: Path,
    kind: ArchiveKind,
    target: Path,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_entries: int = 1_000_000,
) -> None:
    """Turn a stream back into the new file or folder `target`, whole or not at all.

    Errors are those of `untar.unpack_stream`. A file is a copy of the stream: whoever needs the
    stream no longer may rename it instead.
    """
    if kind == "folder":
        unpack_stream(
            lambda: stream.open("rb"),
            target,
            max_bytes=max_bytes,
            max_entries=max_entries,
            words=_WORDS,
        )
        return
    if target.exists():
        raise already_there(target, _WORDS)
    with placing(target) as temporary:
        if stream.stat().st_size > max_bytes:
            raise _too_large(stream, stream.stat().st_size, max_bytes)
        shutil.copyfile(stream, temporary)


def sha256_of(path: Path) -> str:
    """Of the bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashing:
    """A file that is only written to, its digest and its length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _archive_file(source: Path, out_path: Path, max_bytes: int) -> Archive:
    try:
        opened = source.open("rb")
    except OSError as error:
        raise InputError(
            f"{source} cannot be read.",
            f"The system says: {error.strerror or error}.",
            "Check its permissions.",
        ) from None
    with opened as file:
        before = os.fstat(file.fileno())
        if before.st_size > max_bytes:
            raise _too_large(source, before.st_size, max_bytes)
        with placing(out_path) as temporary:
            with temporary.open("xb") as out:
                stream = _Hashing(out)
                shutil.copyfileobj(file, cast("IO[bytes]", stream), _STEP_BYTES)
            after = os.fstat(file.fileno())
            # A file that somebody writes to meanwhile may never have had these contents.
            state = (before.st_size, before.st_mtime_ns)
            if state != (after.st_size, after.st_mtime_ns) or stream.bytes != before.st_size:
                raise InputError(
                    f"{source} changed while it was being read.",
                    "A version must be one consistent state of the file.",
                    "Stop what writes it, or copy it first, and try again.",
                )
    return Archive("file", stream.bytes, stream.sha256, 1, stream.bytes)


def _too_large(path: Path, size: int, max_bytes: int) -> LimitError:
    return LimitError(
        f"{path} is too large: {size / MIB:.1f} MB; the limit is {max_bytes / MIB:.1f} MB.",
        "Every worker that needs it would have to hold it.",
        "Make it smaller, or split it.",
    )
