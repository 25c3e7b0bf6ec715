"""The releases that a worker has fetched, on its disk.

    <worker>/releases/state.json       a `core.updatelife.Life`
    <worker>/releases/ended.json       what a release left that gave up, see `worker.release_start`
    <worker>/releases/<digest>/        an unpacked wheel, whole or not there at all

An installed program and the releases it starts are of different versions: what is in these files
may gain keys, and none may change its meaning.

Only the process that holds the worker's lock changes anything here, except that a release writes
its `ended.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from officegrid.core.updatelife import (
    Ended,
    Event,
    Failure,
    Held,
    Life,
    Stopped,
    step,
)
from officegrid.worker.log import get_logger

log = get_logger("releases")

STATE_FILE = "state.json"
ENDED_FILE = "ended.json"


class Releases:
    """See the module. `life` is what the disk says."""

    def __init__(self, worker: Path) -> None:
        self.folder = worker / "releases"
        self.life = _read_life(self.folder / STATE_FILE)

    def place(self, digest: str) -> Path:
        """The folder of a release, whether or not it is there."""
        return self.folder / digest

    def happened(self, event: Event) -> bool:
        """Take an event in, durably. False, and nothing has changed, where the disk cannot take
        it."""
        after = step(self.life, event)
        if after == self.life:
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(self.folder / STATE_FILE, asdict(after))
        except OSError as error:
            log.error("not_kept", what=type(event).__name__, why=error.strerror or error)
            return False
        for digest, failure in after.failed.items():
            if self.life.failed.get(digest) != failure:
                log.error("release_failed", version=failure.version, why=failure.why)
        self.life = after
        return True

    def take_note(self) -> None:
        """What a release has left behind at its end becomes part of the life."""
        path = self.folder / ENDED_FILE
        note = _read_json(path)
        digest, why = note.get("digest"), note.get("why", "")
        if not isinstance(digest, str) or not isinstance(why, str):
            return
        if self.happened(Stopped(digest) if note.get("stopped") else Ended(digest, why)):
            with contextlib.suppress(OSError):
                path.unlink()

    def tidy(self) -> None:
        """Remove what is not needed: old releases, and what a crash has left."""
        kept = {*self.life.kept(), STATE_FILE, ENDED_FILE}
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.name not in kept:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)


def _read_life(path: Path) -> Life:
    """A file that cannot be read is as none: the installed program runs, and is told to update."""
    plain = _read_json(path)
    try:
        return Life(
            current=_held(plain.get("current")), previous=_held(plain.get("previous")),
            trial=_held(plain.get("trial")), starts=int(plain.get("starts", 0)),
            failed={
                str(digest): Failure(str(one["version"]), int(one["number"]), str(one["why"]))
                for digest, one in plain.get("failed", {}).items()
            },
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        log.warning("not_understood", path=path)
        return Life()


def _held(plain: Any) -> Held | None:
    if plain is None:
        return None
    digest = str(plain["digest"])
    if len(digest) != 64 or not digest.isalnum():  # it names a folder
        raise ValueError(digest)
    installed = str(plain.get("installed", ""))
    return Held(digest, str(plain["version"]), int(plain["number"]), installed)


def _read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    return {}


def _write(path: Path, value: object) -> None:
    """Replace a file, so that a crash or a power cut leaves the old or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)
