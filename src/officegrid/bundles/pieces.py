"""Streams as rows of pieces: objects of a bounded size, each verified by itself.

A raw stream is cut every so many bytes and each piece is one zstd frame. A delta, which is
compressed already, is cut in the same way and its pieces stay as they are ("plain").
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from backports import zstd

from officegrid.bundles.durable import cannot_write, sync_folder
from officegrid.core.errors import InputError, OfficeGridError
from officegrid.wire.archives import Piece

PIECE_BYTES = 8 * 1024 * 1024
ZSTD_LEVEL = 6
_WINDOW_LOG_MAX = 27  # 128 MiB: more than the largest piece can use


@dataclass(frozen=True, slots=True)
class CutPiece:
    """A piece and its payload, of which the SHA-256 is the piece's name."""

    piece: Piece
    payload: bytes


def cut(
    path: Path, *, piece_bytes: int = PIECE_BYTES, level: int = ZSTD_LEVEL, plain: bool = False
) -> Iterator[CutPiece]:
    """The pieces of a file, in order, made as they are asked for. Raises OSError.

    The same bytes, size and level give the same pieces with one version of zstd.
    """
    with path.open("rb") as file:
        while raw := file.read(piece_bytes):
            payload = raw if plain else zstd.compress(raw, level)
            digest = hashlib.sha256(payload).hexdigest()
            piece = Piece(sha256=digest, stored_bytes=len(payload), raw_bytes=len(raw))
            yield CutPiece(piece, payload)


def open_piece(piece: Piece, payload: bytes, *, plain: bool = False) -> bytes:
    """The raw bytes of a piece. Raises InputError unless `payload` is exactly that piece."""
    if len(payload) != piece.stored_bytes or hashlib.sha256(payload).hexdigest() != piece.sha256:
        raise _damaged(piece, "Its bytes are not those that its name stands for.")
    if plain:
        raw = payload
    else:
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        inflater = zstd.ZstdDecompressor(options=options)
        try:
            # One byte more than announced is enough to know that it lies.
            raw = inflater.decompress(payload, piece.raw_bytes + 1)
        except zstd.ZstdError as error:
            raise _damaged(piece, f"It cannot be decompressed: {error}.") from None
        if len(raw) == piece.raw_bytes and (not inflater.eof or inflater.unused_data):
            raise _damaged(piece, "It holds more than was announced.")
    if len(raw) != piece.raw_bytes:
        raise _damaged(piece, "It does not hold as many bytes as were announced.")
    return raw


def join(
    pieces: Sequence[Piece],
    get: Callable[[Piece], bytes],
    out_path: Path,
    raw_sha256: str,
    *,
    plain: bool = False,
) -> None:
    """Make the stream of `pieces` as the file `out_path`; `get` fetches each piece's payload.

    What has come is kept as `<out_path>.partial` when `get` fails or the process is killed, and
    the next call goes on behind the pieces of it that are still good. Raises InputError for a
    damaged piece or stream (a piece is worth fetching again; nothing is kept of the stream),
    UnavailableError when the disk cannot take it; what `get` raises passes through.
    """
    partial = Partial(out_path)
    try:
        digest = partial.resume(pieces)
        for piece in pieces[partial.pieces :]:
            raw = open_piece(piece, get(piece), plain=plain)
            digest.update(raw)
            partial.add(piece, raw)
        if digest.hexdigest() != raw_sha256:
            partial.discard()
            raise InputError(
                f"{out_path.name} arrived damaged.",
                "Its pieces are good, but together they are not the announced version.",
                "It is fetched again; if that does not help, push the version again.",
            )
        partial.finish()
    except OfficeGridError:
        raise
    except OSError as error:
        raise cannot_write(out_path, error) from error
    finally:
        partial.close()


class Partial:
    """A stream that is still growing, and beside it a line for each piece that is in it.

    A line is the name of the piece and the SHA-256 of its raw bytes, so that after a crash each
    piece is checked against what was received and not merely counted.
    """

    def __init__(self, out_path: Path) -> None:
        self._out_path = out_path
        self._data = out_path.with_name(f"{out_path.name}.partial")
        self._lines = out_path.with_name(f"{out_path.name}.partial.pieces")
        self._data_file: BinaryIO | None = None
        self._lines_file: BinaryIO | None = None
        self.pieces = 0
        """How many are in it."""

    def resume(self, pieces: Sequence[Piece]) -> hashlib._Hash:
        """Open what is there and keep what is good of it; returns the digest of that."""
        self._data.parent.mkdir(parents=True, exist_ok=True)
        self._data.touch()
        self._lines.touch()
        digest = hashlib.sha256()
        lines = self._lines.read_bytes().split(b"\n")
        self._data_file = self._data.open("rb+")
        self._lines_file = self._lines.open("rb+")
        good_bytes = 0
        for piece, line in zip(pieces, lines, strict=False):
            raw = self._data_file.read(piece.raw_bytes)
            if line != _line(piece, raw):
                break
            digest.update(raw)
            good_bytes += len(raw)
            self.pieces += 1
        for file, size in (
            (self._data_file, good_bytes),
            (self._lines_file, self.pieces * _LINE_BYTES),
        ):
            file.truncate(size)
            file.seek(size)
        return digest

    def add(self, piece: Piece, raw: bytes) -> None:
        assert self._data_file is not None
        assert self._lines_file is not None
        self._data_file.write(raw)
        self._data_file.flush()
        self._lines_file.write(_line(piece, raw) + b"\n")
        self._lines_file.flush()
        self.pieces += 1

    def finish(self) -> None:
        """Give the stream its name, durably."""
        assert self._data_file is not None
        os.fsync(self._data_file.fileno())
        self.close()
        os.replace(self._data, self._out_path)
        sync_folder(self._out_path.parent)
        self._lines.unlink()

    def discard(self) -> None:
        self.close()
        for path in (self._data, self._lines):
            with suppress(OSError):
                path.unlink()

    def close(self) -> None:
        for file in (self._data_file, self._lines_file):
            if file is not None:
                with suppress(OSError):  # what could not be written was told when it was written
                    file.close()


_LINE_BYTES = 64 + 1 + 64 + 1


def _line(piece: Piece, raw: bytes) -> bytes:
    return f"{piece.sha256} {hashlib.sha256(raw).hexdigest()}".encode()


def _damaged(piece: Piece, why: str) -> InputError:
    return InputError(f"The piece {piece.sha256[:12]}… is damaged.", why, "It is fetched again.")
