"""Archives: one stream for one content, and the same stream again from what was unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import threading
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from officegrid.bundles.archive import extract_archive, make_archive
from officegrid.bundles.pack import pack_folder
from officegrid.core.errors import ConflictError, InputError, LimitError, UnavailableError


def some_folder(folder: Path) -> Path:
    (folder / "lib" / "empty").mkdir(parents=True)
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    (folder / "lib/a.py").write_bytes(b"x = 1\n" * 1000)
    (folder / ("long-" * 45)).write_bytes(b"")
    (folder / "lib/link").symlink_to("../run.sh")
    (folder / "lib/through").symlink_to("link")
    (folder / "self").symlink_to(".")
    return folder


def test_the_stream_of_a_folder_is_its_bundle_uncompressed(tmp_path: Path) -> None:
    code = some_folder(tmp_path / "code")
    (code / "node_modules").mkdir()
    facts = make_archive(code, tmp_path / "stream")
    raw = (tmp_path / "stream").read_bytes()
    bundle = pack_folder(code)
    assert raw == zstd.decompress(bundle.payload)
    assert (facts.kind, facts.files, facts.content_bytes) == ("folder", 6, bundle.raw_bytes)
    assert (facts.raw_bytes, facts.raw_sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert sorted(os.listdir(tmp_path)) == ["code", "stream"]


def test_everything_means_everything(tmp_path: Path) -> None:
    code = some_folder(tmp_path / "code")
    (code / ".officegridignore").write_text("*.py\n")
    (code / ".git").mkdir()
    (code / ".git/config").touch()
    (code / "!strange").touch()
    make_archive(code, tmp_path / "rules")
    make_archive(code, tmp_path / "all", everything=True)
    with tarfile.open(tmp_path / "rules") as rules, tarfile.open(tmp_path / "all") as every:
        more = set(every.getnames()) - set(rules.getnames())
    assert more == {".git", ".git/config", "lib/a.py"}


NAMES = st.one_of(
    st.sampled_from([".git", "m.pyc", "__pycache__", ".officegridignore", "PaxHeaders", "-x"]),
    st.text(alphabet="ab .-é*[\\\n'\"🙂", min_size=1, max_size=6),
    st.sampled_from(["long" * 40, "é" * 120, os.fsdecode(b"\xff\xfe-not-utf8")]),
).filter(lambda name: name.strip("."))
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=60), st.booleans()),
    st.tuples(st.just("link"), st.integers(0, 30)),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(LEAVES, inner), max_size=4),
    max_leaves=12,
)


def grow(folder: Path, tree: dict[str, object]) -> None:
    """Make a folder of it; links lead to what is there already."""
    root = folder
    links: list[tuple[Path, int]] = []

    def put(at: Path, what: object) -> None:
        if isinstance(what, dict):
            at.mkdir()
            for name, inner in what.items():
                put(at / name, inner)
        elif isinstance(what, tuple) and what[0] == "file":
            at.write_bytes(what[1])
            at.chmod(0o711 if what[2] else 0o600)
        elif isinstance(what, tuple):
            links.append((at, what[1]))

    put(folder, tree)
    for at, number in links:
        there = [root, *sorted(root.rglob("*"))]
        at.symlink_to(os.path.relpath(there[number % len(there)], at.parent))


@settings(max_examples=40, deadline=None)
@given(TREES)
def test_an_unpacked_folder_gives_its_stream_again(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    base = tmp_path_factory.mktemp("archive")
    grow(base / "code", tree)
    # What the rules leave in may link to what they leave out, so both ways pack everything.
    first = make_archive(base / "code", base / "first", everything=True)
    extract_archive(base / "first", "folder", base / "out")
    assert make_archive(base / "out", base / "second", everything=True) == first
    assert (base / "second").read_bytes() == (base / "first").read_bytes()
    shutil.rmtree(base)


def test_a_folder_packed_by_the_rules_gives_its_stream_again(tmp_path: Path) -> None:
    code = some_folder(tmp_path / "code")
    (code / ".officegridignore").write_text("*.log\n")
    (code / "a.log").touch()
    first = make_archive(code, tmp_path / "first", exclude=[Path("lib/empty")])
    extract_archive(tmp_path / "first", "folder", tmp_path / "out")
    assert make_archive(tmp_path / "out", tmp_path / "second", everything=True) == first


def test_the_stream_of_a_file_is_the_file(tmp_path: Path) -> None:
    source = tmp_path / "postcodes.sqlite"
    source.write_bytes(b"rows" * 5000)
    facts = make_archive(source, tmp_path / "deep" / "stream")
    assert (facts.kind, facts.files, facts.raw_bytes) == ("file", 1, 20_000)
    assert facts.raw_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    extract_archive(tmp_path / "deep/stream", "file", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == source.read_bytes()
    with pytest.raises(ConflictError, match="exists already"):
        extract_archive(tmp_path / "deep/stream", "file", tmp_path / "again")
    with pytest.raises(LimitError, match="too large"):
        extract_archive(tmp_path / "deep/stream", "file", tmp_path / "new", max_bytes=100)
    with pytest.raises(LimitError, match=r"the limit is 0\.0 MB"):
        make_archive(source, tmp_path / "new", max_bytes=100)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mode", ["ab", "rb+"])
def test_a_file_that_changes_meanwhile_is_no_version(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "log"
    source.write_bytes(bytes(40_000_000))
    stop = threading.Event()

    def change_on() -> None:
        with source.open(mode, buffering=0) as file:
            while not stop.is_set():
                file.write(b"more")
                if mode == "rb+":
                    file.seek(0)

    thread = threading.Thread(target=change_on)
    thread.start()
    try:
        with pytest.raises(InputError, match="changed while it was being read"):
            make_archive(source, tmp_path / "stream")
    finally:
        stop.set()
        thread.join()
    assert os.listdir(tmp_path) == ["log"]


def test_what_cannot_be_an_archive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The reference data .* does not exist"):
        make_archive(tmp_path / "none", tmp_path / "out", what="reference data")
    code = some_folder(tmp_path / "code")
    (code / "dump").write_bytes(bytes(3_000_000))
    with pytest.raises(LimitError, match="too large") as caught:
        make_archive(code, tmp_path / "out", max_bytes=1_000_000)
    assert "dump (2.9 MB)" in caught.value.why
    (code / "out").symlink_to("/etc")
    with pytest.raises(InputError, match="leads out"):
        make_archive(code, tmp_path / "out", everything=True)
    (tmp_path / "blocked").touch()
    with pytest.raises(UnavailableError, match="cannot be written"):
        make_archive(tmp_path / "blocked", tmp_path / "blocked" / "stream")
    assert sorted(os.listdir(tmp_path)) == ["blocked", "code"]


def test_a_hostile_stream_is_refused_as_a_bundle_is(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "stream", "w") as tar:
        info = tarfile.TarInfo("../evil")
        tar.addfile(info)
    with pytest.raises(InputError, match="The archive cannot be unpacked") as caught:
        extract_archive(tmp_path / "stream", "folder", tmp_path / "out")
    assert "leads out" in caught.value.why
    (tmp_path / "stream").write_bytes(b"no tar" * 1000)
    with pytest.raises(InputError, match="The archive cannot be unpacked"):
        extract_archive(tmp_path / "stream", "folder", tmp_path / "out")
    assert os.listdir(tmp_path) == ["stream"]
