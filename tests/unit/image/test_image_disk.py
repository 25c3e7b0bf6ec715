"""The disk: made from a tree without mounting anything, and the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from officegrid.image import disk, ext4, formats
from officegrid.image.run import BuildError, Runner
from parts import need, without

_AT, _SIZE = 2**20, 63 * 2**20


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Runner]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    runner = Runner(tmp_path / "log", print, scratch)
    runner.epoch_s = 1_700_000_000
    yield runner
    runner.close()


def _tree(root: Path, names: list[str]) -> None:
    root.mkdir()
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
    (root / "bin").mkdir()
    (root / "bin/tool").write_text("#!/bin/sh\n")
    (root / "bin/tool").chmod(0o4755)
    (root / "a name with spaces").write_text("x")
    (root / "link").symlink_to("../bin/tool")
    for name in ("same", "same-3"):
        os.link(root / "bin/tool", root / name)
    (root / "closed").mkdir(mode=0o700)
    (root / "big").write_bytes(bytes(range(256)) * 2000)


def _write(run: Runner, root: Path, path: Path) -> str:
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(_AT + _SIZE)
    ext4.write(run, root, path, _AT, _SIZE, "test")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _debugfs(path: Path, request: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", request, f"{path}?offset={_AT}"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def test_equal_trees_give_equal_disks_whatever_the_order_they_were_made_in(
    tmp_path: Path, run: Runner
) -> None:
    need("mke2fs", "debugfs", "e2fsck")
    names = [f"folder-{number % 7}/file-{number}" for number in range(300)]
    _tree(tmp_path / "one", names)
    _tree(tmp_path / "two", names[::-1])
    first = _write(run, tmp_path / "one", tmp_path / "1" / "disk")
    second = _write(run, tmp_path / "two", tmp_path / "2" / "disk")
    assert first == second
    (tmp_path / "two" / names[0]).write_text("changed")
    assert _write(run, tmp_path / "two", tmp_path / "3" / "disk") != first


def test_what_is_in_the_tree_is_on_the_disk(tmp_path: Path, run: Runner) -> None:
    need("mke2fs", "debugfs", "e2fsck")
    root, path = tmp_path / "root", tmp_path / "1" / "disk"
    _tree(root, ["etc/deep/er/file"])
    _write(run, root, path)
    assert _debugfs(path, "cat /etc/deep/er/file") == "etc/deep/er/file" * 1000
    assert _debugfs(path, 'cat "/a name with spaces"') == "x"
    tool = _debugfs(path, "stat /bin/tool")
    assert re.search(r"Mode: +04755", tool)
    assert re.search(r"Links: 3 ", tool)
    for time in ("ctime", "atime", "mtime", "crtime"):
        assert re.search(rf"{time}: 0x{1_700_000_000:08x}", tool), tool
    same = {line.split()[1] for line in (tool, _debugfs(path, "stat /same-3"))}
    assert len(same) == 1, "a hard link is the same inode"
    assert '"../bin/tool"' in _debugfs(path, "stat /link")
    assert re.search(r"Mode: +0700", _debugfs(path, "stat /closed"))


def test_owners_are_kept(tmp_path: Path, run: Runner) -> None:
    need("mke2fs", "debugfs", "e2fsck")
    if os.geteuid() != 0:
        without("giving files away needs root")
    root, path = tmp_path / "root", tmp_path / "1" / "disk"
    _tree(root, ["mine"])
    os.chown(root / "mine", 70_001, 70_002)
    _write(run, root, path)
    assert re.search(r"User: +70001 +Group: +70002 ", _debugfs(path, "stat /mine"))


def test_a_tree_that_does_not_fit_is_an_error(tmp_path: Path, run: Runner) -> None:
    need("mke2fs", "debugfs", "e2fsck")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/big").write_bytes(os.urandom(80 * 2**20))
    with pytest.raises(BuildError, match="could not be copied"):
        _write(run, tmp_path / "root", tmp_path / "1" / "disk")


def test_what_no_image_can_hold(tmp_path: Path) -> None:
    root = tmp_path / "r"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(root / "door"))
        with pytest.raises(BuildError, match="neither a file"):
            list(ext4.commands(root, tmp_path))
    (root / "door").unlink()
    (root / 'a"quote').touch()
    with pytest.raises(BuildError, match="quotation mark"):
        list(ext4.commands(root, tmp_path))


def test_the_partition_table_is_one_that_sfdisk_takes(tmp_path: Path) -> None:
    need("sfdisk")
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(4 * 10**9 // 2**20 * 2**20)
    text = disk.layout(4, "x")
    subprocess.run(["sfdisk", "--quiet", str(path)], input=text, text=True, check=True)
    dumped = subprocess.run(
        ["sfdisk", "--dump", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"start= *2048, size= *260096, type=c, bootable", dumped)
    assert re.search(r"start= *262144, size= *\d+, type=83", dumped)
    assert disk.layout(4, "x") == text != disk.layout(4, "y")


def test_files_for_hypervisors_are_the_same_every_time(tmp_path: Path, run: Runner) -> None:
    need("qemu-img")
    raw = tmp_path / "raw"
    raw.write_bytes(b"boot" * 1000 + bytes(2**24) + b"end!" * 1000)
    with raw.open("r+b") as file:
        file.truncate(2**26)
    found = []
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        formats.write_qcow2(run, raw, folder / "x.qcow2")
        formats.write_vmdk(run, raw, folder / "x.vmdk")
        formats.write_vhdx(run, raw, folder / "x.vhdx", "x")
        found.append([(folder / f"x.{kind}").read_bytes() for kind in ("qcow2", "vmdk", "vhdx")])
    assert found[0] == found[1]
    for kind in ("qcow2", "vmdk", "vhdx"):
        subprocess.run(
            ["qemu-img", "compare", str(raw), str(tmp_path / "1" / f"x.{kind}")], check=True,
            capture_output=True,
        )  # fmt: skip
    assert b"CID=fffffffe\n" in found[0][1]


def test_checksum_of_headers() -> None:
    assert formats.crc32c(b"123456789") == 0xE3069283, "the check value of CRC-32C"


def test_a_program_that_fails_shows_what_it_said(tmp_path: Path, run: Runner) -> None:
    with pytest.raises(BuildError) as caught:
        run.run(["sh", "-c", "echo out; echo oh no >&2; exit 7"], "It did not work.", "Try again.")
    assert caught.value.what == "It did not work."
    assert "exit code 7" in caught.value.why
    assert "oh no" in caught.value.why
    with pytest.raises(BuildError) as caught:
        run.run(["sh", "-c", "echo 'No space left on device' >&2; exit 1"], "No.", "Other advice.")
    assert "--work" in caught.value.fix
    with pytest.raises(BuildError, match="No"):
        run.run(["/does/not/exist"], "No.")
