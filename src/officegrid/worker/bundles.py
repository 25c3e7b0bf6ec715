"""Programs on the worker: unpacked bundles by digest, and the interpreter each one needs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from officegrid.bundles.unpack import unpack_bundle
from officegrid.core.errors import InputError
from officegrid.worker.environments import environment_for
from officegrid.worker.link import Link

MAX_BUNDLE_BYTES = 640 * 1024 * 1024
KEPT_BUNDLES = 20
_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class BundleCache:
    """`<folder>/bundles/<sha256>/` holds one unpacked bundle; whole or not there at all."""

    def __init__(self, folder: Path) -> None:
        self._bundles = folder / "bundles"
        self._environments = folder / "environments"
        self._empty = folder / "no-bundle"
        self._lock = threading.Lock()
        for path in (self._bundles, self._environments, self._empty):
            path.mkdir(parents=True, exist_ok=True)

    def ready(
        self, link: Link, sha256: str | None, wanted: Callable[[], bool]
    ) -> tuple[Path, Path]:
        """(folder of the program, Python to run it with); fetched and built when not there.

        Waits for a coordinator that is away as long as `wanted()` holds. Raises ProgramError if
        its environment cannot be built, InputError if the bundle is damaged, UnavailableError if
        this machine's disk is full.
        """
        with self._lock:
            folder = self._empty if sha256 is None else self._fetch(link, sha256, wanted)
            python = environment_for(folder, self._environments)  # pip may build in the folder
            if sha256 is not None and folder.stat().st_mode & stat.S_IWUSR:
                _set_writable(folder, False)
            return folder, python

    def _fetch(self, link: Link, sha256: str, wanted: Callable[[], bool]) -> Path:
        target = self._bundles / sha256
        if not target.is_dir():
            self._make_room()
            payload = link.patiently(lambda: link.download(sha256, MAX_BUNDLE_BYTES), wanted)
            _check_digest(payload, sha256)
            unpack_bundle(payload, target)
        os.utime(target)
        return target

    def _make_room(self) -> None:
        """Drop the bundles that were not used for longest."""
        kept = sorted(self._bundles.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) - KEPT_BUNDLES + 1)]:
            if time.time() - path.stat().st_mtime > 3600:
                _set_writable(path, True)
                shutil.rmtree(path, ignore_errors=True)


def _set_writable(folder: Path, writable: bool) -> None:
    """Take away, or give back, its owner's right to change a bundle: no program changes the code
    of the next unit by accident. A system that cannot do that, and root, go without. The folder
    itself comes last, or first: its mode says whether the rest is done."""
    for root, _, names in os.walk(folder, topdown=writable):
        here = [Path(root)]
        inside = [Path(root, name) for name in names]
        for path in here + inside if writable else inside + here:
            with contextlib.suppress(OSError):
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(mode | stat.S_IWUSR if writable else mode & ~_ANY_WRITE)


def _check_digest(payload: bytes, sha256: str) -> None:
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise InputError(f"The bundle {sha256[:12]}… arrived damaged.", fix="It is fetched again.")
