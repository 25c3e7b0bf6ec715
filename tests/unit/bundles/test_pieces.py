"""Pieces: a stream comes together from them, or nothing does; what has come is kept."""

from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from pydantic import ValidationError

from acceptance.test_full_disk import filled, small_disk
from officegrid.bundles.pieces import cut, join, open_piece
from officegrid.core.errors import InputError, UnavailableError
from officegrid.wire.archives import ArchiveSpec, DeltaSpec, Piece

SIZE = 1000


class Store:
    """What was cut, and what was asked for."""

    def __init__(self, raw: bytes, folder: Path, *, plain: bool = False) -> None:
        (folder / "raw").write_bytes(raw)
        found = list(cut(folder / "raw", piece_bytes=SIZE, plain=plain))
        (folder / "raw").unlink()
        self.pieces = [one.piece for one in found]
        self.payloads = {one.piece.sha256: one.payload for one in found}
        self.asked: list[str] = []
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.fail_at: int | None = None

    def get(self, piece: Piece) -> bytes:
        if len(self.asked) == self.fail_at:
            raise UnavailableError("The coordinator is away.")
        self.asked.append(piece.sha256)
        return self.payloads[piece.sha256]


def noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("size", [0, 1, SIZE, SIZE + 1, 5 * SIZE, 5 * SIZE - 1])
def test_a_stream_comes_together(tmp_path: Path, size: int, plain: bool) -> None:
    raw = noise(size)
    store = Store(raw, tmp_path, plain=plain)
    assert [piece.raw_bytes for piece in store.pieces[:-1]] == [SIZE] * (len(store.pieces) - 1)
    assert sum(piece.raw_bytes for piece in store.pieces) == size
    for piece in store.pieces:
        assert hashlib.sha256(store.payloads[piece.sha256]).hexdigest() == piece.sha256
        assert len(store.payloads[piece.sha256]) == piece.stored_bytes
    join(store.pieces, store.get, tmp_path / "in" / "out", store.sha256, plain=plain)
    assert (tmp_path / "in/out").read_bytes() == raw
    assert os.listdir(tmp_path / "in") == ["out"]


def test_what_has_come_is_not_fetched_again(tmp_path: Path) -> None:
    store = Store(noise(10 * SIZE), tmp_path)
    store.fail_at = 6
    with pytest.raises(UnavailableError, match="away"):
        join(store.pieces, store.get, tmp_path / "out", store.sha256)
    assert not (tmp_path / "out").exists()
    store.fail_at = None
    join(store.pieces, store.get, tmp_path / "out", store.sha256)
    assert store.asked == [piece.sha256 for piece in store.pieces]
    assert os.listdir(tmp_path) == ["out"]


def spoil_byte(data: Path, lines: Path) -> None:
    raw = bytearray(data.read_bytes())
    raw[2 * SIZE + 5] ^= 1
    data.write_bytes(raw)


def cut_short(data: Path, lines: Path) -> None:
    with data.open("rb+") as file:
        file.truncate(3 * SIZE - 1)


def zeros_after_a_power_cut(data: Path, lines: Path) -> None:
    data.write_bytes(data.read_bytes()[: 2 * SIZE] + bytes(4 * SIZE))


def torn_line(data: Path, lines: Path) -> None:
    lines.write_bytes(lines.read_bytes()[: 2 * 130 + 70])


def ahead_of_its_lines(data: Path, lines: Path) -> None:
    data.write_bytes(data.read_bytes() + b"half a piece")


def no_lines(data: Path, lines: Path) -> None:
    lines.unlink()


@pytest.mark.parametrize(
    ("harm", "good"),
    [
        (spoil_byte, 2),
        (cut_short, 2),
        (zeros_after_a_power_cut, 2),
        (torn_line, 2),
        (ahead_of_its_lines, 6),
        (no_lines, 0),
    ],
)
def test_a_harmed_partial_goes_on_behind_what_is_good(
    tmp_path: Path, harm: Callable[[Path, Path], None], good: int
) -> None:
    raw = noise(10 * SIZE)
    store = Store(raw, tmp_path)
    store.fail_at = 6
    with pytest.raises(UnavailableError):
        join(store.pieces, store.get, tmp_path / "out", store.sha256)
    harm(tmp_path / "out.partial", tmp_path / "out.partial.pieces")
    store.fail_at = None
    join(store.pieces, store.get, tmp_path / "out", store.sha256)
    assert store.asked[6:] == [piece.sha256 for piece in store.pieces[good:]]
    assert (tmp_path / "out").read_bytes() == raw
    assert os.listdir(tmp_path) == ["out"]


def test_a_partial_of_another_version_is_used_as_far_as_it_is_the_same(tmp_path: Path) -> None:
    raw = noise(6 * SIZE)
    old, new = Store(raw, tmp_path), Store(raw[: 2 * SIZE] + noise(3 * SIZE, 2), tmp_path)
    old.fail_at = 5
    with pytest.raises(UnavailableError):
        join(old.pieces, old.get, tmp_path / "out", old.sha256)
    join(new.pieces, new.get, tmp_path / "out", new.sha256)
    assert new.asked == [piece.sha256 for piece in new.pieces[2:]]
    assert (tmp_path / "out").read_bytes() == raw[: 2 * SIZE] + noise(3 * SIZE, 2)


def lying(piece: Piece, payload: bytes, **changes: int) -> tuple[Piece, bytes]:
    digest = hashlib.sha256(payload).hexdigest()
    facts = {"stored_bytes": len(payload), "raw_bytes": piece.raw_bytes, **changes}
    return Piece(sha256=digest, **facts), payload


def test_pieces_that_lie_are_refused(tmp_path: Path) -> None:
    store = Store(noise(SIZE), tmp_path)
    piece = store.pieces[0]
    payload = store.payloads[piece.sha256]
    bomb = zstd.compress(bytes(50_000_000))
    lies = {
        "bytes are not those": (piece, payload[:-1] + b"x"),
        "bytes are not": (piece, payload + b"x"),
        "cannot be decompressed": lying(piece, b"hello"),
        "not hold as many": lying(piece, payload[: len(payload) // 2]),
        "holds more": lying(piece, payload + b"tail"),
        "does not hold as many": lying(piece, zstd.compress(b"short")),
        "as many bytes as": lying(piece, bomb),
    }
    for why, (wrong, sent) in lies.items():
        with pytest.raises(InputError, match="is damaged") as caught:
            open_piece(wrong, sent)
        assert why in caught.value.why
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            open_piece(*lying(piece, bomb))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    wrong, sent = lying(piece, payload)
    with pytest.raises(InputError, match="is damaged"):
        open_piece(wrong, sent, plain=True)


def test_a_damaged_piece_costs_only_itself(tmp_path: Path) -> None:
    store = Store(noise(5 * SIZE), tmp_path)
    third = store.pieces[3].sha256
    good = store.payloads[third]
    store.payloads[third] = good[::-1]
    with pytest.raises(InputError, match="is damaged"):
        join(store.pieces, store.get, tmp_path / "out", store.sha256)
    assert not (tmp_path / "out").exists()
    store.payloads[third] = good
    join(store.pieces, store.get, tmp_path / "out", store.sha256)
    assert len(store.asked) == 6


def test_good_pieces_of_another_stream_leave_nothing(tmp_path: Path) -> None:
    store = Store(noise(3 * SIZE), tmp_path)
    with pytest.raises(InputError, match="arrived damaged"):
        join(store.pieces[::-1], store.get, tmp_path / "out", store.sha256)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_and_the_download_goes_on_when_there_is_room(tmp_path: Path) -> None:
    raw = noise(60 * SIZE)
    store = Store(raw, tmp_path)
    with small_disk(tmp_path / "disk", 1) as disk:
        with filled(disk, 32 * 1024), pytest.raises(UnavailableError, match="no space is left"):
            join(store.pieces, store.get, disk / "out", store.sha256)
        assert not (disk / "out").exists()
        seen = len(store.asked)
        assert 5 < seen < 60
        join(store.pieces, store.get, disk / "out", store.sha256)
        # At most the piece that found no room, and one that was not yet written down.
        assert len(store.asked) <= 60 + 2
        assert (disk / "out").read_bytes() == raw


def test_specs_add_up_and_name_contents(tmp_path: Path) -> None:
    store = Store(noise(3 * SIZE), tmp_path)
    facts = {"raw_bytes": 3 * SIZE, "raw_sha256": store.sha256, "files": 1}
    one = ArchiveSpec(kind="file", pieces=store.pieces, **facts)
    whole = Store(noise(3 * SIZE), tmp_path, plain=True)
    assert ArchiveSpec(kind="file", pieces=whole.pieces, **facts).digest == one.digest
    assert ArchiveSpec(kind="folder", pieces=store.pieces, **facts).digest != one.digest
    assert one.stored_bytes == sum(len(payload) for payload in store.payloads.values())
    assert ArchiveSpec.model_validate_json(one.model_dump_json()) == one
    with pytest.raises(ValidationError, match="do not add up"):
        ArchiveSpec(kind="file", pieces=store.pieces[1:], **facts)
    names = {"old": "a" * 64, "new": "b" * 64, "sha256": store.sha256, "memory_bytes": 1}
    DeltaSpec(pieces=whole.pieces, stored_bytes=3 * SIZE, **names)
    with pytest.raises(ValidationError, match="do not add up"):
        DeltaSpec(pieces=whole.pieces, stored_bytes=3 * SIZE + 1, **names)
    with pytest.raises(ValidationError, match="not compressed again"):
        DeltaSpec(pieces=store.pieces, stored_bytes=one.stored_bytes, **names)
