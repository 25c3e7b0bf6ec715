"""Objects as they came over the wire, kept for a while so that others can have them.

    <folder>/<sha256>     one object

Only what was fetched in the last days and fits in is here. Losing any of it costs another fetch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from officegrid.wire.peers import MOST_HELD
from officegrid.worker.log import get_logger

log = get_logger("peers")

MOST_OBJECT_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[0-9a-f]{64}")


class Shelf:
    """At most `most_bytes` of objects; those that were used least lately make way. Thread-safe."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
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
                os.utime(path)
                return payload
            log.warning("damaged", object=sha256[:12])
        except OSError as error:
            log.warning("unreadable", object=sha256[:12], why=str(error))
        self._remove(sha256)
        return None

    def put(self, sha256: str, payload: bytes) -> bool:
        """Keep an object whose digest was checked; False when there is no place for it."""
        if len(payload) > min(MOST_OBJECT_BYTES, self.most_bytes):
            return False
        self._make_room(len(payload))
        draft = self._folder / f".{sha256}.{secrets.token_hex(4)}"
        try:
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
