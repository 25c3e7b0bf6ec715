"""The profile on disk: private, whole or not there, and clear about what is wrong with it."""

from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from officegrid.core.errors import AuthError, UnavailableError
from officegrid.transport.profile import (
    Profile,
    home_folder,
    load_profile,
    profile_path,
    save_profile,
)

TOKEN = "ogt_TheSecretThatMustNotShow0123456789"
PROFILE = Profile("https://grid:8443", "PEM\n", TOKEN, "m1", "worker", "desk ä")
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX rights")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_profile(PROFILE, tmp_path / "new" / "folder")
    assert path == profile_path(tmp_path / "new" / "folder")
    assert load_profile(tmp_path / "new" / "folder") == PROFILE
    save_profile(replace(PROFILE, name="other"), path.parent)
    assert load_profile(path.parent).name == "other"
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


@posix_only
def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        path = save_profile(PROFILE, tmp_path / "home")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@posix_only
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_one_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = save_profile(PROFILE, tmp_path)
    path.chmod(mode)
    with pytest.raises(AuthError, match="Other users") as caught:
        load_profile(tmp_path)
    assert "chmod 600" in caught.value.fix
    path.chmod(0o400)
    assert load_profile(tmp_path) == PROFILE


def test_before_joining_it_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="not joined") as caught:
        load_profile(tmp_path)
    assert "officegrid join URL --code CODE" in caught.value.fix


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        json.dumps({"url": "u", "token": TOKEN}).encode(),
        json.dumps({"url": "u", "token": TOKEN})[:-1].encode(),
        json.dumps(dict.fromkeys(Profile.__dataclass_fields__, 1)).encode(),
    ],
)
def test_a_damaged_one_is_told_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    path = save_profile(PROFILE, tmp_path)
    path.write_bytes(content)
    with pytest.raises(AuthError) as caught:
        load_profile(tmp_path)
    assert caught.value.why
    assert "join again" in caught.value.fix.lower()
    assert TOKEN not in str(caught.value)


def test_fields_of_later_releases_are_ignored(tmp_path: Path) -> None:
    path = save_profile(PROFILE, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": {"a": 1}}))
    assert load_profile(tmp_path) == PROFILE


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="cannot be written") as caught:
        save_profile(PROFILE, tmp_path / "file")
    assert "OFFICEGRID_HOME" in caught.value.fix


def test_readers_never_see_half_a_profile(tmp_path: Path) -> None:
    save_profile(PROFILE, tmp_path)
    stopping = threading.Event()

    def rewrite() -> None:
        while not stopping.is_set():
            save_profile(PROFILE, tmp_path)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(200):
            assert load_profile(tmp_path) == PROFILE
    finally:
        stopping.set()
        thread.join(timeout=10)


def test_the_folder_is_chosen_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "LOCALAPPDATA" if os.name == "nt" else "XDG_CONFIG_HOME"
    monkeypatch.setenv("OFFICEGRID_HOME", str(tmp_path / "chosen"))
    monkeypatch.setenv(config, str(tmp_path / "config"))
    assert home_folder() == tmp_path / "chosen"
    monkeypatch.delenv("OFFICEGRID_HOME")
    assert home_folder() == tmp_path / "config" / "officegrid"
    monkeypatch.setenv(config, "relative")  # to be ignored, says the XDG specification
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    assert home_folder() == tmp_path / "home" / ".config" / "officegrid"


def test_its_representation_hides_the_token() -> None:
    assert TOKEN not in repr(PROFILE)
