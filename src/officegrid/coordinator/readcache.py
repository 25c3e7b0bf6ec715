"""Objects that many workers ask for at once are read from disk once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

MOST_BYTES = 128 * 1024 * 1024


class ReadCache:
    """The objects read last, up to `most_bytes`. Who asks while one is being read waits for it.

    Objects never change, so nothing in here can be old. Safe for any number of threads.
    """

    def __init__(self, read: Callable[[str], bytes], most_bytes: int = MOST_BYTES) -> None:
        self._read = read
        self._most_bytes = most_bytes
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._held_bytes = 0
        self._reading: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self.reads = 0
        """How often the disk was asked."""

    def get(self, sha256: str) -> bytes:
        """The object's bytes. What `read` raises passes through, to each that waited by a read of
        its own."""
        while True:
            with self._lock:
                found = self._held.get(sha256)
                if found is not None:
                    self._held.move_to_end(sha256)
                    return found
                ready = self._reading.get(sha256)
                if ready is None:
                    ready = self._reading[sha256] = threading.Event()
                    break
            ready.wait()
        try:
            content = self._read(sha256)
            with self._lock:
                self.reads += 1
                self._keep(sha256, content)
            return content
        finally:
            with self._lock:
                del self._reading[sha256]
            ready.set()

    def _keep(self, sha256: str, content: bytes) -> None:
        if len(content) > self._most_bytes:
            return
        self._held[sha256] = content
        self._held_bytes += len(content)
        while self._held_bytes > self._most_bytes:
            self._held_bytes -= len(self._held.popitem(last=False)[1])
