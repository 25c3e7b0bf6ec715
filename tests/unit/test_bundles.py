"""Bundles: same folder, same bytes; and nothing in a bundle can reach outside its folder."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from officegrid.bundles import ignore_file, pack
from officegrid.bundles.ignore_file import IgnoreRules
from officegrid.bundles.pack import pack_folder, unpack_bundle
from officegrid.core.errors import (
    ConflictError,
    InputError,
    LimitError,
    OfficeGridError,
    UnavailableError,
    UsageError,
)


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def names_in(payload: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(payload))) as tar:
        return tar.getnames()


def tree(folder: Path) -> dict[str, object]:
    """Everything under a folder: contents, link targets, executable bits."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def test_a_folder_comes_back(tmp_path: Path) -> None:
    long_name = "very-" * 40 + "long.txt"
    code = fill(
        tmp_path / "code",
        {"run.sh": b"#!/bin/sh\n", "lib/a.py": b"x = 1\n", "é ü.txt": b"", f"d/{long_name}": b"1"},
    )
    (code / "run.sh").chmod(0o700)
    (code / "empty").mkdir()
    (code / "lib/link").symlink_to("../run.sh")
    (code / "lib/folder").symlink_to(code / "d")
    packed = pack_folder(code)
    assert packed.sha256 == hashlib.sha256(packed.payload).hexdigest()
    assert (packed.files, packed.raw_bytes) == (6, 17)
    unpack_bundle(packed.payload, tmp_path / "bytes")
    assert tree(tmp_path / "bytes") == tree(code) | {"lib/folder": "../d"}
    (tmp_path / "bundle").write_bytes(packed.payload)
    unpack_bundle(tmp_path / "bundle", tmp_path / "new" / "file")
    assert tree(tmp_path / "new" / "file") == tree(tmp_path / "bytes")
    assert os.listdir(tmp_path / "new") == ["file"]


def test_only_contents_names_and_the_executable_bit_count(tmp_path: Path) -> None:
    files = {"b.py": b"1", "a/z": b"2", "a/y": b"3", "a.b": b"4"}
    one = fill(tmp_path / "one", files)
    two = fill(tmp_path / "two", dict(reversed(files.items())))
    for path in two.rglob("*"):
        os.utime(path, (1, 1))
    (two / "b.py").chmod(0o640)
    first = pack_folder(one)
    assert first == pack_folder(two)
    (two / "b.py").chmod(0o740)
    assert pack_folder(two).sha256 != first.sha256


def test_what_is_always_left_out(tmp_path: Path) -> None:
    code = fill(
        tmp_path,
        {
            "main.py": b"", "lib/__pycache__/m.pyc": b"", "m.pyc": b"", ".git/config": b"",
            ".venv/bin/python": b"", "web/node_modules/x/index.js": b"", "git/x": b"",
        },
    )  # fmt: skip
    assert names_in(pack_folder(code).payload) == ["git", "git/x", "lib", "main.py", "web"]


def test_what_is_left_out_is_not_counted_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "MOST_COUNTED", 3)
    monkeypatch.setattr(ignore_file, "MOST_COUNTED", 3)
    files = {f"data/{n}/x": b"" for n in range(20)}
    code = fill(tmp_path, {".officegridignore": b"data\nlinks\n", "main.py": b"", **files})
    (code / "links").mkdir()
    (code / "links" / "one").symlink_to("../data")
    left_out = pack_folder(code).left_out
    assert (left_out.files, left_out.more) == (3 + 1, True)


def test_ignore_file_and_excluded_paths(tmp_path: Path) -> None:
    ignore = b"# data\n\n*.csv\nlogs/\n/top.txt\nsub/*.tmp\ndocs/**\n**/cache/x\n"
    code = fill(
        tmp_path / "code",
        {
            ".officegridignore": ignore, "a.csv": b"", "d/b.csv": b"", "logs/x": b"",
            "d/logs": b"a file", "top.txt": b"", "d/top.txt": b"", "sub/a.tmp": b"",
            "sub/d/b.tmp": b"", "docs/y": b"", "q/cache/x": b"", "q/cache/y": b"",
            "out/r.bin": b"", "in.bin": b"",
        },
    )  # fmt: skip
    (code / "docs" / "deep").mkdir()
    (code / "docs" / "deep" / "z").touch()
    (code / "__pycache__").mkdir()
    made = pack_folder(code, exclude=[Path("out"), code / "in.bin"])
    assert made.left_out.files == len(
        ["a.csv", "d/b.csv", "logs/x", "top.txt", "sub/a.tmp", "docs/y", "docs/deep/z", "q/cache/x"]
    )
    assert made.left_out.ignore_file == str(code / ".officegridignore")
    assert made.left_out.always == {"__pycache__"}
    assert names_in(made.payload) == [
        ".officegridignore", "d", "d/logs", "d/top.txt", "docs", "q", "q/cache", "q/cache/y",
        "sub", "sub/d", "sub/d/b.tmp",
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "what"), [("!keep.csv", "not supported"), ("/", "everything")])
def test_patterns_that_are_refused(line: str, what: str) -> None:
    with pytest.raises(UsageError, match="line 2") as caught:
        IgnoreRules(["*.csv", line])
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix


def test_folders_that_cannot_be_packed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        pack_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder") as caught:
        pack_folder(tmp_path / "file")
    assert "code =" in caught.value.fix


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("../secret", "leads out of the program folder"),
        ("/etc/hostname", "leads out of the program folder"),
        ("nothing", "leads nowhere"),
        ("link", "leads nowhere"),
        (".venv/lib", "which is left out"),
    ],
)
def test_links_that_cannot_be_packed(tmp_path: Path, target: str, what: str) -> None:
    fill(tmp_path, {"secret": b"", "code/.venv/lib": b""})
    Path("/etc/hostname").stat()
    (tmp_path / "code/link").symlink_to(target)
    with pytest.raises(InputError, match="The link link") as caught:
        pack_folder(tmp_path / "code")
    assert what in caught.value.what
    assert ".officegridignore" in caught.value.fix


def test_pipes_and_sockets_cannot_be_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe cannot be part") as caught:
        pack_folder(tmp_path)
    assert "a named pipe" in caught.value.why
    (tmp_path / "pipe").unlink()
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(InputError) as caught:
            pack_folder(tmp_path)
    assert "a socket" in caught.value.why


def test_too_large_names_the_largest(tmp_path: Path) -> None:
    fill(tmp_path, {"small.py": b"x", "dump.sql": b"x" * 3_000_000, "b.bin": b"x" * 2_000_000})
    with pytest.raises(LimitError, match=r"4.8 MB; the limit is 1.0 MB") as caught:
        pack_folder(tmp_path, max_bytes=1024 * 1024)
    assert "dump.sql (2.9 MB), b.bin (1.9 MB)" in caught.value.why
    assert ".officegridignore" in caught.value.fix


Member = tuple[str, bytes, str, bytes]  # name, type, link target, contents
FILE, LINK, FOLDER = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE


def crafted(*members: Member) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            tar.addfile(info, io.BytesIO(data))
    return zstd.compress(out.getvalue())


GOOD = crafted(("a", FILE, "", b"x" * 100_000))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute": (crafted(("/tmp/evil", FILE, "", b"x")), "leads out"),
    "dots": (crafted(("a/../../evil", FILE, "", b"x")), "leads out"),
    "empty name": (crafted((".", FILE, "", b"x")), "leads out"),
    "link out": (crafted(("l", LINK, "../evil", b"")), "leads"),
    "link to an absolute path": (crafted(("l", LINK, "/etc", b"")), "leads out"),
    "link out through a link": (
        crafted(("a/b/c", LINK, "../..", b""), ("l", LINK, "a/b/c/../..", b"")), "leads out",
    ),
    "file through a link": (
        crafted(("l", LINK, "..", b""), ("l/evil", FILE, "", b"x")), "comes twice",
    ),
    "dangling link": (crafted(("l", LINK, "none", b"")), "leads nowhere"),
    "circle": (crafted(("l", LINK, "m", b""), ("m", LINK, "l", b"")), "leads nowhere"),
    "hard link": (crafted(("l", tarfile.LNKTYPE, "/etc/passwd", b"")), "neither"),
    "device": (crafted(("null", tarfile.CHRTYPE, "", b"")), "neither"),
    "pipe": (crafted(("p", tarfile.FIFOTYPE, "", b"")), "neither"),
    "twice": (crafted(("a", FILE, "", b"x"), ("a", FILE, "", b"y")), "comes twice"),
    "file and folder": (crafted(("a", FILE, "", b"x"), ("a/b", FILE, "", b"y")), "twice"),
    "folder and file": (crafted(("a", FOLDER, "", b""), ("a", FILE, "", b"y")), "twice"),
    "truncated": (GOOD[:-10], "truncated or damaged"),
    "not a bundle": (b"hello", "truncated or damaged"),
    "not a tar": (zstd.compress(b"hello" * 1000), "truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundles_are_refused_without_a_trace(tmp_path: Path, name: str) -> None:
    payload, why = HOSTILE[name]
    with pytest.raises(InputError, match="cannot be unpacked") as caught:
        unpack_bundle(payload, tmp_path / "in" / "code")
    assert why in caught.value.why
    assert caught.value.fix
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


def test_bombs_are_refused(tmp_path: Path) -> None:
    bombs = [
        crafted(("a", FILE, "", bytes(30_000_000))),
        crafted(*((f"f{i}", FILE, "", b"") for i in range(50))),
        crafted(("x" * 20_000_000, FILE, "", b"")),  # an enormous name, in a header
    ]
    for bomb in bombs:
        assert len(bomb) < 10_000
        with pytest.raises(OfficeGridError) as caught:
            unpack_bundle(bomb, tmp_path / "code", max_bytes=1_000_000, max_entries=20)
        assert isinstance(caught.value, LimitError | InputError)
        assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    code = fill(tmp_path / "code", {"mine": b"1"})
    with pytest.raises(ConflictError, match="exists already"):
        unpack_bundle(GOOD, code)
    assert tree(code) == {"mine": (b"1", False)}
    with pytest.raises(UnavailableError, match="cannot be unpacked"):
        unpack_bundle(GOOD, code / "mine" / "below")
    assert os.listdir(tmp_path) == ["code"]


names = st.text(alphabet="ab .-é*[", min_size=1, max_size=6).filter(
    lambda name: name.strip(".") and not name.endswith(".pyc")
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=50), max_size=6))
def test_any_names_and_contents_survive(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "code").mkdir()
    fill(folder / "code", files)
    unpack_bundle(pack_folder(folder / "code").payload, folder / "out")
    assert tree(folder / "out") == tree(folder / "code")


def test_files_are_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the renaming must not leave empty files under the final name."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "program.py").write_text("print(1)")
    target = tmp_path / "target"
    seen: list[tuple[bool, list[str]]] = []

    def sync() -> None:
        seen.append((target.exists(), [path.read_text() for path in tmp_path.glob(".*/*.py")]))

    monkeypatch.setattr(os, "sync", sync)
    unpack_bundle(pack_folder(source).payload, target)
    assert seen == [(False, ["print(1)"])]
