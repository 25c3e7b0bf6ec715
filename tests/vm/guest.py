"""The real guest for tests: Linux under QEMU with the real worker in it.

    guest = built_guest()                                   # built once, then from .cache/guest
    grid = Grid(folder, names=[HOST]); grid.start()         # HOST: this PC, seen from the guest
    iso = seed_iso(folder / "seed.iso", grid, "guest-1")    # a join code and a name
    settings = guest.settings("GridMachine", folder / "vm", seed_iso=iso, memory_mb=512)
    driver = officegrid.agent.drivers.qemu.make(settings)

With the agent: `guest.image` and `guest.options` are `image` and `[vm.options]` of agent.toml.
The guest says what docs/guest.md lists (GRID-SEED, GRID-READY, GRID-CLOCK …) and the worker's own
lines on its console.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.grid import Grid
from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.seed import Seed, write_seed
from parts import need, without

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "guest"
HOST = "10.0.2.2"
"""How a guest with user networking reaches the PC it runs on."""
BUILD_WITHIN_S = 600.0
KEPT = 3
"""So many guests of older sources stay in the cache."""
# What is in the guest, or decides what is.
SOURCES = (
    "tools/guest", "requirements.lock", "pyproject.toml", "src/officegrid/__init__.py",
    "src/officegrid/__main__.py", "src/officegrid/core", "src/officegrid/wire",
    "src/officegrid/bundles", "src/officegrid/data", "src/officegrid/transport",
    "src/officegrid/worker", "src/officegrid/cli", "src/officegrid/guest",
    "src/officegrid/image/files/usr/bin",
)  # fmt: skip


@dataclass(frozen=True)
class Guest:
    """Three files in one folder, never written to."""

    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "root.qcow2"

    @property
    def options(self) -> dict[str, Any]:
        """`[vm.options]`: it has no boot loader."""
        return {
            "kernel": str(self.folder / "vmlinuz"),
            "initrd": str(self.folder / "initrd.img"),
            "append": "console=ttyS0 quiet mitigations=off",
        }

    def settings(
        self, name: str, folder: Path, *, seed_iso: Path | None, memory_mb: int = 512,
        cpus: int = 1, cpu_cap_percent: int = 100, **options: Any,
    ) -> VmSettings:  # fmt: skip
        """For a driver; makes the VM's folder."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return VmSettings(
            name, folder, self.image, memory_mb, cpus, cpu_cap_percent, seed_iso=seed_iso,
            options={**self.options, **options},
        )  # fmt: skip


def built_guest() -> Guest:
    """The guest for the present sources; skips (under CI: fails) where it cannot be built."""
    need("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "depmod", "cpio", "busybox")
    if os.geteuid() != 0:
        without("building the guest needs root")
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / _digest()
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "root.qcow2").exists():
            _build(folder)
            _forget_old()
    os.utime(folder)
    return Guest(folder)


def _build(folder: Path) -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "tools" / "guest" / "build.sh"), str(folder)],
        env={**os.environ, "PYTHON": sys.executable, "GUEST_CACHE": str(CACHE)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=BUILD_WITHIN_S,
    )  # fmt: skip
    assert done.returncode == 0, f"tools/guest/build.sh: exit {done.returncode}\n{done.stderr}"


def _forget_old() -> None:
    found = [path.parent for path in CACHE.glob("*/root.qcow2")]
    for folder in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _digest() -> str:
    found = hashlib.sha256()
    for name in SOURCES:
        start = ROOT / name
        paths = sorted(start.rglob("*")) if start.is_dir() else [start]
        for path in paths:
            if path.is_file() and path.suffix != ".pyc":
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def seed_iso(path: Path, grid: Grid, name: str) -> Path:
    """A seed disk with a fresh join code for the coordinator of `grid`, which must cover HOST."""
    assert HOST in grid.names, "start the grid with names=[HOST]"
    url = f"https://{HOST}:{grid.port}"
    with tempfile.TemporaryDirectory() as folder:
        seed = Seed(f"iid-{name}", name, url, grid.code("worker"))
        write_seed(Path(folder) / "seed", path, seed)
    return path
