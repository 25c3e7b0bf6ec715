"""Folders that slots share: whole or not there, and never taken from under a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from officegrid.core.errors import UnavailableError
from officegrid.worker import kept
from officegrid.worker.kept import CUT_OFF_DAYS, Kept, set_writable
from officegrid.worker.link import GaveUp


@pytest.fixture
def folders(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "homes", tmp_path / "aside")


def _put(folders: Kept, slot: int, name: str, text: str) -> Path:
    draft = folders.draft(name)
    draft.mkdir()
    (draft / "file").write_text(text)
    set_writable(draft, False)
    folders.put(slot, name, draft)
    return draft.parent.parent / "homes" / name


def _aside(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "aside").iterdir())


def test_a_program_keeps_what_it_works_in_until_its_slot_goes_on(
    tmp_path: Path, folders: Kept
) -> None:
    folders.use(0, ("a",))
    folders.use(1, ("a", "b"))
    home = _put(folders, 0, "a", "old")
    descriptor = os.open(home, os.O_RDONLY)  # as the working folder of slot 1's program
    _put(folders, 0, "a", "new")
    assert (home / "file").read_text() == "new"
    assert os.listdir(descriptor) == ["file"]
    assert (folders.is_current(0), folders.is_current(1)) == (True, False)
    folders.use(1, ("a", "b"))
    assert os.listdir(descriptor) == []
    os.close(descriptor)
    assert folders.is_current(1)
    assert _aside(tmp_path) == []


def test_what_waits_for_several_slots_goes_with_the_last(tmp_path: Path, folders: Kept) -> None:
    for slot in range(3):
        folders.use(slot, ("a",))
    _put(folders, 0, "a", "old")
    _put(folders, 0, "a", "new")
    folders.release(1)
    assert len(_aside(tmp_path)) == 1
    folders.settle(2, "b")
    assert len(_aside(tmp_path)) == 1, "it settled in something else"
    folders.settle(2, "a")
    assert _aside(tmp_path) == []


def test_whoever_opens_a_file_while_its_folder_is_replaced_finds_it(
    tmp_path: Path, folders: Kept
) -> None:
    home = _put(folders, 0, "a", "0")
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    if not kept._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange two names")
    ended = threading.Event()
    missed: list[OSError] = []

    def read() -> None:
        while not ended.is_set():
            try:
                os.stat(home)
            except OSError as error:
                missed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(300):
            _put(folders, 0, "a", str(n))
    finally:
        ended.set()
        reader.join()
    assert missed == []


def test_a_system_that_cannot_exchange_names_replaces_all_the_same(
    tmp_path: Path, folders: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_exchange", lambda one, other: False)
    home = _put(folders, 0, "a", "old")
    _put(folders, 0, "a", "new")
    assert (home / "file").read_text() == "new"
    assert _aside(tmp_path) == []


def test_a_removal_that_is_cut_off_leaves_nothing_under_the_name(
    tmp_path: Path, folders: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = _put(folders, 0, "a", "x")
    with monkeypatch.context() as patched:  # like a file that Windows has open, or kill -9
        patched.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        folders.remove(0, "a")
    assert not home.exists()
    assert len(_aside(tmp_path)) == 1
    Kept(tmp_path / "homes", tmp_path / "aside")
    assert _aside(tmp_path) == [], "the next start has cleared it away"


def test_what_cannot_be_moved_stays_whole_and_is_said(tmp_path: Path, folders: Kept) -> None:
    home = _put(folders, 0, "a", "x")
    (tmp_path / "aside").rmdir()
    (tmp_path / "aside").touch()
    with pytest.raises(UnavailableError, match="cannot be removed"):
        folders.remove(0, "a")
    assert folders.evict("a") is False
    assert (home / "file").read_text() == "x"


AS_ANOTHER = """
import os
from pathlib import Path
from officegrid.worker.kept import Kept
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
Kept(Path("homes"), Path("aside"))
"""


def test_a_start_clears_what_a_killed_worker_left_but_goes_on_with_downloads(
    tmp_path: Path, folders: Kept
) -> None:
    aside = tmp_path / "aside"
    for name in ("a.1.gone", "a.2.new", "a.deltas", "a.new"):
        (aside / name / "deep").mkdir(parents=True)
        (aside / name / "deep" / "file").write_text("x")
        set_writable(aside / name, False)
    (tmp_path / "homes" / ".a.0123.part").mkdir()
    for name in ("a", "a.partial", "a.partial.pieces", "b.partial", "b.partial.pieces"):
        (aside / name).write_text("x")
    long_ago = time.time() - (CUT_OFF_DAYS + 1) * 86400
    for name in ("b.partial", "b.partial.pieces"):
        os.utime(aside / name, (long_ago, long_ago))
    if os.getuid() == 0:  # root may do all: somebody else has to be able to
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in _aside(tmp_path)} == {"a.partial", "a.partial.pieces"}
    assert list((tmp_path / "homes").iterdir()) == []


def test_nothing_is_evicted_that_is_used_or_worked_on(tmp_path: Path, folders: Kept) -> None:
    home = _put(folders, 0, "a", "x")
    folders.use(1, ("a",))
    assert folders.evict("a") is False
    folders.release(1)
    with folders.alone("a", lambda: True):
        assert folders.evict("a") is False
    with folders.reading(0, {"a"}):
        assert folders.evict("a") is False
    assert home.exists()
    assert folders.evict("a") is True
    assert not home.exists()


def test_who_waits_for_another_slot_stops_when_it_is_not_wanted(folders: Kept) -> None:
    asked = threading.Event()

    def wanted() -> bool:
        asked.set()
        return False

    with folders.alone("a", lambda: True):
        with folders.alone("b", lambda: True):
            pass
        with pytest.raises(GaveUp), folders.alone("a", wanted):
            pass
    assert asked.is_set()
