"""The container of a delta: a header, then segments one after the other. Little-endian.

    header    8 bytes  "OGDELTA" and the version, 1
              8        bytes of the old stream      32   its SHA-256
              8        bytes of the new stream      32   its SHA-256
    segment   4        bytes of the new stream that it gives
              4        bytes of its payload; 0: it is a copy of its only region
              1        number of regions
              12 each  a region of the old stream: offset (8), length (4)
              …        payload: one zstd frame, compressed with the regions, one after the other,
                       as raw prefix

Nothing follows the last segment. What is read is checked before memory is taken for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from officegrid.core.errors import InputError

MAGIC = b"OGDELTA\x01"
MIB = 1024 * 1024
MAX_SEGMENT_BYTES = 16 * MIB
MAX_PREFIX_BYTES = 24 * MIB
MAX_REGIONS = 16
WINDOW_LOG_MAX = 26  # 64 MiB: the largest prefix and segment together
_HEADER = struct.Struct("<8sQ32sQ32s")
_SEGMENT = struct.Struct("<IIB")
_REGION = struct.Struct("<QI")


@dataclass(frozen=True, slots=True)
class Header:
    """Which stream a delta starts from and which one comes out."""

    old_bytes: int
    old_sha256: str
    new_bytes: int
    new_sha256: str

    def write(self, file: BinaryIO) -> None:
        old, new = bytes.fromhex(self.old_sha256), bytes.fromhex(self.new_sha256)
        file.write(_HEADER.pack(MAGIC, self.old_bytes, old, self.new_bytes, new))

    @classmethod
    def read(cls, file: BinaryIO) -> Header:
        """Raises InputError when it is none."""
        magic, old_bytes, old, new_bytes, new = _HEADER.unpack(_exactly(file, _HEADER.size))
        if magic[:7] != MAGIC[:7]:
            raise damaged("It does not begin as deltas do.")
        if magic != MAGIC:
            raise damaged(f"It is of version {magic[7]} of the format; this program reads 1.")
        return cls(old_bytes, old.hex(), new_bytes, new.hex())


@dataclass(frozen=True, slots=True)
class Segment:
    """The next `new_bytes` of the new stream. `payload` None: they are the bytes of the region."""

    new_bytes: int
    regions: tuple[tuple[int, int], ...]
    payload: bytes | None

    @property
    def prefix_bytes(self) -> int:
        return sum(length for _, length in self.regions)

    def write(self, file: BinaryIO) -> None:
        payload = self.payload or b""
        file.write(_SEGMENT.pack(self.new_bytes, len(payload), len(self.regions)))
        for region in self.regions:
            file.write(_REGION.pack(*region))
        file.write(payload)

    @classmethod
    def read(cls, file: BinaryIO, old_bytes: int, left_bytes: int) -> Segment:
        """Raises InputError when it cannot be a segment of a delta from a stream of `old_bytes`
        to one of which `left_bytes` are still to come."""
        new_bytes, payload_bytes, count = _SEGMENT.unpack(_exactly(file, _SEGMENT.size))
        if not 0 < new_bytes <= min(MAX_SEGMENT_BYTES, left_bytes):
            raise damaged("Its segments do not add up to the new version.")
        if count > MAX_REGIONS:
            raise damaged("A segment has too many regions.")
        regions = tuple(_REGION.unpack(_exactly(file, _REGION.size)) for _ in range(count))
        if any(offset + length > old_bytes for offset, length in regions):
            raise damaged("A region is outside of the old version.")
        prefix_bytes = sum(length for _, length in regions)
        if prefix_bytes > MAX_PREFIX_BYTES:
            raise damaged("The regions of a segment are too large.")
        if payload_bytes == 0 and (count != 1 or prefix_bytes != new_bytes):
            raise damaged("A copied region has not the length of its segment.")
        # No zstd frame is longer than what it holds by more than this.
        if payload_bytes > new_bytes + new_bytes // 128 + 1024:
            raise damaged("A payload is longer than what it holds.")
        return cls(new_bytes, regions, _exactly(file, payload_bytes) if payload_bytes else None)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise damaged("It is truncated.")
    return data


def damaged(why: str) -> InputError:
    return InputError(
        "The delta is damaged.", why, "The version is fetched as a whole, without a delta."
    )
