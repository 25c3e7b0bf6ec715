"""Many askers, one read; and what does not fit is not kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from officegrid.coordinator.readcache import ReadCache


def test_ten_who_ask_at_once_cost_one_read() -> None:
    reads: list[str] = []
    gate = threading.Event()

    def read(name: str) -> bytes:
        reads.append(name)
        gate.wait(10)
        return name.encode()

    cache = ReadCache(read)
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(cache.get, "a") for _ in range(10)]
        gate.set()
        assert [one.result(10) for one in asked] == [b"a"] * 10
    assert reads == ["a"]
    assert cache.get("a") == b"a"
    assert cache.reads == 1


def test_the_oldest_goes_first_and_what_is_too_large_is_not_kept() -> None:
    reads: list[str] = []

    def read(name: str) -> bytes:
        reads.append(name)
        return b"x" * int(name)

    cache = ReadCache(read, most_bytes=10)
    for name in ("4", "5", "4", "6", "11", "4", "5", "11"):
        assert len(cache.get(name)) == int(name)
    assert reads == ["4", "5", "6", "11", "5", "11"]


def test_a_read_that_fails_fails_for_who_asked_and_is_tried_again() -> None:
    broken = [True]

    def read(name: str) -> bytes:
        if broken[0]:
            raise OSError("gone")
        return b"back"

    cache = ReadCache(read)
    with pytest.raises(OSError, match="gone"):
        cache.get("a")
    broken[0] = False
    assert cache.get("a") == b"back"
