"""Deltas: the new stream comes out, bit for bit, or nothing; and what changed little is small."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from acceptance.test_full_disk import filled, small_disk
from officegrid.bundles.delta import Delta, apply_delta, make_delta
from officegrid.bundles.delta_format import MAX_PREFIX_BYTES, Header, Segment
from officegrid.bundles.matching import Matcher
from officegrid.core.errors import InputError, LimitError, UnavailableError

KIB = 1024


def noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


def rows(count: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [b"%d,customer %x,%d\n" % (i, chance.getrandbits(80), i % 97) for i in range(count)]


class Bench:
    """Two streams in a folder, and the delta between them."""

    def __init__(self, folder: Path, old: bytes, new: bytes) -> None:
        self.folder = folder
        self.old, self.new = folder / "old", folder / "new"
        self.delta, self.out = folder / "delta", folder / "out"
        self.old.write_bytes(old)
        self.new.write_bytes(new)

    def make(self, segment_bytes: int = 4 * KIB, **options: int) -> Delta:
        return make_delta(self.old, self.new, self.delta, segment_bytes=segment_bytes, **options)

    def apply(self) -> Header:
        return apply_delta(self.old, self.delta, self.out)

    def size(self, segment_bytes: int = 64 * KIB) -> int:
        """Bytes of a delta that was proved to give the new stream."""
        facts = self.make(segment_bytes)
        self.apply()
        assert self.out.read_bytes() == self.new.read_bytes()
        return facts.stored_bytes


# --- what comes out is right -------------------------------------------------------------------

CONTENTS = st.one_of(
    st.binary(max_size=3000),
    st.integers(0, 6000).map(lambda size: noise(size, size)),
    st.integers(0, 300).map(lambda count: b"".join(rows(count))),
    st.integers(0, 5000).map(bytes),
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace", "move", "repeat"]),
        st.floats(0, 1),
        st.floats(0, 1),
        st.integers(0, 2500),
    ),
    max_size=6,
)


def edited(old: bytes, edits: list[tuple[str, float, float, int]]) -> bytes:
    new = old
    for number, (kind, at, to, size) in enumerate(edits):
        place, other = int(at * len(new)), int(to * len(new))
        block, rest = new[place : place + size], new[:place] + new[place + size :]
        if kind == "insert":
            new = new[:place] + noise(size, number) + new[place:]
        elif kind == "delete":
            new = rest
        elif kind == "replace":
            new = new[:place] + noise(len(block), number) + new[place + len(block) :]
        elif kind == "move":
            new = rest[:other] + block + rest[other:]
        else:
            new = new[:other] + block + new[other:]
    return new


@settings(max_examples=150, deadline=None)
@given(CONTENTS, EDITS, st.one_of(st.none(), CONTENTS), st.sampled_from([1, 100, 999, 4096]))
def test_any_change_comes_out_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    old: bytes,
    edits: list[tuple[str, float, float, int]],
    other: bytes | None,
    segment_bytes: int,
) -> None:
    new = edited(old, edits) if other is None else other
    # One segment for each byte is slow and teaches nothing beyond the first few hundred.
    if segment_bytes == 1:
        old, new = old[:200], new[:200]
    bench = Bench(tmp_path_factory.mktemp("delta"), old, new)
    facts = bench.make(segment_bytes)
    assert facts.header == bench.apply()
    assert bench.out.read_bytes() == new
    assert facts.header.new_sha256 == hashlib.sha256(new).hexdigest()
    assert facts.stored_bytes == bench.delta.stat().st_size
    assert facts.sha256 == hashlib.sha256(bench.delta.read_bytes()).hexdigest()
    assert facts.segments == -(-len(new) // segment_bytes)
    assert sorted(os.listdir(bench.folder)) == ["delta", "new", "old", "out"]
    shutil.rmtree(bench.folder)


def test_the_same_streams_give_the_same_delta(tmp_path: Path) -> None:
    bench = Bench(tmp_path, b"".join(rows(5000)), b"".join(rows(5000)[100:]))
    first = bench.make()
    assert bench.make() == first


# --- what changed little is small --------------------------------------------------------------

OLD = noise(1000 * KIB)


@pytest.mark.parametrize(
    ("new", "most"),
    [
        (OLD, 700),
        (b"", 200),
        (noise(100 * KIB, 2) + OLD, 101 * KIB),
        (OLD[: 400 * KIB] + noise(50 * KIB, 2) + OLD[400 * KIB :], 52 * KIB),
        (OLD[300 * KIB :], 1 * KIB),
        (OLD[: 200 * KIB] + OLD[600 * KIB :], 2 * KIB),
        (OLD[500 * KIB :] + OLD[: 500 * KIB], 2 * KIB),
        (OLD[: 100 * KIB] + b"x" * 300 + OLD[100 * KIB + 300 :], 2 * KIB),
        (OLD + OLD, 3 * KIB),
    ],
    ids=["same", "empty", "front", "middle", "cut front", "cut middle", "swap", "place", "twice"],
)
def test_random_bytes_are_found_wherever_they_went(tmp_path: Path, new: bytes, most: int) -> None:
    assert Bench(tmp_path, OLD, new).size() <= most


def test_blocks_in_another_order_are_found(tmp_path: Path) -> None:
    blocks = [OLD[i : i + 100 * KIB] for i in range(0, len(OLD), 100 * KIB)]
    random.Random(3).shuffle(blocks)
    assert Bench(tmp_path, OLD, b"".join(blocks)).size() < 20 * KIB


def test_scattered_rows_of_other_lengths_stay_small(tmp_path: Path) -> None:
    old = rows(40_000)
    new = list(old)
    chance = random.Random(4)
    changed = sorted(chance.sample(range(len(old)), 400))
    for i in changed:
        new[i] = b"%d,%s,changed\n" % (i, b"%x" % chance.getrandbits(chance.randrange(8, 400)))
    bench = Bench(tmp_path, b"".join(old), b"".join(new))
    fresh = sum(len(new[i]) for i in changed)
    assert bench.size() < fresh + 12 * len(changed)


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    given_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.given_bytes += len(data)
        return data


def test_streams_with_nothing_in_common_are_not_searched_for_ever() -> None:
    new = noise(1000 * KIB, 2)
    counts = []
    for budget_bytes in (0, 3000 * KIB, None):
        old = Counted(OLD)
        matcher = Matcher(old, len(OLD), len(new), 8 * KIB, budget_bytes)
        for start in range(0, len(new), 8 * KIB):
            matcher.regions(start, new[start : start + 8 * KIB])
        counts.append(old.given_bytes)
    without, some, usual = counts
    # What is read in any case is what lies around the expected place; one search may overdraw.
    assert without < 2 * len(OLD)
    assert without + 3000 * KIB <= some < without + 4010 * KIB
    assert some < usual <= without + 2100 // 16 * len(OLD)


def test_what_grows_at_the_end_is_a_copy_and_a_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OLD, OLD + noise(64 * KIB, 9))
    facts = bench.make(8 * KIB)
    assert facts.copied_segments == 125
    assert facts.stored_bytes < 64 * KIB + 133 * 25 + 200


def test_what_it_is_worth_can_be_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, noise(50 * KIB), noise(50 * KIB, 2))
    facts = bench.make()
    assert 1 < facts.share_of(50 * KIB) < 1.05
    bench.delta.unlink()
    with pytest.raises(LimitError, match="not worth it"):
        bench.make(max_bytes=30 * KIB)
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


# --- lies and damage ---------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    old = b"".join(rows(2000))
    made = Bench(tmp_path, old, old[5000:20_000] + noise(3000, 5) + old[22_000:])
    made.make(8 * KIB)
    return made


def refused(bench: Bench) -> str:
    """Why the delta is refused; and nothing is left of what it gave."""
    with pytest.raises(InputError) as caught:
        bench.apply()
    assert caught.value.fix
    assert sorted(os.listdir(bench.folder)) == ["delta", "new", "old"]
    return f"{caught.value.what} {caught.value.why}"


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1), st.integers(1, 255), st.sampled_from(["flip", "cut", "drop", "add"]))
def test_damage_never_gives_a_wrong_stream(
    tmp_path_factory: pytest.TempPathFactory, where: float, bits: int, kind: str
) -> None:
    old = b"".join(rows(300))
    bench = Bench(tmp_path_factory.mktemp("damage"), old, old[1000:] + noise(300, 5) + old[:500])
    bench.make(2 * KIB)
    whole = bench.delta.read_bytes()
    at = min(int(where * len(whole)), len(whole) - 1)
    bench.delta.write_bytes(
        {
            "flip": whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :],
            "cut": whole[:at],
            "drop": whole[:at] + whole[at + 1 :],
            "add": whole[:at] + bytes([bits]) + whole[at:],
        }[kind]
    )
    try:
        bench.apply()
    except (InputError, LimitError):
        assert sorted(os.listdir(bench.folder)) == ["delta", "new", "old"]
    else:
        # Damage that changes nothing: of the digest of the old stream, which the sizes cover.
        assert bench.out.read_bytes() == bench.new.read_bytes()
    shutil.rmtree(bench.folder)


def test_another_old_version_is_told(bench: Bench) -> None:
    good = bench.old.read_bytes()
    bench.old.write_bytes(good + b"more")
    assert "starts from another version" in refused(bench)
    bench.old.write_bytes(good.replace(b"customer", b"CUSTOMER"))
    assert "has other contents" in refused(bench)
    bench.old.write_bytes(good)
    bench.apply()


def test_another_new_version_is_not_taken(bench: Bench) -> None:
    wanted = hashlib.sha256(bench.new.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="is damaged") as caught:
        apply_delta(bench.old, bench.delta, bench.out, new_sha256="0" * 64)
    assert "another version" in caught.value.why
    with pytest.raises(LimitError, match="too large"):
        apply_delta(bench.old, bench.delta, bench.out, new_sha256=wanted, max_bytes=1000)
    assert not bench.out.exists()
    apply_delta(bench.old, bench.delta, bench.out, new_sha256=wanted)


BOMB = zstd.compress(bytes(200_000_000))
GOOD = zstd.compress(b"x" * 100)
SPLIT = zstd.compress(b"x" * 50) + zstd.compress(b"x" * 50)
WIDE = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
WIDE_FRAME = WIDE.compress(b"x" * 100) + WIDE.flush()
LIES: dict[str, tuple[list[Segment], str]] = {
    "bomb": ([Segment(100, (), BOMB[:900])], "as many bytes"),
    "larger than announced": ([Segment(99, (), GOOD), Segment(1, (), GOOD)], "as many"),
    "smaller than announced": ([Segment(100, (), zstd.compress(b"y"))], "as many bytes"),
    "two frames": ([Segment(100, (), SPLIT)], "as many bytes"),
    "trailing": ([Segment(100, (), GOOD + b"tail")], "holds more"),
    "no frame": ([Segment(100, (), b"hello")], "decompressed"),
    "huge window": ([Segment(100, (), WIDE_FRAME)], "decompressed"),
    "segments too long": ([Segment(101, (), GOOD)], "add up"),
    "empty segment": ([Segment(0, (), GOOD)], "add up"),
    "segments too short": ([Segment(50, ((0, 50),), None)], "truncated"),
    "something follows": ([Segment(100, (), GOOD), Segment(1, (), GOOD)], "follows"),
    "region outside": ([Segment(100, ((950, 100),), GOOD)], "outside"),
    "region far outside": ([Segment(100, ((2**64 - 1, 100),), GOOD)], "outside"),
    "copy of two": ([Segment(100, ((0, 50), (0, 50)), None)], "copied region"),
    "copy of nothing": ([Segment(100, (), None)], "copied region"),
    "copy too short": ([Segment(100, ((0, 99),), None)], "copied region"),
    "too many regions": ([Segment(100, ((0, 1),) * 17, GOOD)], "too many regions"),
    "long payload": ([Segment(100, (), BOMB + bytes(9000))], "longer than"),
    "another stream": ([Segment(100, (), zstd.compress(b"y" * 100))], "not the new version"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(tmp_path: Path, name: str) -> None:
    segments, why = LIES[name]
    bench = Bench(tmp_path, b"o" * 1000, b"x" * 100)
    header = bench.make().header
    with bench.delta.open("wb") as file:
        header.write(file)
        for segment in segments:
            segment.write(file)
    assert why in refused(bench)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    bench = Bench(tmp_path, b"o" * 1000, b"x" * 30_000)
    header = bench.make().header
    with bench.delta.open("wb") as file:
        header.write(file)
        Segment(30_000, (), BOMB).write(file)
    tracemalloc.start()
    try:
        assert "as many bytes" in refused(bench)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_headers_that_lie_are_refused(bench: Bench) -> None:
    whole = bench.delta.read_bytes()
    for start, why in [(b"OGDELTA\x02", "version 2"), (b"no delta", "does not begin")]:
        bench.delta.write_bytes(start + whole[8:])
        assert why in refused(bench)
    bench.delta.write_bytes(whole[:50])
    assert "truncated" in refused(bench)
    size = 48
    bench.delta.write_bytes(whole[:size] + struct.pack("<Q", 10**6) + whole[size + 8 :])
    assert "truncated" in refused(bench)


def test_regions_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, b"", b"x" * 100)
    with bench.old.open("wb") as file:
        file.truncate(2 * MAX_PREFIX_BYTES)  # a hole: it takes no room
    header = Header(2 * MAX_PREFIX_BYTES, "0" * 64, 100, "0" * 64)
    with bench.delta.open("wb") as file:
        header.write(file)
        Segment(100, ((0, MAX_PREFIX_BYTES), (5, 1)), GOOD).write(file)
    assert "another version" in refused(bench)
    with bench.delta.open("rb") as file:
        Header.read(file)
        with pytest.raises(InputError) as caught:
            Segment.read(file, header.old_bytes, 100)
    assert "too large" in caught.value.why


def test_streams_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, b"a", b"b")
    bench.make()
    bench.old.unlink()
    with pytest.raises(InputError, match="old cannot be read"):
        bench.apply()
    with pytest.raises(InputError, match="old cannot be read"):
        bench.make()
    with pytest.raises(ValueError, match="segment_bytes"):
        bench.make(2**30)


# --- the world ---------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, OLD, OLD[100:])
    noisy = tmp_path / "noisy"
    noisy.write_bytes(noise(1000 * KIB, 8))
    with small_disk(tmp_path / "disk", 4) as disk:
        with filled(disk, 200 * KIB):
            with pytest.raises(UnavailableError, match="no space is left"):
                make_delta(noisy, bench.new, disk / "delta")
            facts = bench.make(64 * KIB)
            with pytest.raises(UnavailableError, match="no space is left"):
                apply_delta(bench.old, bench.delta, disk / "out")
            assert os.listdir(disk) == ["filler"]
        apply_delta(bench.old, bench.delta, disk / "out")
        assert (disk / "out").stat().st_size == facts.header.new_bytes


APPLY = """
import sys
from pathlib import Path
from officegrid.bundles.delta import apply_delta
old, delta, out = map(Path, sys.argv[1:])
apply_delta(old, delta, out)
"""


def test_killed_half_way_the_old_stays_and_the_rest_goes_with_the_next_time(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, OLD * 20, OLD[1:] * 20)
    bench.make(4 * KIB, level=1)
    bench.out.write_bytes(b"what was there")
    command = [sys.executable, "-c", APPLY, str(bench.old), str(bench.delta), str(bench.out)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 60
        while not [path for path in tmp_path.glob(".out.*") if path.stat().st_size > 100 * KIB]:
            assert process.poll() is None, "it was done before it could be killed"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
    assert bench.out.read_bytes() == b"what was there"
    assert len(list(tmp_path.glob(".out.*"))) == 1
    bench.apply()
    assert bench.out.read_bytes() == bench.new.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["delta", "new", "old", "out"]


PEAK = """
from pathlib import Path
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_memory_does_not_grow_with_the_streams(tmp_path: Path) -> None:
    """A worker's guest has 1 GB for everything; both streams here have 96 MiB."""
    mib = noise(KIB * KIB)
    blocks = [b"%d" % number + mib for number in range(96)]
    bench = Bench(tmp_path, b"".join(blocks), b"".join(block + b"new" for block in blocks))
    facts = bench.make(8 * KIB * KIB, level=1)
    assert facts.copied_segments == 0
    assert facts.memory_bytes < 70 * KIB * KIB
    command = [sys.executable, "-c", APPLY + PEAK, bench.old, bench.delta, bench.out]
    told = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    assert int(told.stdout) / KIB < 140
    assert bench.out.stat().st_size == bench.new.stat().st_size
