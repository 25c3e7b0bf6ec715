"""Deltas: what makes the stream of one version from the stream of another.

Made once on the coordinator, applied on each worker. Both sides hold a few segments in memory and
never a whole stream, so data sets of many gigabytes need no more than small ones. The format is
in `delta_format`, the search for what resembles what in `matching`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from backports import zstd

from officegrid.bundles.archive import sha256_of
from officegrid.bundles.delta_format import (
    MAX_SEGMENT_BYTES,
    WINDOW_LOG_MAX,
    Header,
    Segment,
    damaged,
)
from officegrid.bundles.durable import placing
from officegrid.bundles.matching import Matcher, Region
from officegrid.core.errors import InputError, LimitError
from officegrid.wire.archives import ArchiveSpec, DeltaSpec, Piece

MIB = 1024 * 1024
SEGMENT_BYTES = 8 * MIB
ZSTD_LEVEL = 6
DEFAULT_MAX_BYTES = 64 * 1024 * MIB
_OPTION = zstd.CompressionParameter


@dataclass(frozen=True, slots=True)
class Delta:
    """Facts about a delta that was made.

    `stored_bytes` and `sha256` are those of the delta itself; `memory_bytes` is about what
    applying it takes beside the program.
    """

    header: Header
    stored_bytes: int
    sha256: str
    segments: int
    copied_segments: int
    memory_bytes: int

    def spec(self, old: ArchiveSpec, new: ArchiveSpec, pieces: Iterable[Piece]) -> DeltaSpec:
        """The message about this delta, cut plain into `pieces`. Raises ValueError when it is not
        between these archives or not all of the pieces are there."""
        header = self.header
        if (header.old_sha256, header.new_sha256) != (old.raw_sha256, new.raw_sha256):
            raise ValueError("the delta is between other archives")
        return DeltaSpec(
            old=old.digest,
            new=new.digest,
            sha256=self.sha256,
            stored_bytes=self.stored_bytes,
            pieces=list(pieces),
            memory_bytes=self.memory_bytes,
        )

    def share_of(self, full_bytes: int) -> float:
        """Its bytes as a part of a full download of `full_bytes`; from 1 on it is worth nothing."""
        return self.stored_bytes / full_bytes if full_bytes else float("inf")


def make_delta(
    old_path: Path,
    new_path: Path,
    out_path: Path,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    level: int = ZSTD_LEVEL,
    max_bytes: int | None = None,
) -> Delta:
    """Write to `out_path`, whole or not at all, what makes the new stream from the old one.

    Raises InputError when a stream cannot be read or changes meanwhile, LimitError as soon as
    the delta has more than `max_bytes` (such as a full download has: then it is not worth making),
    UnavailableError when `out_path` cannot be written.
    """
    if not 0 < segment_bytes <= MAX_SEGMENT_BYTES:
        raise ValueError(f"segment_bytes must be 1 to {MAX_SEGMENT_BYTES}")
    with ExitStack() as files:
        old, new = (files.enter_context(_opened(path)) for path in (old_path, new_path))
        old_sha256 = hashlib.file_digest(old, "sha256").hexdigest()
        old_bytes = old.tell()
        new_bytes = new_path.stat().st_size
        matcher = Matcher(old, old_bytes, new_bytes, segment_bytes)
        digest, made, segments, copied, memory = hashlib.sha256(), 0, 0, 0, 0
        with placing(out_path) as temporary, temporary.open("xb") as out:
            Header(old_bytes, old_sha256, new_bytes, "0" * 64).write(out)
            while raw := new.read(segment_bytes):
                segment = _segment(old, matcher, made, raw, level)
                segment.write(out)
                digest.update(raw)
                made += len(raw)
                segments += 1
                copied += segment.payload is None
                memory = max(memory, _memory_bytes(segment))
                if max_bytes is not None and out.tell() > max_bytes:
                    raise _not_worth_it(max_bytes)
            if made != new_bytes:
                raise _unreadable(new_path, "it changed while it was being read")
            out.seek(0)
            header = Header(old_bytes, old_sha256, new_bytes, digest.hexdigest())
            header.write(out)
    size = out_path.stat().st_size
    return Delta(header, size, sha256_of(out_path), segments, copied, memory)


def apply_delta(
    old_path: Path,
    delta_path: Path,
    out_path: Path,
    *,
    new_sha256: str | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Header:
    """Write to `out_path`, whole or not at all, the stream that the delta makes from the old one.

    `new_sha256`: the stream that is wanted; a delta to another one is refused at once. What comes
    out is verified before it gets its name. Raises InputError for a damaged delta and for one
    that starts from another version, LimitError when the new stream has more than `max_bytes`,
    UnavailableError when `out_path` cannot be written. Nothing is left behind then.
    """
    with ExitStack() as files:
        old, delta = (files.enter_context(_opened(path)) for path in (old_path, delta_path))
        header = Header.read(delta)
        old_bytes = old_path.stat().st_size
        if old_bytes != header.old_bytes:
            raise _wrong_version(header, f"has {old_bytes} bytes, not {header.old_bytes}")
        if new_sha256 not in (None, header.new_sha256):
            raise damaged("It leads to another version than the one that is wanted.")
        if header.new_bytes > max_bytes:
            raise LimitError(
                "The new version is too large.",
                f"It has {header.new_bytes / MIB:.1f} MB; the limit is {max_bytes / MIB:.1f} MB.",
                "Push less, or raise the limit.",
            )
        with placing(out_path) as temporary, temporary.open("xb") as out:
            try:
                _rebuild(old, delta, out, header)
            except InputError as error:
                # Only now, so that a good delta does not cost one more reading of the old stream.
                if sha256_of(old_path) != header.old_sha256:
                    raise _wrong_version(header, "has other contents") from error
                raise
    return header


def _segment(old: BinaryIO, matcher: Matcher, start: int, raw: bytes, level: int) -> Segment:
    same = matcher.same_at(start, raw)
    if same is not None:
        return Segment(len(raw), ((same, len(raw)),), None)
    regions = matcher.regions(start, raw)
    prefix = _prefix(old, regions)
    window_log = (len(prefix) + len(raw)).bit_length()
    options: dict[int, int] = {
        _OPTION.compression_level: level,
        # The whole prefix must stay in reach to the end of the segment.
        _OPTION.window_log: min(max(window_log, 10), WINDOW_LOG_MAX),
        _OPTION.enable_long_distance_matching: 1,
    }
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=_as_prefix(prefix))
    payload = compressor.compress(raw, zstd.ZstdCompressor.FLUSH_FRAME)
    return Segment(len(raw), tuple(regions), payload)


def _rebuild(old: BinaryIO, delta: BinaryIO, out: BinaryIO, header: Header) -> None:
    digest, left_bytes = hashlib.sha256(), header.new_bytes
    while left_bytes:
        segment = Segment.read(delta, header.old_bytes, left_bytes)
        raw = _inflated(segment, _prefix(old, segment.regions))
        out.write(raw)
        digest.update(raw)
        left_bytes -= len(raw)
    if delta.read(1):
        raise damaged("Something follows its last segment.")
    if digest.hexdigest() != header.new_sha256:
        raise damaged("What it gives is not the new version.")


def _inflated(segment: Segment, prefix: bytes) -> bytes:
    if segment.payload is None:
        raw = prefix
    else:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
        inflater = zstd.ZstdDecompressor(zstd_dict=_as_prefix(prefix), options=options)
        try:
            # One byte more than announced is enough to know that it lies.
            raw = inflater.decompress(segment.payload, segment.new_bytes + 1)
        except zstd.ZstdError as error:
            raise damaged(f"A segment cannot be decompressed: {error}.") from None
        if len(raw) == segment.new_bytes and (not inflater.eof or inflater.unused_data):
            raise damaged("A segment holds more than was announced.")
    if len(raw) != segment.new_bytes:
        raise damaged("A segment does not hold as many bytes as were announced.")
    return raw


def _prefix(old: BinaryIO, regions: tuple[Region, ...] | list[Region]) -> bytes:
    parts = []
    for offset, length in regions:
        old.seek(offset)
        parts.append(old.read(length))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _as_prefix(prefix: bytes) -> tuple[zstd.ZstdDict, int] | None:
    """None for a prefix that is too short to be one for zstd (8 bytes), here as there."""
    return zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None


def _memory_bytes(segment: Segment) -> int:
    """The prefix read, joined and held by zstd; the window, what comes out and its parts."""
    return 3 * segment.prefix_bytes + 3 * segment.new_bytes + len(segment.payload or b"")


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} cannot be read.", f"The reason: {why}.", "The version is fetched as a whole."
    )


def _wrong_version(header: Header, why: str) -> InputError:
    return InputError(
        "The delta starts from another version than the one that is here.",
        f"It was made for {header.old_sha256[:12]}…; what is here {why}.",
        "The version is fetched as a whole, without a delta.",
    )


def _not_worth_it(max_bytes: int) -> LimitError:
    return LimitError(
        "A delta between these versions is not worth it.",
        f"It has more than {max_bytes / MIB:.1f} MB.",
        "Workers fetch the new version as a whole.",
    )
