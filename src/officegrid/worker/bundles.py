"""Programs on the worker: unpacked bundles by digest, and the interpreter each one needs."""

from __future__ import annotations

import hashlib
import os
import shutil
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
            return folder, environment_for(folder, self._environments)

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
                shutil.rmtree(path, ignore_errors=True)


def _check_digest(payload: bytes, sha256: str) -> None:
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise InputError(f"The bundle {sha256[:12]}… arrived damaged.", fix="It is fetched again.")
