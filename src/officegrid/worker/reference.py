"""Reference data on the worker: kept between jobs by digest, dropped when it grows too much.

    <folder>/data/<digest>/file/<name>     a data set that is one file
    <folder>/data/<digest>/folder/…        one that is a folder
    <folder>/data/<digest>/ready.json      written last: what is here, and its files' facts

Each is whole or not there. What a slot uses is never dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from officegrid.bundles.durable import make_durable
from officegrid.core.errors import (
    InputError,
    LimitError,
    NotFoundError,
    OfficeGridError,
    ProgramError,
    UnavailableError,
)
from officegrid.wire.work import UnitData
from officegrid.worker import untouched
from officegrid.worker.bundles import set_writable
from officegrid.worker.link import Link
from officegrid.worker.log import get_logger

if TYPE_CHECKING:
    from officegrid.worker.fetching import StreamOf
    from officegrid.worker.mariadb import Databases

log = get_logger("data")

CACHE_VARIABLE = "OFFICEGRID_DATA_CACHE_GB"
DEFAULT_CACHE_GB = 10.0
UNUSED_DAYS = 30.0
NOTE = "ready.json"


class ReferenceData:
    """The data sets of this worker. Thread-safe; fetches one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "data"
        self._partial = folder / "data-partial"
        self._databases_folder = folder / "databases"
        self._lock = threading.Lock()
        self._used: dict[int, frozenset[str]] = {}
        for path in (self._folder, self._partial):
            path.mkdir(parents=True, exist_ok=True)

    def ready(
        self, link: Link, slot: int, data: Mapping[str, UnitData], wanted: Callable[[], bool]
    ) -> dict[str, str]:
        """Environment variables that tell a program where its data is: all fetched, whole, loaded.

        Raises ProgramError where a data set cannot be had or loaded at all, UnavailableError when
        this machine's disk is full or its database away.
        """
        with self._lock:
            self._used[slot] = frozenset(one.digest for one in data.values())
            found = {
                f"OFFICEGRID_DATA_{key.upper()}": self._one(link, key, one, wanted)
                for key, one in data.items()
            }
        if any(one.load == "mariadb" for one in data.values()):
            from officegrid.worker.mariadb import SOCKET_VARIABLE, socket_path

            found[SOCKET_VARIABLE] = socket_path()
        return found

    def is_untouched(self, data: Mapping[str, UnitData]) -> bool:
        """Is all of it as it was put here?"""
        homes = [self._folder / one.digest for one in data.values()]
        return all(untouched.is_untouched(home, home / NOTE) for home in homes)

    def release(self, slot: int) -> None:
        """The slot uses none of it any more."""
        with self._lock:
            self._used.pop(slot, None)

    def _one(self, link: Link, key: str, data: UnitData, wanted: Callable[[], bool]) -> str:
        try:
            place = self._place(link, data, wanted)
            if data.load == "mariadb":
                return self._databases().ready(data.digest, place, wanted)
            return str(place)
        except (InputError, NotFoundError, LimitError) as error:
            raise ProgramError(
                f"The data {key!r} ({data.name} version {data.n}) cannot be used: {error.what}",
                error.why,
                error.fix,
            ) from error

    def _databases(self) -> Databases:
        from officegrid.worker.mariadb import Databases

        return Databases(self._databases_folder)

    def _place(self, link: Link, data: UnitData, wanted: Callable[[], bool]) -> Path:
        home = self._folder / data.digest
        if not untouched.is_untouched(home, home / NOTE):
            if home.exists():
                log.warning("changed", data=data.name, version=data.n)
                self._drop(home)
            self._make_room()
            self._fetch(link, data, home, wanted)
            log.info("ready", data=data.name, version=data.n)
        os.utime(home)
        folder = home / "folder"
        if folder.is_dir():
            return folder
        return self._named(home / "file", _safe(data.file_name))

    @staticmethod
    def _named(folder: Path, name: str) -> Path:
        """The one file in `folder`, under this name: two versions may hold it under different
        ones."""
        wanted = folder / name
        if not wanted.exists():
            there = next(path for path in folder.iterdir() if not path.is_symlink())
            folder.chmod(0o755)
            wanted.symlink_to(there.name)
        return wanted

    def _fetch(self, link: Link, data: UnitData, home: Path, wanted: Callable[[], bool]) -> None:
        present = {
            path.name: stream_of(path)
            for path in sorted(self._folder.iterdir(), key=_used_at, reverse=True)
            if (path / NOTE).exists()
        }
        from officegrid.worker.fetching import Fetcher

        fetched = Fetcher(link, self._partial, wanted).stream(data.digest, present)
        if fetched is None:
            raise InputError(f"{data.name} version {data.n} is not a data set.")
        stream = fetched.path
        draft = self._partial / f"{data.digest}.new"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            if fetched.kind == "folder":
                from officegrid.bundles.archive import extract_archive

                extract_archive(stream, "folder", draft / "folder")
            else:
                (draft / "file").mkdir()
                stream.replace(draft / "file" / _safe(data.file_name))
            set_writable(draft, False)
            draft.chmod(0o755)
            make_durable(draft)
            draft.replace(home)
            untouched.remember(home, home / NOTE)
        except OSError as error:
            raise UnavailableError(
                f"The data {data.name} cannot be put in place.", str(error),
                "Check the space and the permissions of the worker's folder.",
            ) from error  # fmt: skip
        finally:
            with contextlib.suppress(OSError):
                stream.unlink()
            if draft.exists():
                set_writable(draft, True)
                shutil.rmtree(draft, ignore_errors=True)

    # --- room

    def _make_room(self) -> None:
        """Drop what was not used for a month, then what was not used for longest until the rest
        fits. What slots use stays."""
        used = frozenset().union(*self._used.values())
        limit = _cache_bytes()
        sizes = {path: _size(path) for path in self._folder.iterdir() if path.name not in used}
        kept = sum(_size(self._folder / digest) for digest in used) + sum(sizes.values())
        old = time.time() - UNUSED_DAYS * 86400
        for path in sorted(sizes, key=_used_at):
            if kept <= limit and _used_at(path) >= old:
                break
            log.info("dropped", archive=path.name[:12], bytes=sizes[path])
            self._drop(path)
            kept -= sizes[path]
        if self._databases_folder.is_dir():
            self._databases().keep_only({path.name for path in self._folder.iterdir()} | used)

    def _drop(self, home: Path) -> None:
        set_writable(home, True)
        (home / NOTE).unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)


def stream_of(home: Path) -> StreamOf:
    """How to get at the raw stream of a data set that is here."""

    def made(work: Path) -> Path:
        if (home / "folder").is_dir():
            from officegrid.bundles.archive import make_archive

            make_archive(home / "folder", work / "old", everything=True)
            return work / "old"
        return next(path for path in (home / "file").iterdir() if not path.is_symlink())

    return made


def _safe(name: str) -> str:
    """A name that a submitter chose, as one inside its folder."""
    return name if name and name not in (".", "..") and not set(name) & set("/\\\0") else "data"


def _cache_bytes() -> float:
    text = os.environ.get(CACHE_VARIABLE, "")
    try:
        return float(text or DEFAULT_CACHE_GB) * 1e9
    except ValueError:
        raise OfficeGridError(
            f"{CACHE_VARIABLE}={text!r} is not a number of gigabytes.", fix="Write it like 10."
        ) from None


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(home: Path) -> int:
    try:
        return sum(facts[0] for facts in json.loads((home / NOTE).read_text()).values())
    except (OSError, ValueError):
        return 0
