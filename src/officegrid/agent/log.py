"""The agent's log: one line an event, `key=value`; JSON lines with OFFICEGRID_LOG=json.

It goes to stderr, which the service manager keeps, or to a file of bounded size where there is no
stderr (a Windows service). Small on purpose: the agent brings no logging library to a desktop.
Never put a join code or a token into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

_MOST_FILE_BYTES = 2 * 2**20
_LOCK = threading.Lock()
_file: Path | None = None


class Logger:
    """The log of one part of the agent."""

    def __init__(self, part: str) -> None:
        self._part = part

    def info(self, event: str, **facts: object) -> None:
        _write("info", self._part, event, facts)

    def warning(self, event: str, **facts: object) -> None:
        _write("warning", self._part, event, facts)

    def error(self, event: str, **facts: object) -> None:
        _write("error", self._part, event, facts)


def get_logger(part: str) -> Logger:
    return Logger(part)


def log_to(path: Path | None) -> None:
    """Write to this file from now on (None: to stderr). At 2 MiB it becomes `<name>.old`."""
    global _file
    with _LOCK:
        _file = path


def _write(level: str, part: str, event: str, facts: dict[str, object]) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    if os.environ.get("OFFICEGRID_LOG") == "json":
        told = {"at": at, "level": level, "part": part, "event": event, **facts}
        line = json.dumps(told, default=str)
    else:
        words = " ".join(f"{key}={_word(value)}" for key, value in facts.items() if value != "")
        line = f"{at} {level:7} {part}.{event} {words}".rstrip()
    # A log that cannot be written (disk full, stderr gone) must not stop the agent.
    with _LOCK, contextlib.suppress(OSError, ValueError):
        if _file is not None:
            _append(_file, line)
        elif sys.stderr is not None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _append(path: Path, line: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _MOST_FILE_BYTES:
            os.replace(path, path.with_name(path.name + ".old"))
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or "\n" in text or not text else text
