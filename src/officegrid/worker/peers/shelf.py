"""Objects as they came over the wire, kept for a while so that others can have them.

    <folder>/<sha256>     one object

Nothing here is needed: losing any of it costs another fetch. So it makes way for data that is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from officegrid.wire.peers import MOST_HELD
from officegrid.worker.log import get_logger

log = get_logger("peers")

MOST_OBJECT_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[0-9a-f]{64}")


class Shelf:
    """At most `most_bytes` of objects; those that were used least lately make way. Thread-safe."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Raises OSError."""
        self.most_bytes = most_bytes
        self._folder = folder
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the one used last comes last
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name):
                facts = path.stat()
                found.append((facts.st_mtime, path.name, facts.st_size))
            else:  # an unfinished one, of a worker that was killed
                path.unlink(missing_ok=True)
        for _, name, size in sorted(found):
            self._sizes[name] = size
        self._make_room(0)

    def __contains__(self, sha256: str) -> bool:
        with self._lock:
            return sha256 in self._sizes

    def names(self) -> list[str]:
        """What is here, the one used last first; as many as can be told to the coordinator."""
        with self._lock:
            return list(reversed(self._sizes))[:MOST_HELD]

    def get(self, sha256: str) -> bytes | None:
        """The object's bytes, verified; None when it is not here, or not what it should be."""
        with self._lock:
            if sha256 not in self._sizes:
                return None
            self._sizes.move_to_end(sha256)
        path = self._folder / sha256
        try:
            payload = path.read_bytes()
            if hashlib.sha256(payload).hexdigest() == sha256:
                with contextlib.suppress(OSError):  # it may just have made way
                    os.utime(path)
                return payload
            log.warning("damaged", object=sha256[:12])
        except OSError as error:
            log.warning("unreadable", object=sha256[:12], why=str(error))
        self._remove(sha256)
        return None

    def put(self, sha256: str, payload: bytes, spare_bytes: int = 0) -> bool:
        """Keep an object whose digest was checked; False when there is no place for it, or when
        the disk would have less than `spare_bytes` left."""
        if len(payload) > min(MOST_OBJECT_BYTES, self.most_bytes):
            return False
        self._make_room(len(payload))
        draft = self._folder / f".{sha256}.{secrets.token_hex(4)}"
        try:
            if shutil.disk_usage(self._folder).free < spare_bytes + len(payload):
                return False
            draft.write_bytes(payload)
            draft.replace(self._folder / sha256)
        except OSError as error:
            log.warning("not_kept", object=sha256[:12], why=str(error))
            with contextlib.suppress(OSError):
                draft.unlink()
            return False
        with self._lock:
            self._sizes[sha256] = len(payload)
            self._sizes.move_to_end(sha256)
        return True

    def prefer(self, names: Iterable[str]) -> None:
        """These are about to be used: others make way first."""
        with self._lock:
            for name in names:
                if name in self._sizes:
                    self._sizes.move_to_end(name)

    def leave_free(self, spare_bytes: int) -> bool:
        """Make way until the disk has so much left, or nothing is here; False: it has less."""
        while True:
            with self._lock:
                name = next(iter(self._sizes), None)
            try:
                if shutil.disk_usage(self._folder).free >= spare_bytes:
                    return True
            except OSError:
                return False
            if name is None:
                return False
            self._remove(name)

    def clear(self) -> None:
        with self._lock:
            names = list(self._sizes)
        for name in names:
            self._remove(name)

    def _make_room(self, new_bytes: int) -> None:
        with self._lock:
            held = sum(self._sizes.values())
            old = []
            while self._sizes and held + new_bytes > self.most_bytes:
                name, size = self._sizes.popitem(last=False)
                held -= size
                old.append(name)
        for name in old:
            self._remove(name)

    def _remove(self, sha256: str) -> None:
        with self._lock:
            self._sizes.pop(sha256, None)
        with contextlib.suppress(OSError):
            (self._folder / sha256).unlink()
