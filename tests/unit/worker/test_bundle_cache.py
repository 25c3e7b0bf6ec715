"""Unpacked bundles: read-only for the programs that run from them, and removable all the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import cast

import pytest

from officegrid.bundles.pack import pack_folder
from officegrid.core.errors import InputError, UnavailableError
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
    folder, _ = cache.ready(store, 0, sha256, lambda: True)
    assert {name for name, mode in modes(folder).items() if mode & ANY_WRITE} == set()
    assert modes(folder)["deep/run.sh"] & 0o111
    assert (folder / "link").read_text() == (folder / "work.py").read_text()
    if os.geteuid():
        with pytest.raises(PermissionError):
            (folder / "work.py").write_text("changed")
    again, _ = cache.ready(store, 0, sha256, lambda: True)
    assert again == folder
    assert cast(Store, store).downloads == 1


def test_a_bundle_that_an_earlier_release_left_writable_is_closed(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(cast(Link, Store(payload)), 0, sha256, lambda: True)
    bundles.set_writable(folder, True)
    assert all(mode & stat.S_IWUSR for mode in modes(folder).values())
    cache.ready(cast(Link, Store(payload)), 0, sha256, lambda: True)
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
    folder, _ = cache.ready(store, 0, one, lambda: True)
    os.utime(folder, (0, 0))
    assert not folder.stat().st_mode & ANY_WRITE
    cache.ready(store, 0, two, lambda: True)
    assert not folder.exists()


def test_a_bundle_of_other_bytes_is_refused(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    store = Store(payload)
    store.objects[sha256] = payload[:-1] + b"x"
    with pytest.raises(InputError, match="damaged"):
        BundleCache(tmp_path / "cache").ready(cast(Link, store), 0, sha256, lambda: True)
    assert list((tmp_path / "cache" / "bundles").iterdir()) == []


def _change(folder: Path) -> None:
    (folder / "work.py").chmod(0o644)
    (folder / "work.py").write_text("changed = 1\n")


def test_what_is_left_of_a_bundle_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, payload = packed(tmp_path / "code")
    store = cast(Link, Store(payload))
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(store, 0, sha256, lambda: True)
    _change(folder)

    def cut_off(path: Path, ignore_errors: bool = False) -> None:
        if not path.exists():
            return
        (path / "link").unlink(
            missing_ok=True
        )  # the others are in use (Windows), or not ours to remove

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    again, _ = cache.ready(store, 0, sha256, lambda: True)
    assert (again / "work.py").read_text() == (tmp_path / "code" / "work.py").read_text()
    assert (again / "link").exists()


def test_a_bundle_without_its_note_is_fetched_anew(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    store = cast(Link, Store(payload))
    folder, _ = BundleCache(tmp_path / "cache").ready(store, 0, sha256, lambda: True)
    (tmp_path / "cache" / "bundle-notes" / sha256).unlink()
    bundles.set_writable(folder, True)
    (folder / "work.py").unlink()  # an earlier release was killed while it removed it
    again, _ = BundleCache(tmp_path / "cache").ready(store, 0, sha256, lambda: True)
    assert (again / "work.py").exists()
    assert cast(Store, store).downloads == 2


def test_a_changed_bundle_stays_under_the_program_of_another_slot(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    store = Store(payload)
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(cast(Link, store), 0, sha256, lambda: True)
    cache.ready(cast(Link, store), 1, sha256, lambda: True)
    _change(folder)
    there = []
    download = store.download

    def watched(wanted: str, max_bytes: int) -> bytes:
        there.append((folder / "deep" / "run.sh").exists())
        return download(wanted, max_bytes)

    store.download = watched  # type: ignore[method-assign]
    working = os.open(folder, os.O_RDONLY)
    again, _ = cache.ready(cast(Link, store), 0, sha256, lambda: True)
    assert there == [True]
    assert again == folder
    assert (folder / "work.py").read_text() == (tmp_path / "code" / "work.py").read_text()
    assert "work.py" in os.listdir(working)
    assert cache.is_untouched(0, sha256)
    assert not cache.is_untouched(1, sha256), "its program has the changed one loaded"
    cache.release(1)
    assert os.listdir(working) == []
    os.close(working)


def test_a_bundle_that_a_slot_uses_stays_when_room_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "KEPT_BUNDLES", 1)
    monkeypatch.setattr(BundleCache, "_by_delta", lambda *_: None)
    one, first = packed(tmp_path / "one")
    (tmp_path / "one" / "more.py").write_text("x = 1\n")
    second = pack_folder(tmp_path / "one").payload
    store = cast(Link, Store(first, second))
    cache = BundleCache(tmp_path / "cache")
    folder, _ = cache.ready(store, 0, one, lambda: True)
    os.utime(folder, (0, 0))
    cache.ready(store, 1, hashlib.sha256(second).hexdigest(), lambda: True)
    assert (folder / "work.py").exists()


def test_a_disk_that_refuses_is_this_machines_trouble(tmp_path: Path) -> None:
    sha256, payload = packed(tmp_path / "code")
    cache = BundleCache(tmp_path / "cache")
    (tmp_path / "cache" / "bundle-partial").rmdir()
    (tmp_path / "cache" / "bundle-partial").touch()
    store = cast(Link, Store(payload))
    with pytest.raises(UnavailableError):
        cache.ready(store, 0, sha256, lambda: True)
    (tmp_path / "cache" / "bundle-partial").unlink()
    (tmp_path / "cache" / "bundle-partial").mkdir()
    shutil.rmtree(tmp_path / "cache" / "bundle-notes")
    (tmp_path / "cache" / "bundle-notes").touch()
    with pytest.raises(UnavailableError):
        cache.ready(store, 0, sha256, lambda: True)
