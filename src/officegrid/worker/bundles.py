"""Programs on the worker: unpacked bundles by digest, and the interpreter each one needs."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from officegrid.bundles.unpack import unpack_bundle
from officegrid.core.errors import InputError, NotFoundError, UnavailableError
from officegrid.worker import untouched
from officegrid.worker.environments import environment_for
from officegrid.worker.kept import Kept, remove_tree, set_writable
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger

log = get_logger("bundles")

MAX_BUNDLE_BYTES = 640 * 1024 * 1024
KEPT_BUNDLES = 20


class BundleCache:
    """`<folder>/bundles/<sha256>/` holds one unpacked bundle; whole or not there at all.

    One without its note in `bundle-notes` counts as not there. Thread-safe: slots wait for one
    another only where they want the same bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._bundles = folder / "bundles"
        self._environments = folder / "environments"
        self._empty = folder / "no-bundle"
        self._notes = folder / "bundle-notes"
        self._partial = folder / "bundle-partial"
        for path in (self._environments, self._empty, self._notes):
            path.mkdir(parents=True, exist_ok=True)
        self._kept = Kept(self._bundles, self._partial)

    def ready(
        self, link: Link, slot: int, sha256: str | None, wanted: Callable[[], bool]
    ) -> tuple[Path, Path]:
        """(folder of the program, Python to run it with); fetched and built when not there.

        The slot, whose program does not run now, uses it until its next `ready` or `release`.
        Waits for a coordinator that is away as long as `wanted()` holds. Raises ProgramError if
        its environment cannot be built, InputError if the bundle is damaged, UnavailableError if
        this machine's disk is full, GaveUp when it is not wanted any more.
        """
        try:
            if sha256 is None:
                self._kept.use(slot, ())
                return self._empty, environment_for(self._empty, self._environments)
            self._kept.use(slot, (sha256,))
            with self._kept.alone(sha256, wanted):
                folder = self._fetch(link, slot, sha256, wanted)
                python = environment_for(folder, self._environments)  # pip may build in the folder
                if folder.stat().st_mode & stat.S_IWUSR:
                    set_writable(folder, False)
                    untouched.remember(folder, self._notes / sha256)
                self._kept.settle(slot, sha256)
                return folder, python
        except OSError as error:
            raise UnavailableError(
                "The program cannot be put in place.",
                f"The system says: {error}.",
                "Check the space and the permissions of the worker's folder.",
            ) from error

    def is_untouched(self, slot: int, sha256: str | None) -> bool:
        """Is the bundle that the slot's program works in as it was unpacked?"""
        return sha256 is None or (self._kept.is_current(slot) and self._is_whole(sha256))

    def release(self, slot: int) -> None:
        """The slot uses none any more."""
        self._kept.release(slot)

    def _is_whole(self, sha256: str) -> bool:
        return untouched.is_untouched(self._bundles / sha256, self._notes / sha256)

    def _fetch(self, link: Link, slot: int, sha256: str, wanted: Callable[[], bool]) -> Path:
        target = self._bundles / sha256
        if not self._is_whole(sha256):
            if target.exists():
                log.warning("changed", bundle=sha256[:12])
                if not self._kept.is_used_by_others(slot, sha256):
                    self._kept.remove(slot, sha256)
            self._make_room()
            draft = self._kept.draft(sha256)
            try:
                self._unpack(link, slot, sha256, draft, wanted)
                self._kept.put(slot, sha256, draft)
            finally:
                remove_tree(draft)
            untouched.remember(target, self._notes / sha256)
        os.utime(target)
        return target

    def _unpack(
        self, link: Link, slot: int, sha256: str, draft: Path, wanted: Callable[[], bool]
    ) -> None:
        fetched = self._by_delta(link, slot, sha256, wanted)
        if fetched is None:
            payload = link.patiently(lambda: link.download(sha256, MAX_BUNDLE_BYTES), wanted)
            _check_digest(payload, sha256)
            unpack_bundle(payload, draft)
            return
        from officegrid.bundles.archive import extract_archive

        try:
            extract_archive(fetched, "folder", draft)
        finally:
            fetched.unlink()

    def _make_room(self) -> None:
        """Drop the bundles that were not used for longest. What slots use stays."""
        kept = sorted(self._bundles.iterdir(), key=_used_at)
        for path in kept[: max(0, len(kept) - KEPT_BUNDLES + 1)]:
            if time.time() - _used_at(path) > 3600 and self._kept.evict(path.name):
                (self._notes / path.name).unlink(missing_ok=True)

    def _by_delta(
        self, link: Link, slot: int, sha256: str, wanted: Callable[[], bool]
    ) -> Path | None:
        """The raw tar of the bundle, made from one that is here; None where nothing leads to it."""
        present = {
            path.name: partial(_tar_of, path)
            for path in sorted(self._bundles.iterdir(), key=_used_at, reverse=True)
            if path.name != sha256 and self._is_whole(path.name)
        }
        if not present:
            return None
        from officegrid.worker.fetching import Fetcher  # a first bundle needs none of it

        try:
            with self._kept.reading(slot, present.keys()):
                fetched = Fetcher(link, self._partial, wanted).stream(sha256, present)
        except (InputError, NotFoundError) as error:
            log.warning("delta_failed", bundle=sha256[:12], what=error.what)
            return None
        return None if fetched is None else fetched.path


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another slot made room
        return 0.0


def _tar_of(bundle: Path, work: Path) -> Path:
    from officegrid.bundles.archive import make_archive

    try:
        make_archive(bundle, work / "old", everything=True)
    except FileNotFoundError as error:  # another slot made room
        raise InputError(f"The bundle {bundle.name[:12]}… is not here any more.") from error
    return work / "old"


def _check_digest(payload: bytes, sha256: str) -> None:
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise InputError(f"The bundle {sha256[:12]}… arrived damaged.", fix="It is fetched again.")
