"""Before a worker begins: which release is to run? If it is another one, become that one.

The program that is installed on a machine is only the start: it looks into the releases that were
fetched (`worker.releases`) and executes the one in force in its own place. Process id and lock
stay, so whoever supervises the worker sees no end. To change over, the worker executes the
installed program again, with the command it was started with; that decides anew.

Loads little: what runs in the end is loaded by the release itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import officegrid
from officegrid.core.updatelife import Ended, GoHome, Held, Lost, Starting
from officegrid.transport.single_instance import single_instance
from officegrid.worker.log import get_logger
from officegrid.worker.release_start import VARIABLE
from officegrid.worker.releases import Releases

log = get_logger("releases")

FIX = "Nothing to do: one worker per machine is enough; use --slots for more at once."


@dataclass(frozen=True, slots=True)
class Running:
    """The program that goes on: which release it is, and what it needs to change over. `digest` "":
    the installed program. `installed`: the version of that one."""

    releases: Releases
    digest: str
    installed: str
    _base: list[str]
    _lock: int

    def restart(self) -> NoReturn:
        """Become the installed program again, which then runs what is wanted. Never returns."""
        _execute(self._base, {"base": self._base, "lock": self._lock}, self._lock)


@contextmanager
def entered(worker: Path) -> Iterator[Running]:
    """Hold the worker's lock, with the release running that is to run. Where that is not this
    program, this process becomes it, and nothing here returns. Raises what `single_instance` does.
    """
    told = _told()
    with single_instance(worker, "worker", FIX, told.lock) as lock:
        releases = Releases(worker)
        digest = _own_digest(releases)
        base = told.base or [sys.executable, *sys.orig_argv[1:]]
        installed = (told.installed if digest else officegrid.__version__) or ""
        running = Running(releases, digest, installed, base, lock)
        if not digest:
            _change_over(running, told.digest)
            releases.tidy()
        yield running


@dataclass(frozen=True, slots=True)
class _Told:
    """What the program that this process was before has left for the next one."""

    base: list[str] = field(default_factory=list)
    lock: int | None = None
    digest: str = ""
    installed: str = ""


def _told() -> _Told:
    """Taken out of the environment: programs of jobs must not see it."""
    text = os.environ.pop(VARIABLE, "")
    try:
        told = json.loads(text) if text else {}
        lock = told.get("lock")
        return _Told(
            [str(word) for word in told.get("base", [])],
            None if lock is None else int(lock),
            str(told.get("digest", "")),
            str(told.get("installed", "")),
        )
    except (ValueError, TypeError, AttributeError):
        return _Told()


def _own_digest(releases: Releases) -> str:
    root = Path(officegrid.__file__).resolve().parents[1]
    return root.name if root.parent == releases.folder.resolve() else ""


def _change_over(running: Running, came_from: str) -> None:
    """Become the release that is wanted; returns when that is the installed program."""
    releases = running.releases
    releases.take_note()
    if releases.life.is_outgrown(running.installed):
        log.info("outgrown", installed=running.installed)
        if not releases.happened(GoHome()):
            return
    while (wanted := releases.life.wanted) is not None:
        if wanted.digest == came_from:  # its starter loaded this very program instead
            if not releases.happened(
                Ended(wanted.digest, "Another program was loaded in its place.")
            ):
                return
            continue
        if not _is_whole(releases, wanted):
            log.warning("files_lost", version=wanted.version, release=wanted.digest[:12])
            if not releases.happened(Lost(wanted.digest)):
                return
            continue
        counted = releases.happened(Starting())
        if releases.life.wanted != wanted:
            continue  # it was started in vain too often
        if not counted:  # a trial that nobody counts would never end
            wanted = releases.life.current
            if wanted is None or not _is_whole(releases, wanted):
                return
        _become(running, wanted)
    return


def _is_whole(releases: Releases, held: Held) -> bool:
    from officegrid.bundles.wheel import is_whole

    return is_whole(releases.place(held.digest))


def _become(running: Running, held: Held) -> NoReturn:
    running.releases.tidy()
    log.info("release", version=held.version, release=held.digest[:12])
    flags = ["-I"] if sys.flags.isolated else ["-P"] if sys.flags.safe_path else []
    place = running.releases.place(held.digest)
    command = [sys.executable, *flags, str(place), *sys.argv[1:]]
    told = {
        "base": running._base, "digest": held.digest, "lock": running._lock,
        "installed": running.installed,
    }  # fmt: skip
    _execute(command, told, running._lock)


def _execute(command: list[str], told: dict[str, object], lock: int) -> NoReturn:
    os.set_inheritable(lock, True)
    os.environ[VARIABLE] = json.dumps(told)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)
