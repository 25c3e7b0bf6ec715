"""The worker's log: one line an event on stderr, `key=value`; JSON lines with OFFICEGRID_LOG=json.

Small on purpose: a worker is installed in every VM, so it brings no logging library.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import UTC, datetime

_LOCK = threading.Lock()


class Logger:
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


def _write(level: str, part: str, event: str, facts: dict[str, object]) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    if os.environ.get("OFFICEGRID_LOG") == "json":
        line = json.dumps({"at": at, "level": level, "part": part, "event": event, **facts})
    else:
        words = " ".join(f"{key}={_word(value)}" for key, value in facts.items() if value != "")
        line = f"{at} {level:7} {part}.{event} {words}".rstrip()
    with _LOCK:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or "\n" in text or not text else text
