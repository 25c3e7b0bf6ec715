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
from functools import partial
from pathlib import Path

from officegrid.bundles.unpack import unpack_bundle
from officegrid.core.errors import InputError, NotFoundError
from officegrid.worker import untouched
from officegrid.worker.environments import environment_for
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger

log = get_logger("bundles")

MAX_BUNDLE_BYTES = 640 * 1024 * 1024
KEPT_BUNDLES = 20
_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class BundleCache:
    """`<folder>/bundles/<sha256>/` holds one unpacked bundle; whole or not there at all."""

    def __init__(self, folder: Path) -> None:
        self._bundles = folder / "bundles"
        self._environments = folder / "environments"
        self._empty = folder / "no-bundle"
        self._notes = folder / "bundle-notes"
        self._partial = folder / "bundle-partial"
        self._lock = threading.Lock()
        for path in (self._bundles, self._environments, self._empty, self._notes, self._partial):
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
                set_writable(folder, False)
            if sha256 is not None and not (self._notes / sha256).exists():
                untouched.remember(folder, self._notes / sha256)
            return folder, python

    def is_untouched(self, sha256: str | None) -> bool:
        """Is the bundle as it was unpacked?"""
        if sha256 is None:
            return True
        return untouched.is_untouched(self._bundles / sha256, self._notes / sha256)

    def _fetch(self, link: Link, sha256: str, wanted: Callable[[], bool]) -> Path:
        target = self._bundles / sha256
        note = self._notes / sha256
        if target.is_dir() and note.exists() and not self.is_untouched(sha256):
            log.warning("changed", bundle=sha256[:12])
            self._drop(target)
        if not target.is_dir():
            self._make_room()
            fetched = self._by_delta(link, sha256, wanted)
            if fetched is None:
                payload = link.patiently(lambda: link.download(sha256, MAX_BUNDLE_BYTES), wanted)
                _check_digest(payload, sha256)
                unpack_bundle(payload, target)
            else:
                from officegrid.bundles.archive import extract_archive

                extract_archive(fetched, "folder", target)
                fetched.unlink()
        os.utime(target)
        return target

    def _make_room(self) -> None:
        """Drop the bundles that were not used for longest."""
        kept = sorted(self._bundles.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) - KEPT_BUNDLES + 1)]:
            if time.time() - path.stat().st_mtime > 3600:
                self._drop(path)

    def _drop(self, path: Path) -> None:
        set_writable(path, True)
        shutil.rmtree(path, ignore_errors=True)
        (self._notes / path.name).unlink(missing_ok=True)

    def _by_delta(self, link: Link, sha256: str, wanted: Callable[[], bool]) -> Path | None:
        """The raw tar of the bundle, made from one that is here; None where nothing leads to it."""
        present = {
            path.name: partial(_tar_of, path)
            for path in sorted(self._bundles.iterdir(), key=_used_at, reverse=True)
            if self.is_untouched(path.name)
        }
        if not present:
            return None
        from officegrid.worker.fetching import Fetcher  # a first bundle needs none of it

        try:
            fetched = Fetcher(link, self._partial, wanted).stream(sha256, present)
        except (InputError, NotFoundError) as error:
            log.warning("delta_failed", bundle=sha256[:12], what=error.what)
            return None
        return None if fetched is None else fetched.path


def _used_at(path: Path) -> float:
    return path.stat().st_mtime


def _tar_of(bundle: Path, work: Path) -> Path:
    from officegrid.bundles.archive import make_archive

    make_archive(bundle, work / "old", everything=True)
    return work / "old"


def set_writable(folder: Path, writable: bool) -> None:
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
