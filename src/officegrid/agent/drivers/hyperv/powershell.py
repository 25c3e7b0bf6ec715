"""The narrow interface to PowerShell: run one script, get its outputs, or a ScriptError.

    shell = PowerShell(program)
    outputs = shell.run(scripts.pause(vm_id), timeout_s=3)

Starting PowerShell and loading the Hyper-V module takes one to two seconds, too long for somebody
who has just sat down. So one process is kept open and reads scripts from its standard input
(session.py). Where that does not work, each script gets a process of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from officegrid.agent.drivers import command
from officegrid.agent.drivers.hyperv import scripts
from officegrid.agent.drivers.hyperv.session import ARGUMENTS, Session, SessionEnded, SessionSilent
from officegrid.agent.log import get_logger

log = get_logger("hyperv")

_DISTRUST_S = 300.0
"""After a session has failed twice running, how long each script gets a process of its own."""
_LONGEST_ARGUMENT = 30_000
"""Windows allows 32767 characters in a command line."""


class ScriptError(Exception):
    """The script ran and raised: what of PowerShell's error record is not localised."""

    def __init__(self, category: str, error_id: str, hresult: int, message: str) -> None:
        super().__init__(message or error_id)
        self.category = category
        self.error_id = error_id
        """FullyQualifiedErrorId: `OutOfMemory,Microsoft.HyperV.PowerShell.Commands.StartVM`."""
        self.hresult = hresult & 0xFFFFFFFF
        self.message = message


class ShellProblem(Exception):  # noqa: N818 (also a script that was given up on purpose)
    """PowerShell did not run the script to its end, or did not answer in our form."""


class ShellMissing(ShellProblem):
    """There is no such program."""


class ShellRestricted(ShellProblem):
    """A policy keeps PowerShell in a restricted language mode."""


class ShellTimeout(ShellProblem):
    """No answer in time; whether the script has run, and how far, is not known."""


class ShellCancelled(ShellProblem):
    """`cancel` was set; whether the script has run, and how far, is not known."""


def find_powershell(chosen: str) -> Path | None:
    """The program, or None. `chosen` is the option `powershell`: a file, used as it is."""
    if chosen:
        path = Path(chosen)
        return path if path.is_file() else None
    if sys.platform != "win32":
        return None
    root = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
    # Sysnative: what a 32-bit Python must say to reach the 64-bit one, which has the module.
    for folder in ("Sysnative", "System32"):
        path = root / folder / "WindowsPowerShell" / "v1.0" / "powershell.exe"
        if path.is_file():
            return path
    found = shutil.which("powershell.exe") or shutil.which("pwsh.exe")
    return Path(found) if found else None


class PowerShell:
    """Runs scripts one after another. `run` may be called from any thread."""

    def __init__(self, program: Path, *, keep: bool) -> None:
        self.program = program
        self._keep = keep
        self._turn = threading.Lock()
        self._session: Session | None = None
        self._failures = 0
        self._distrust_until_s = 0.0
        self._used_s = 0.0

    def run(
        self, body: str, *, timeout_s: float, cancel: threading.Event | None = None
    ) -> list[Any]:
        """The outputs of the script. Raises ScriptError, or a ShellProblem.

        A script is sent again, to a process of its own, if the kept one has died over it: each
        that comes here must stand that.
        """
        deadline_s = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            raise ShellTimeout(f"An earlier script has not ended within {timeout_s:g} s.")
        try:
            if self._keep and time.monotonic() >= self._distrust_until_s:
                try:
                    return self._in_session(body, deadline_s, cancel)
                except SessionEnded as error:
                    log.warning("powershell_ended", why=error)
                    self._failed()
            return self._alone(body, deadline_s, cancel)
        finally:
            self._used_s = time.monotonic()
            self._turn.release()

    def _in_session(
        self, body: str, deadline_s: float, cancel: threading.Event | None
    ) -> list[Any]:
        session = self._session
        if session is None or not session.alive:
            self._drop()
            try:
                session = self._session = Session(self.program)
            except OSError as error:
                raise _missing(self.program, error) from None
        begin, end = _marks()
        try:
            text = session.ask(
                scripts.wrapped(body, begin, end), end, deadline_s - time.monotonic(), cancel
            )
        except SessionSilent as error:
            # Whatever it hangs in, it would answer the next script as little.
            self._failed()
            if cancel is not None and cancel.is_set():
                self._failures = 0
                raise ShellCancelled("The script was given up.") from None
            raise ShellTimeout(str(error)) from None
        answer = _answer(text, begin, end)
        self._failures = 0
        return answer.outputs()

    def _alone(self, body: str, deadline_s: float, cancel: threading.Event | None) -> list[Any]:
        begin, end = _marks()
        script = scripts.wrapped(body, begin, end)
        if len(script) > _LONGEST_ARGUMENT:
            raise ShellProblem("The script is too long for a command line.")
        try:
            finished = command.run(
                [str(self.program), *ARGUMENTS, "-Command", script],
                timeout_s=max(0.1, deadline_s - time.monotonic()),
                cancel=cancel,
            )
        except command.CommandMissing as error:
            raise ShellMissing(str(error)) from None
        except command.CommandTimeout as error:
            raise ShellTimeout(f"{error}.") from None
        except command.CommandCancelled:
            raise ShellCancelled("The script was given up.") from None
        return _answer(finished.stdout + finished.stderr, begin, end).outputs()

    def _failed(self) -> None:
        self._drop()
        self._failures += 1
        if self._failures >= 2:
            log.warning("powershell_not_kept", for_s=_DISTRUST_S, why="it has failed twice")
            self._failures = 0
            self._distrust_until_s = time.monotonic() + _DISTRUST_S

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def warm(self) -> bool:
        """Would a script run without a start of PowerShell, or can none be kept?"""
        if not self._keep or time.monotonic() < self._distrust_until_s:
            return True
        session = self._session
        return session is not None and session.alive

    def rest(self, after_s: float) -> None:
        """End the kept process if nothing has been asked for so long: it holds some 70 MB."""
        if self._session is None or time.monotonic() - self._used_s < after_s:
            return
        if self._turn.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._turn.release()

    def close(self) -> None:
        with self._turn:
            self._drop()


class _Answer:
    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def outputs(self) -> list[Any]:
        error = self._fields.get("error")
        if error is not None:
            raise ScriptError(
                str(error.get("category") or ""),
                str(error.get("id") or ""),
                int(error.get("hresult") or 0),
                str(error.get("message") or "").strip(),
            )
        return items(self._fields.get("value"))


def items(value: object) -> list[Any]:
    """A list from what ConvertTo-Json makes of one: a list, a lone item, nothing, or, by a fault
    of Windows PowerShell 5.1, {"value": […], "Count": 2}."""
    if isinstance(value, dict) and set(value) == {"value", "Count"}:
        value = value["value"]
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _marks() -> tuple[str, str]:
    nonce = secrets.token_hex(4)
    return f"[officegrid {nonce}", f"officegrid {nonce}]"


def _answer(text: str, begin: str, end: str) -> _Answer:
    """What lies between the marks; all else (greetings, warnings, a BOM) is noise."""
    stop = text.rfind(end)
    start = text.rfind(begin, 0, stop) if stop >= 0 else -1
    if start < 0:
        tail = " ".join(text.split())[-400:]
        raise ShellProblem(f"PowerShell did not answer as expected. It said: {tail or 'nothing'}")
    body = text[start + len(begin) : stop].replace("\r", "").replace("\n", "").strip("\ufeff ")
    if body == scripts.LANGUAGE_MODE:
        raise ShellRestricted("PowerShell runs in a restricted language mode.")
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise ShellProblem(f"PowerShell's answer is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ShellProblem("PowerShell's answer is not an object.")
    return _Answer(fields)


def _missing(program: Path, error: OSError) -> ShellMissing:
    return ShellMissing(f"{program} cannot be started: {error.strerror or error}")
