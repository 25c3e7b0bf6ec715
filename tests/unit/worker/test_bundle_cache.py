"""Unpacked bundles: read-only for the programs that run from them, and removable all the same."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import cast

import pytest

from officegrid.bundles.pack import pack_folder
from officegrid.core.errors import InputError
from officegrid.worker import bundles
from officegrid.worker.bundles import BundleCache
from officegrid.worker.link import Link

ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class Store:
    """Stands where the coordinator is: gives the bytes it has, patiently."""

    def __init__(self, *payloads: bytes) -> None:
        self.objects = {hashlib.sha256(one).hexdigest(): one for one in payloads}
        self.downloads = 0

    def patiently(self, request, wanted):  # type: ignore[no-untyped-def]
        return request()

    def download(self, sha256: str, max_bytes: int) -> bytes:
        self.downloads += 1
        return self.objects[sha256]


def packed(folder: Path) -> tuple[str, bytes]:
    (folder / "deep").mkdir(parents=True)
    (folder / "work.py").write_text("def record(row): return row\n")
    (folder / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "deep" / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("work.py")
    payload = pack_folder(folder).payload
    return hashlib.sha256(payload).hexdigest(), payload


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink()
    }


def test_an_unpacked_bundle_cannot_be_written_to_and_keeps_its_other_rights(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    store = cast(Link, Store(payload))
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(store, sha256, lambda: True)
    assert {name for name, mode in modes(folder).items() if mode & ANY_WRITE} == set()
    assert modes(folder)["deep/run.sh"] & 0o111
    assert (folder / "link").read_text() == (folder / "work.py").read_text()
    if os.geteuid():
        with pytest.raises(PermissionError):
            (folder / "work.py").write_text("changed")
    again, _ = cache.ready(store, sha256, lambda: True)
    assert again == folder
    assert cast(Store, store).downloads == 1


def test_a_bundle_that_an_earlier_release_left_writable_is_closed(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(cast(Link, Store(payload)), sha256, lambda: True)
    bundles.set_writable(folder, True)
    assert all(mode & stat.S_IWUSR for mode in modes(folder).values())
    cache.ready(cast(Link, Store(payload)), sha256, lambda: True)
    assert not any(mode & ANY_WRITE for mode in modes(folder).values())


def test_old_bundles_go_although_they_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "KEPT_BUNDLES", 1)
    one, first = packed(tmp_path / "one")
    (tmp_path / "one" / "more.py").write_text("x = 1\n")
    second = pack_folder(tmp_path / "one").payload
    two = hashlib.sha256(second).hexdigest()
    store = cast(Link, Store(first, second))
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(store, one, lambda: True)
    os.utime(folder, (0, 0))
    assert not folder.stat().st_mode & ANY_WRITE
    cache.ready(store, two, lambda: True)
    assert not folder.exists()


def test_a_bundle_of_other_bytes_is_refused(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    store = Store(payload)
    store.objects[sha256] = payload[:-1] + b"x"
    with pytest.raises(InputError, match="damaged"):
        BundleCache(tmp_path / "cache").ready(cast(Link, store), sha256, lambda: True)
    assert list((tmp_path / "cache" / "bundles").iterdir()) == []
