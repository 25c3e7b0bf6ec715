"""The smallest real guest: a Linux kernel and an initrd that count on the serial console.

    guest = counter_guest()
    # boot it with guest.kernel, guest.initrd, guest.append; memory from 64 MB on (128 MB: safe);
    # its serial port goes to a file
    ticks(Path("console.log"))          # rises by one every 50 ms of the guest's own time

It needs no disk and no network; it powers off when it reads "off" on its console. The kernel is
Debian's for clouds, from the package archive; made once per checkout, in .cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from parts import need, without

CACHE = Path(__file__).resolve().parents[2] / ".cache"
_TICK = re.compile(rb"tick (\d+)\r?\n")
_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs d /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
( while read word; do [ "$word" = off ] && $b poweroff -f; done ) &
n=0
while :; do n=$((n + 1)); echo "tick $n"; $b usleep 50000; done
"""


@dataclass(frozen=True)
class CounterGuest:
    """Two files and a kernel command line."""

    kernel: Path
    initrd: Path
    append: str = "console=ttyS0 quiet loglevel=0 panic=1 mitigations=off rdinit=/init"


def counter_guest() -> CounterGuest:
    """The guest, built if it is not there yet; skips (under CI: fails) where it cannot be."""
    need("apt-get", "dpkg-deb", "busybox", "cpio")
    folder = CACHE / "counter-guest"
    folder.mkdir(parents=True, exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n", encoding="utf-8")
    guest = CounterGuest(folder / "vmlinuz", folder / "initrd.cpio")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not guest.kernel.exists():
            _fetch_kernel(guest.kernel)
        _make_initrd(guest.initrd)
    return guest


def ticks(console: Path) -> int:
    """The last number that the guest has written; 0: none yet."""
    try:
        with open(console, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            found = _TICK.findall(file.read())
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0


def _fetch_kernel(kernel: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        named = subprocess.run(
            ["apt-cache", "depends", "linux-image-cloud-amd64"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        package = re.search(r"Depends: (linux-image-\S+)", named.stdout)
        if package is None:
            without("the package archive knows no linux-image-cloud-amd64")
            return
        fetched = subprocess.run(
            ["apt-get", "-q", "download", package[1]],
            cwd=work, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        packages = list(Path(work).glob("*.deb"))
        if not packages:
            without(f"the kernel package cannot be fetched: {fetched.stderr.strip()[-200:]}")
        subprocess.run(["dpkg-deb", "-x", packages[0], "out"], cwd=work, check=True)
        (image,) = Path(work, "out", "boot").glob("vmlinuz-*")
        draft = kernel.with_suffix(".new")
        shutil.copyfile(image, draft)
        draft.rename(kernel)


def _make_initrd(initrd: Path) -> None:
    """A cpio archive of busybox and the init script; anew when the script has changed."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        (root / "bin").mkdir()
        (root / "dev").mkdir()
        shutil.copyfile(shutil.which("busybox") or "/bin/busybox", root / "bin" / "busybox")
        (root / "init").write_text(_INIT)
        for program in (root / "bin" / "busybox", root / "init"):
            program.chmod(0o755)
        names = b"bin\nbin/busybox\ndev\ninit\n"
        for name in [".", *names.decode().split()]:
            os.utime(root / name, (0, 0))
        packed = subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "--reproducible"],
            cwd=root, input=names, capture_output=True, check=True,
        ).stdout  # fmt: skip
        if not initrd.exists() or initrd.read_bytes() != packed:
            draft = initrd.with_suffix(".new")
            draft.write_bytes(packed)
            draft.rename(initrd)
