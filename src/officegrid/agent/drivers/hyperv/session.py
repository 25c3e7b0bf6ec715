"""One PowerShell process kept open, reading scripts from its standard input.

`powershell.exe -Command -` treats its input as if it were typed: a statement runs as soon as its
line is complete (Microsoft Learn, about_PowerShell_exe). So each script is one line, and a blank
line after it ends it even where PowerShell takes it for unfinished. The process ends by itself
when its input is closed, hence also when the agent dies.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import IO

from officegrid.agent.drivers.command import decode

ARGUMENTS = ("-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass")
_MOST_BYTES = 4 * 1024 * 1024
_CLOSE_S = 1.0


class SessionEnded(Exception):  # noqa: N818 (not always a fault)
    """The process has ended, or ended instead of answering."""


class SessionSilent(Exception):  # noqa: N818
    """No answer in time, or the caller gave up. The session is of no use any more."""


class Session:
    """One process; one script at a time. Raises OSError if it cannot be started."""

    def __init__(self, program: Path) -> None:
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        self._process = subprocess.Popen(
            [str(program), *ARGUMENTS, "-Command", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=os.name == "posix",
            creationflags=flags,
        )
        self._heard = _Ear(self._process.stdout)
        self._finalizer = weakref.finalize(self, _end, self._process, self._heard)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(
        self, line: str, end: str, timeout_s: float, cancel: threading.Event | None = None
    ) -> str:
        """Send one line; what was said until the line `end`. Raises SessionEnded, SessionSilent;
        after SessionSilent only `close` makes sense."""
        assert "\n" not in line
        self._heard.forget()
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode("ascii") + b"\n\n")
        except OSError as error:
            raise SessionEnded(str(error)) from None
        deadline_s = time.monotonic() + timeout_s
        while True:
            text, over = self._heard.wait(end, min(deadline_s, time.monotonic() + 0.02), cancel)
            if end in text:
                return text
            if over:
                raise SessionEnded(" ".join(text.split())[-400:] or "it said nothing")
            if cancel is not None and cancel.is_set():
                raise SessionSilent("The script was given up.")
            if time.monotonic() >= deadline_s:
                said = " ".join(text.split())[-400:]
                more = f" It said: {said}" if said else ""
                raise SessionSilent(f"PowerShell did not answer within {timeout_s:.1f} s.{more}")

    def close(self) -> None:
        """End the process, by force if it does not leave."""
        self._finalizer()


class _Ear:
    """Collects what the process says, in a thread."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._news = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._over = False
        self.thread = threading.Thread(target=self._listen, name="powershell", daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        with self._pipe as pipe:
            while True:
                try:
                    chunk = pipe.read(65536)
                except (OSError, ValueError):
                    chunk = b""
                with self._news:
                    if not chunk:
                        self._over = True
                    elif sum(map(len, self._chunks)) < _MOST_BYTES:
                        self._chunks.append(chunk)
                    self._news.notify_all()
                if not chunk:
                    return

    def forget(self) -> None:
        with self._news:
            self._chunks.clear()

    def wait(self, end: str, until_s: float, cancel: threading.Event | None) -> tuple[str, bool]:
        """What was said so far, as soon as it holds `end`, and whether that was all."""
        with self._news:
            while True:
                text = decode(b"".join(self._chunks))
                left_s = until_s - time.monotonic()
                given_up = cancel is not None and cancel.is_set()
                if end in text or self._over or left_s <= 0 or given_up:
                    return text, self._over
                self._news.wait(left_s)


def _end(process: subprocess.Popen[bytes], ear: _Ear) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(_CLOSE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_CLOSE_S)
    ear.thread.join(_CLOSE_S)
