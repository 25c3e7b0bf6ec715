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
import stat
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
from officegrid.worker.kept import Kept, remove_tree, set_writable
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
    """The data sets of this worker. Thread-safe: slots wait for one another only where they want
    the same one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "data"
        self._partial = folder / "data-partial"
        self._databases_folder = folder / "databases"
        self._kept = Kept(self._folder, self._partial)

    def ready(
        self, link: Link, slot: int, data: Mapping[str, UnitData], wanted: Callable[[], bool]
    ) -> dict[str, str]:
        """Environment variables that tell a program where its data is: all fetched, whole, loaded.

        The slot, whose program does not run now, uses it until its next `ready` or `release`.
        Raises ProgramError where a data set cannot be had or loaded at all, UnavailableError when
        this machine's disk is full or its database away, GaveUp when it is not wanted any more.
        """
        self._kept.use(slot, {one.digest for one in data.values()})
        found = {}
        for key, one in data.items():
            with self._kept.alone(one.digest, wanted):
                found[f"OFFICEGRID_DATA_{key.upper()}"] = self._one(link, slot, key, one, wanted)
                self._kept.settle(slot, one.digest)
        if any(one.load == "mariadb" for one in data.values()):
            from officegrid.worker.mariadb import SOCKET_VARIABLE, socket_path

            found[SOCKET_VARIABLE] = socket_path()
        return found

    def is_untouched(self, slot: int, data: Mapping[str, UnitData]) -> bool:
        """Is all that the slot's program works with as it was put here?"""
        return self._kept.is_current(slot) and all(
            self._is_whole(one.digest) for one in data.values()
        )

    def release(self, slot: int) -> None:
        """The slot uses none of it any more."""
        self._kept.release(slot)

    def _is_whole(self, digest: str) -> bool:
        home = self._folder / digest
        return untouched.is_untouched(home, home / NOTE)

    def _one(
        self, link: Link, slot: int, key: str, data: UnitData, wanted: Callable[[], bool]
    ) -> str:
        try:
            place = self._place(link, slot, data, wanted)
            if data.load == "mariadb":
                return self._databases().ready(data.digest, place, wanted)
            return str(place)
        except (InputError, NotFoundError, LimitError) as error:
            raise ProgramError(
                f"The data {key!r} ({data.name} version {data.n}) cannot be used: {error.what}",
                error.why,
                error.fix,
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"The data {data.name} cannot be put in place.",
                f"The system says: {error}.",
                "Check the space and the permissions of the worker's folder.",
            ) from error

    def _databases(self) -> Databases:
        from officegrid.worker.mariadb import Databases

        return Databases(self._databases_folder)

    def _place(self, link: Link, slot: int, data: UnitData, wanted: Callable[[], bool]) -> Path:
        home = self._folder / data.digest
        if not self._is_whole(data.digest):
            if home.exists():
                log.warning("changed", data=data.name, version=data.n)
                if not self._kept.is_used_by_others(slot, data.digest):
                    self._kept.remove(slot, data.digest)  # first: there may be no room for two
            self._make_room()
            self._fetch(link, slot, data, wanted)
            log.info("ready", data=data.name, version=data.n)
        os.utime(home)
        folder = home / "folder"
        if folder.is_dir():
            return folder
        return _named(home, _safe(data.file_name))

    def _fetch(self, link: Link, slot: int, data: UnitData, wanted: Callable[[], bool]) -> None:
        present = {
            path.name: stream_of(path)
            for path in sorted(self._folder.iterdir(), key=_used_at, reverse=True)
            if path.name != data.digest and (path / NOTE).exists()
        }
        from officegrid.worker.fetching import Fetcher

        with self._kept.reading(slot, present.keys()):
            fetched = Fetcher(link, self._partial, wanted).stream(data.digest, present)
        if fetched is None:
            raise InputError(f"{data.name} version {data.n} is not a data set.")
        stream = fetched.path
        draft = self._kept.draft(data.digest)
        try:
            draft.mkdir()
            if fetched.kind == "folder":
                from officegrid.bundles.archive import extract_archive

                extract_archive(stream, "folder", draft / "folder")
            else:
                (draft / "file").mkdir()
                stream.replace(draft / "file" / _safe(data.file_name))
            set_writable(draft, False)
            draft.chmod(0o755)
            untouched.remember(draft, draft / NOTE)
            make_durable(draft)
            self._kept.put(slot, data.digest, draft)
        finally:
            remove_tree(stream)
            remove_tree(draft)

    # --- room

    def _make_room(self) -> None:
        """Drop what was not used for a month, then what was not used for longest until the rest
        fits. What slots use stays."""
        used = self._kept.used()
        limit = _cache_bytes()
        sizes = {path: _size(path) for path in self._folder.iterdir() if path.name not in used}
        kept = sum(_size(self._folder / digest) for digest in used) + sum(sizes.values())
        old = time.time() - UNUSED_DAYS * 86400
        for path in sorted(sizes, key=_used_at):
            if kept <= limit and _used_at(path) >= old:
                break
            if self._kept.evict(path.name):
                log.info("dropped", archive=path.name[:12], bytes=sizes[path])
                kept -= sizes[path]
        if self._databases_folder.is_dir():
            self._drop_databases()

    def _drop_databases(self) -> None:
        """Those whose data is not here any more."""
        databases = self._databases()
        for digest in databases.known():
            with self._kept.if_free(digest) as free:
                if free and not (self._folder / digest).exists():
                    databases.drop(digest)


def _named(home: Path, name: str) -> Path:
    """The data set that is one file, under this name: two versions may hold it under different
    ones. What programs left beside it is never taken for it. Raises OSError."""
    file = _file_of(home)
    wanted = file.with_name(name)
    if name == file.name or (wanted.is_symlink() and os.readlink(wanted) == file.name):
        return wanted
    mode = file.parent.stat().st_mode
    file.parent.chmod(mode | stat.S_IWUSR)
    try:
        remove_tree(wanted)
        wanted.symlink_to(file.name)
    finally:
        file.parent.chmod(mode)
    return wanted


def _file_of(home: Path) -> Path:
    """The file of a data set that is one file. Raises FileNotFoundError."""
    with contextlib.suppress(ValueError):
        paths: untouched.Facts = json.loads((home / NOTE).read_text())
        for path in paths:
            if path.startswith(f"file{os.sep}"):
                return home / path
    raise FileNotFoundError(f"{home / NOTE} names no file.")


def stream_of(home: Path) -> StreamOf:
    """How to get at the raw stream of a data set that is here."""

    def made(work: Path) -> Path:
        try:
            if (home / "folder").is_dir():
                from officegrid.bundles.archive import make_archive

                make_archive(home / "folder", work / "old", everything=True)
                return work / "old"
            return _file_of(home)
        except FileNotFoundError as error:  # another slot made room, or a program removed it
            raise InputError(f"The data {home.name[:12]}… is not here any more.") from error

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
