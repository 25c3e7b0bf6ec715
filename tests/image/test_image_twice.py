"""Two builds from equal inputs are equal, byte by byte; and a build that fails leaves no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image.built_image import CACHE
from parts import need, without

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def build_machine() -> None:
    need("mmdebstrap", "qemu-img", "mke2fs", "debugfs", "mcopy", "mkfs.vfat", "sfdisk", "syslinux")
    if os.geteuid() != 0:
        without("building an image needs root")


def _build(output: Path, cache: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "officegrid", "image", "build", "-o", output, "--cache", cache,
         "--with", "none", "--json", *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip


@pytest.mark.usefixtures("build_machine")
def test_two_builds_are_the_same_and_a_failed_one_changes_nothing(tmp_path: Path) -> None:
    # Packages already fetched are shared; the base is made anew in each of the two caches.
    packages = CACHE / "downloads" / "packages"
    caches = [tmp_path / "c1", tmp_path / "c2"]
    for cache in caches:
        cache.mkdir()
        if packages.exists():
            shutil.copytree(packages, cache / "packages")
    works = [tmp_path / "w1", tmp_path / "another work folder"]
    sums = []
    for number, (cache, work) in enumerate(zip(caches, works, strict=True)):
        work.mkdir()
        output = tmp_path / f"image-{number}"
        done = _build(output, cache, "--work", work, "--format", "qcow2,vhdx")
        assert done.returncode == 0, done.stderr
        assert not any(work.iterdir())
        described = json.loads(done.stdout)
        assert Path(described["folder"]) == output
        sums.append((output / "SHA256SUMS").read_text())
        checked = subprocess.run(
            ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=output, check=False
        )
        assert checked.returncode == 0
    assert sums[0] == sums[1]

    script = tmp_path / "leave-a-key.sh"
    script.write_text("#!/bin/sh\necho $(hostname) >/home/forgotten\n")
    output = tmp_path / "image-0"
    failed = _build(output, caches[0], "--script", script, "--format", "qcow2")
    assert failed.returncode == 1
    assert "not sealed" in failed.stderr
    assert "home/forgotten" in failed.stderr
    assert (output / "SHA256SUMS").read_text() == sums[0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "image"))
                  ) == ["image-0", "image-0.failed.log", "image-1"]  # fmt: skip
