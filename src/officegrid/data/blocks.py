"""Blocks: whole records in one zstd frame, named by the SHA-256 of the compressed bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from backports import zstd

from officegrid.core.errors import InputError
from officegrid.wire.data import BlockSlice

BLOCK_BYTES = 1024 * 1024
BLOCK_LEVEL = 1


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """A block ready for the store: `payload` is what is stored under `slice.sha256`."""

    slice: BlockSlice
    payload: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records of a block sequence: where a record set aside would go."""

    block: int
    offset: int  # raw bytes before it inside that block
    rows: int  # records before it inside that block


def pack_block(
    data: bytes, records: int, columns: Sequence[str] | None = None, level: int = BLOCK_LEVEL
) -> PackedBlock:
    """Compress `data` (`records` whole records). Same arguments, same bytes."""
    payload = zstd.compress(data, level)
    return PackedBlock(
        BlockSlice(
            sha256=hashlib.sha256(payload).hexdigest(),
            stored_bytes=len(payload),
            raw_bytes=len(data),
            length=len(data),
            records=records,
            columns=None if columns is None else list(columns),
        ),
        payload,
    )


def unpack_block(payload: bytes, slice: BlockSlice) -> bytes:
    """The `slice.length` raw bytes at `slice.offset` of the block.

    Raises InputError if the payload is not the block that the slice names: wrong size, wrong
    SHA-256, or not exactly one frame of `slice.raw_bytes` bytes. Never inflates beyond that.
    """
    if len(payload) != slice.stored_bytes:
        raise _broken(slice, f"It has {len(payload)} bytes instead of {slice.stored_bytes}.")
    if hashlib.sha256(payload).hexdigest() != slice.sha256:
        raise _broken(slice, "Its SHA-256 does not match its name.")
    if slice.offset + slice.length > slice.raw_bytes:
        raise _broken(
            slice,
            f"Bytes {slice.offset} to {slice.offset + slice.length} are asked for, "
            f"but it holds {slice.raw_bytes}.",
        )
    inflater = zstd.ZstdDecompressor()
    try:
        data = inflater.decompress(payload, slice.raw_bytes + 1)
    except (zstd.ZstdError, EOFError) as error:
        raise _broken(slice, f"It cannot be decompressed: {error}.") from None
    if len(data) != slice.raw_bytes or not inflater.eof or inflater.unused_data:
        raise _broken(slice, f"It does not decompress to exactly {slice.raw_bytes} bytes.")
    if slice.length == slice.raw_bytes:
        return data
    return data[slice.offset : slice.offset + slice.length]


def _broken(slice: BlockSlice, why: str) -> InputError:
    return InputError(
        f"Block {slice.sha256[:12]} is damaged.",
        why,
        "Fetch it again; if that does not help, submit the dataset again.",
    )


class BlockWriter:
    """Gathers pieces of whole records into blocks of about `block_bytes` raw bytes.

    A piece is never cut, and a change of columns begins a new block.
    """

    def __init__(self, block_bytes: int = BLOCK_BYTES, level: int = BLOCK_LEVEL) -> None:
        self._block_bytes = block_bytes
        self._level = level
        self._pieces: list[bytes] = []
        self._columns: list[str] | None = None
        self._size = 0
        self._rows = 0
        self.blocks = 0
        self.records = 0

    @property
    def position(self) -> Position:
        """Where the next piece would begin if its columns are those of the last one."""
        return Position(self.blocks, self._size, self._rows)

    def append(
        self, data: bytes, rows: int, columns: Sequence[str] | None = None
    ) -> list[PackedBlock]:
        """Add `rows` whole records; returns the blocks that are full now (none, one or two)."""
        full: list[PackedBlock] = []
        if not data:
            return full
        names = None if columns is None else list(columns)
        if self._pieces and (
            names != self._columns or self._size + len(data) > 2 * self._block_bytes
        ):
            full.append(self._flush())
        self._columns = names
        self._pieces.append(data)
        self._size += len(data)
        self._rows += rows
        self.records += rows
        if self._size >= self._block_bytes:
            full.append(self._flush())
        return full

    def finish(self) -> list[PackedBlock]:
        """The last block, if there is one."""
        return [self._flush()] if self._pieces else []

    def _flush(self) -> PackedBlock:
        block = pack_block(b"".join(self._pieces), self._rows, self._columns, self._level)
        self._pieces = []
        self._size = self._rows = 0
        self.blocks += 1
        return block
