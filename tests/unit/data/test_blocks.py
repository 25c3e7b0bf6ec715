"""Blocks: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.errors import InputError
from officegrid.data.blocks import BlockWriter, PackedBlock, Position, pack_block, unpack_block

DATA = b"1,one\n2,two\n3,three\n"


@given(st.binary(max_size=500), st.integers(1, 3))
def test_a_block_comes_back(data: bytes, level: int) -> None:
    block = pack_block(data, 3, ["a"], level)
    assert unpack_block(block.payload, block.slice) == data
    assert block.slice.sha256 == hashlib.sha256(block.payload).hexdigest()
    assert block.slice.stored_bytes == len(block.payload)
    assert (block.slice.records, block.slice.columns) == (3, ["a"])
    assert pack_block(data, 3, ["a"], level) == block


def test_part_of_a_block() -> None:
    block = pack_block(DATA, 3)
    part = block.slice.model_copy(update={"offset": 6, "length": 6, "records": 1})
    assert unpack_block(block.payload, part) == b"2,two\n"


def forged(payload: bytes, **changes: Any) -> PackedBlock:
    """A block whose name is right for `payload`, whatever is in it."""
    slice = pack_block(DATA, 3).slice
    named = {"sha256": hashlib.sha256(payload).hexdigest(), "stored_bytes": len(payload)}
    return PackedBlock(slice.model_copy(update=named | changes), payload)


GOOD = pack_block(DATA, 3).payload
BAD_BLOCKS = {
    "cut short": (PackedBlock(pack_block(DATA, 3).slice, GOOD[:-1]), "instead of"),
    "one bit flipped": (
        PackedBlock(pack_block(DATA, 3).slice, GOOD[:-1] + bytes([GOOD[-1] ^ 1])),
        "SHA-256",
    ),
    "not zstd": (forged(b"plain text"), "cannot be decompressed"),
    "half a frame": (forged(GOOD[:-4]), "exactly 20 bytes"),
    "two frames": (forged(GOOD + GOOD), "exactly 20 bytes"),
    "a bomb": (forged(zstd.compress(bytes(50_000_000))), "exactly 20 bytes"),
    "too little": (forged(zstd.compress(b"x")), "exactly 20 bytes"),
    "beyond the end": (forged(GOOD, offset=15), "holds 20"),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_blocks_that_are_refused(name: str) -> None:
    block, why = BAD_BLOCKS[name]
    with pytest.raises(InputError, match="damaged") as caught:
        unpack_block(block.payload, block.slice)
    assert why in caught.value.why
    assert "again" in caught.value.fix


def test_a_bomb_is_not_inflated() -> None:
    import tracemalloc

    block = forged(zstd.compress(bytes(50_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            unpack_block(block.payload, block.slice)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


pieces = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([["a"], ["a", "b"], None])), max_size=30
)


@given(pieces, st.integers(1, 40))
def test_writer_keeps_order_columns_and_positions(
    plan: list[tuple[int, list[str] | None]], block_bytes: int
) -> None:
    writer = BlockWriter(block_bytes)
    blocks: list[PackedBlock] = []
    marks: list[tuple[Position, int]] = []  # each place, and the records before it
    rows_total = 0
    written: list[tuple[bytes, list[str] | None]] = []
    for number, (rows, columns) in enumerate(plan):
        marks.append((writer.position, rows_total))
        data = b"".join(b"%d\n" % number for _ in range(rows))
        blocks += writer.append(data, rows, columns)
        assert writer.blocks == len(blocks)
        rows_total += rows
        if rows:
            written += [(b"%d\n" % number, columns)] * rows
    marks.append((writer.position, rows_total))
    blocks += writer.finish()
    assert writer.finish() == []
    assert writer.records == rows_total

    raw = [unpack_block(block.payload, block.slice) for block in blocks]
    read = [
        (line + b"\n", block.slice.columns)
        for data, block in zip(raw, blocks, strict=True)
        for line in data.split(b"\n")[:-1]
    ]
    assert read == written
    assert all(block.slice.records == d.count(b"\n") for block, d in zip(blocks, raw, strict=True))
    for position, before in marks:
        assert position.block <= len(blocks)
        in_earlier = sum(block.slice.records for block in blocks[: position.block])
        assert in_earlier + position.rows == before
        if position.block < len(blocks):
            head = raw[position.block][: position.offset]
            assert head.count(b"\n") == position.rows
        else:
            assert (position.offset, position.rows) == (0, 0)


def test_writer_fills_blocks() -> None:
    writer = BlockWriter(1000)
    line = b"x" * 99 + b"\n"
    blocks = [block for _ in range(100) for block in writer.append(line, 1)]
    assert [block.slice.raw_bytes for block in blocks] == [1000] * 10
    writer.append(line, 1)
    assert [b.slice.raw_bytes for b in writer.append(line * 50, 50)] == [100, 5000]
