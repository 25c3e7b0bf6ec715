"""Objects kept for others: whole, right, and within their space."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from officegrid.wire.peers import MOST_HELD
from officegrid.worker.peers.shelf import Shelf


def put(shelf: Shelf, payload: bytes) -> str:
    name = hashlib.sha256(payload).hexdigest()
    assert shelf.put(name, payload)
    return name


def test_what_was_used_least_lately_makes_way_also_after_a_restart(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 100)
    first, second = put(shelf, b"a" * 40), put(shelf, b"b" * 40)
    os.utime(tmp_path / first, (1, 1))
    os.utime(tmp_path / second, (2, 2))
    shelf = Shelf(tmp_path, 100)
    assert shelf.names() == [second, first]
    assert shelf.get(first) == b"a" * 40
    third = put(shelf, b"c" * 40)
    assert shelf.names() == [third, first]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([third, first])
    assert Shelf(tmp_path, 50).names() == [third]  # its space was made smaller


def test_a_damaged_object_is_given_to_nobody(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 100)
    name = put(shelf, b"a" * 40)
    (tmp_path / name).write_bytes(b"b" * 40)
    assert shelf.get(name) is None
    assert name not in shelf
    assert list(tmp_path.iterdir()) == []
    assert shelf.get(name) is None


def test_what_a_killed_worker_had_not_finished_goes(tmp_path: Path) -> None:
    (tmp_path / f".{'0' * 64}.abcd").write_bytes(b"half")
    assert Shelf(tmp_path, 100).names() == []
    assert list(tmp_path.iterdir()) == []


def test_too_large_an_object_or_a_disk_that_does_not_take_it_changes_nothing(
    tmp_path: Path,
) -> None:
    shelf = Shelf(tmp_path / "shelf", 100)
    kept = put(shelf, b"a" * 40)
    assert not shelf.put("1" * 64, b"b" * 101)
    assert shelf.names() == [kept]
    shutil.rmtree(tmp_path / "shelf")
    assert not shelf.put("2" * 64, b"b" * 10)
    assert shelf.get(kept) is None


def test_no_more_is_told_than_the_coordinator_takes(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 10_000)
    names = [put(shelf, str(n).encode()) for n in range(MOST_HELD + 5)]
    assert shelf.names() == names[: -MOST_HELD - 1 : -1]
