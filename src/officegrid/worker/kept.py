"""Folders that slots share, by digest: put in place whole, taken away whole, never under a program.

A folder that has to make way (somebody changed it, room is needed) is renamed first: what a killed
worker leaves of it has another name and is never taken for whole. While another slot's program
works in it, it stays under that other name until that slot has gone on to something else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from officegrid.core.errors import UnavailableError
from officegrid.worker.link import GaveUp
from officegrid.worker.log import get_logger

_ANY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_CUT_OFF = (".partial", ".partial.pieces")
CUT_OFF_DAYS = 7.0
"""How long a download that broke off waits to be gone on with."""
_POLL_S = 0.2
_NOBODY = -1
log = get_logger("kept")


@dataclass(frozen=True, slots=True)
class _Gone:
    """A folder that was replaced, and the slots whose programs still work in it."""

    name: str
    path: Path
    slots: set[int]


class Kept:
    """`homes/<name>` are the folders; `aside`, on the same disk, takes drafts and what made way.

    Thread-safe. A name is put in place, changed and removed only inside `alone` or `if_free`.
    """

    def __init__(self, homes: Path, aside: Path) -> None:
        self._homes = homes
        self._aside = aside
        self._book = threading.Lock()  # held for moments only
        self._names: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._used: dict[int, frozenset[str]] = {}
        self._gone: list[_Gone] = []
        for path in (homes, aside):
            path.mkdir(parents=True, exist_ok=True)
        self._sweep()

    # --- who uses what

    def use(self, slot: int, names: Collection[str]) -> None:
        """From now on the slot uses these, and nothing that it used before."""
        with self._book:
            self._used[slot] = frozenset(names)
        self._leave(slot)

    def release(self, slot: int) -> None:
        with self._book:
            self._used.pop(slot, None)
        self._leave(slot)

    def is_current(self, slot: int) -> bool:
        """False where something that the slot's program works in was replaced since."""
        with self._book:
            return not any(slot in gone.slots for gone in self._gone)

    def settle(self, slot: int, name: str) -> None:
        """The slot has not started its program yet: it will see what is in place now."""
        self._leave(slot, name)

    def used(self) -> frozenset[str]:
        with self._book:
            return frozenset().union(*self._used.values())

    def is_used_by_others(self, slot: int, name: str) -> bool:
        with self._book:
            return bool(self._users(name) - {slot})

    @contextlib.contextmanager
    def reading(self, slot: int, names: Collection[str]) -> Iterator[None]:
        """None of these is removed meanwhile: the slot makes another version from one of them."""
        reader = _NOBODY - 1 - slot
        self.use(reader, names)
        try:
            yield
        finally:
            self.release(reader)

    def _users(self, name: str) -> set[int]:
        return {slot for slot, names in self._used.items() if name in names}

    def _leave(self, slot: int, name: str | None = None) -> None:
        with self._book:
            for gone in self._gone:
                if name in (None, gone.name):
                    gone.slots.discard(slot)
            left = [gone.path for gone in self._gone if not gone.slots]
            self._gone = [gone for gone in self._gone if gone.slots]
        for path in left:
            remove_tree(path)

    # --- who may change what

    @contextlib.contextmanager
    def alone(self, name: str, wanted: Callable[[], bool]) -> Iterator[None]:
        """Nobody else fetches, changes or removes `name` meanwhile. Raises GaveUp when it is not
        wanted any more."""
        lock = self._lock_of(name)
        while not lock.acquire(timeout=_POLL_S):
            if not wanted():
                raise GaveUp
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def if_free(self, name: str) -> Iterator[bool]:
        """False where a slot uses, fetches or changes it. Else nobody begins to meanwhile."""
        lock = self._lock_of(name)
        if not lock.acquire(blocking=False):
            yield False
            return
        try:
            yield name not in self.used()
        finally:
            lock.release()

    def _lock_of(self, name: str) -> threading.Lock:
        with self._book:
            return self._names[name]

    # --- folders

    def draft(self, name: str) -> Path:
        """A free name for what is to become `name`."""
        return self._aside / f"{name}.{secrets.token_hex(4)}.new"

    def put(self, slot: int, name: str, draft: Path) -> None:
        """`draft` takes its place; the slot's program does not run. Raises OSError."""
        home = self._homes / name
        _make_movable(draft)
        if not home.exists():
            draft.rename(home)
            return
        _make_movable(home)
        gone = self._aside_name(name)
        if _exchange(draft, home):  # programs that look there find the one or the other
            draft.rename(gone)
        else:
            home.rename(gone)
            draft.rename(home)
        self._is_gone(slot, name, gone)

    def evict(self, name: str) -> bool:
        """Remove it if no slot uses, fetches or changes it, and the system allows it."""
        with self.if_free(name) as free:
            if not free:
                return False
            try:
                self.remove(_NOBODY, name)
            except UnavailableError as error:
                log.warning("not_removed", what=error.what, why=error.why)
                return False
            return True

    def remove(self, slot: int, name: str) -> None:
        """Whole, or not at all. Raises UnavailableError where the system does not allow it."""
        home, gone = self._homes / name, self._aside_name(name)
        try:
            _make_movable(home)
            home.rename(gone)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UnavailableError(
                f"{home} cannot be removed.",
                f"The system says: {error.strerror or error}.",
                "Check the permissions of the worker's folder.",
            ) from error
        self._is_gone(slot, name, gone)

    def _is_gone(self, slot: int, name: str, path: Path) -> None:
        with self._book:
            slots = self._users(name)
            slots.discard(slot)
            if slots:
                self._gone.append(_Gone(name, path, slots))
                return
        remove_tree(path)

    def _aside_name(self, name: str) -> Path:
        return self._aside / f"{name}.{secrets.token_hex(4)}.gone"

    def _sweep(self) -> None:
        """Remove what an earlier worker left when it was killed, but for downloads to go on with,
        and what it had half unpacked."""
        long_ago = time.time() - CUT_OFF_DAYS * 86400
        for path in self._aside.iterdir():
            with contextlib.suppress(OSError):
                if not path.name.endswith(_CUT_OFF) or path.stat().st_mtime < long_ago:
                    remove_tree(path)
        for path in self._homes.glob(".*.part"):
            remove_tree(path)


def remove_tree(path: Path) -> None:
    """A file, or a folder although it is read-only; as far as the system allows it."""
    if path.is_dir() and not path.is_symlink():
        set_writable(path, True)
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


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


def _make_movable(folder: Path) -> None:
    """A folder that moves to another one gets a new `..`: its own mode has to allow that."""
    mode = folder.stat().st_mode
    if not mode & stat.S_IWUSR:
        folder.chmod(mode | stat.S_IWUSR)


def _exchange(one: Path, other: Path) -> bool:
    """Let the two change names, with no moment at which one is missing; False where the system
    cannot (Linux can, on nearly all of its file systems)."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        import ctypes  # few workers ever need it

        renameat2 = ctypes.CDLL(None).renameat2
    except (ImportError, AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
