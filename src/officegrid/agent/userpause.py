"""The desk user's "not now": kept in a file, so that it outlives the agent and the PC's power.

`pause.json` is {"until_s": seconds since the epoch, or null for ever, "by": who}. A caller who may
write the file can also change it while no agent runs; the agent looks at it every few seconds. A
file that cannot be understood counts as a pause for ever: somebody wanted one.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from pathlib import Path

from officegrid.agent.files import read_json, write_json
from officegrid.core.desk import FOREVER_S
from officegrid.core.errors import UnavailableError


class UserPause:
    """Thread-safe. `until_s()` is cheap enough for every sample."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        self._until_s: float | None = None

    def until_s(self) -> float | None:
        """Wall-clock seconds until which the desk user wants peace; infinity: for ever."""
        with self._lock:
            try:
                about = self._path.stat()
            except OSError:
                self._seen, self._until_s = None, None
                return None
            if (about.st_mtime_ns, about.st_size) != self._seen:
                self._seen = (about.st_mtime_ns, about.st_size)
                self._until_s = _read(self._path)
            return self._until_s

    def by(self) -> str | None:
        """Who wanted the pause that is in force; "": not known; None: there is none."""
        until_s = self.until_s()
        if until_s is None or until_s <= time.time():
            return None
        by = (read_json(self._path) or {}).get("by")
        return by if isinstance(by, str) else ""

    def set(self, until_s: float | None, by: str) -> None:
        """Pause until then (None: for ever). Raises UnavailableError if it cannot be kept."""
        if until_s is not None and until_s <= time.time():
            self.clear()
            return
        kept = until_s if until_s is not None and math.isfinite(until_s) else None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(self._path, {"until_s": kept, "by": by})
        except OSError as error:
            raise _not_kept(self._path, error) from None

    def clear(self) -> None:
        """End the pause. Raises UnavailableError if the file cannot be removed."""
        try:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        except OSError as error:
            raise _not_kept(self._path, error) from None


def _read(path: Path) -> float:
    kept = read_json(path)
    until_s = kept.get("until_s") if kept else None
    if isinstance(until_s, int | float) and not isinstance(until_s, bool):
        return float(until_s)
    return FOREVER_S


def _not_kept(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        "The pause cannot be changed.",
        f"{path}: {error.strerror or error}.",
        "Free some disk space, or ask your administrator to check the rights of the folder.",
    )
