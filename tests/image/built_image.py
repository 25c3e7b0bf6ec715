"""The golden image for tests: the real thing, built by the real command, once per sources.

    folder = built_image()                              # folder/golden.qcow2, image.json, …
    folder = built_image(scripts=[load_tables])         # with a company's own script
    folder = built_image(start="cron:1", formats=["qcow2", "ova", "vhdx"])

Images are kept in .cache/image under a digest of the sources and the arguments; the packages of
the distribution are kept beside them, so that a change of the worker costs seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from parts import need, without

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "image"
NAME = "golden"
BUILD_WITHIN_S = 900.0
KEPT = 3
"""So many images of older sources, or with other arguments, stay in the cache."""
# What is in the guest, or decides what is.
SOURCES = (
    "src/officegrid/__init__.py", "src/officegrid/__main__.py", "src/officegrid/core",
    "src/officegrid/wire", "src/officegrid/bundles", "src/officegrid/data",
    "src/officegrid/transport", "src/officegrid/worker", "src/officegrid/guest",
    "src/officegrid/cli", "src/officegrid/image",
)  # fmt: skip


def built_image(
    *, scripts: Sequence[Path] = (), parts: str = "php,mariadb,python", start: str = "service",
    formats: Sequence[str] = ("qcow2",),
) -> Path:  # fmt: skip
    """The folder of the image for the present sources; skips (under CI: fails) where it cannot be
    built. Never write into it."""
    need("mmdebstrap", "qemu-img", "mke2fs", "debugfs", "mcopy", "mkfs.vfat", "sfdisk", "syslinux")
    if os.geteuid() != 0:
        without("building the image needs root")
    CACHE.mkdir(parents=True, exist_ok=True)
    arguments = ["--with", parts, "--start", start, "--format", ",".join(formats)]
    folder = CACHE / _digest(arguments, scripts)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "image.json").exists():
            _build(folder, [*arguments, *(word for path in scripts for word in ("--script", path))])
            _forget_old()
    os.utime(folder)
    return folder


def _build(folder: Path, arguments: Sequence[str | Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "officegrid", "image", "build", "-o", folder, "--name", NAME,
         "--cache", CACHE / "downloads", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=BUILD_WITHIN_S,
    )  # fmt: skip
    assert done.returncode == 0, f"officegrid image build: exit {done.returncode}\n{done.stderr}"
    print(done.stderr)  # the steps and their times, when a test fails


def _forget_old() -> None:
    found = [path.parent for path in CACHE.glob("*/image.json")]
    for folder in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(arguments: Sequence[str], scripts: Sequence[Path]) -> str:
    found = hashlib.sha256("\0".join(arguments).encode())
    for script in scripts:
        found.update(script.name.encode() + b"\0" + script.read_bytes())
    for name in SOURCES:
        start = ROOT / name
        for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if path.is_file() and path.suffix != ".pyc":
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
