"""Messages about archives: how a version of a program or of reference data is stored and fetched.

A version is one raw byte stream (see `officegrid.bundles.archive`). In the store it is a row of
pieces; and beside it there may be deltas, which make it from the stream of another version.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, model_validator

from officegrid.wire.data import Message, Sha256

ArchiveKind = Literal["file", "folder"]
"""file: the stream is the file's bytes. folder: it is a deterministic tar."""
MAX_PIECE_BYTES = 64 * 1024 * 1024


class Piece(Message):
    """An object in the store that holds the next `raw_bytes` bytes of a stream."""

    sha256: Sha256 = Field(description="of the object, which is what travels")
    stored_bytes: int = Field(ge=1, le=2 * MAX_PIECE_BYTES)
    raw_bytes: int = Field(ge=1, le=MAX_PIECE_BYTES)


class ArchiveSpec(Message):
    """One version, without its name: the same contents under two names are one archive."""

    kind: ArchiveKind
    raw_bytes: int = Field(ge=0, le=2**44)
    raw_sha256: Sha256
    files: int = Field(ge=0, description="files and links; 1 for a file")
    pieces: list[Piece] = Field(
        max_length=262_144, description="each one zstd frame, in the order of the stream"
    )

    @model_validator(mode="after")
    def _pieces_add_up(self) -> ArchiveSpec:
        if sum(piece.raw_bytes for piece in self.pieces) != self.raw_bytes:
            raise ValueError("the pieces do not add up to raw_bytes")
        return self

    @property
    def digest(self) -> str:
        """Names this version. It depends on contents only, not on how they were compressed."""
        plain = {"kind": self.kind, "raw_sha256": self.raw_sha256}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def stored_bytes(self) -> int:
        """What a full download takes."""
        return sum(piece.stored_bytes for piece in self.pieces)


class DeltaSpec(Message):
    """What makes archive `new` from archive `old`: see `officegrid.bundles.delta`."""

    old: Sha256 = Field(description="digest of the archive to start from")
    new: Sha256 = Field(description="digest of the archive that comes out")
    sha256: Sha256 = Field(description="of the whole delta")
    stored_bytes: int = Field(ge=1, description="of the whole delta: what travels")
    pieces: list[Piece] = Field(
        min_length=1, max_length=262_144, description="the delta cut into objects, stored as it is"
    )
    memory_bytes: int = Field(ge=0, description="what applying it takes beside the program itself")

    @model_validator(mode="after")
    def _pieces_add_up(self) -> DeltaSpec:
        for piece in self.pieces:
            if piece.raw_bytes != piece.stored_bytes:
                raise ValueError("the pieces of a delta are not compressed again")
        if sum(piece.stored_bytes for piece in self.pieces) != self.stored_bytes:
            raise ValueError("the pieces do not add up to stored_bytes")
        return self
