"""Run one external command of a hypervisor: never hang, never localised, never a console window.

Every driver that talks to a command-line tool (virsh, VBoxManage, PowerShell) does it here:

    finished = run(["virsh", "domstate", "GridMachine"], timeout_s=10)
    if finished.exit_code: ...

The command runs in its own process group without a terminal, with messages in English
(LC_ALL=C) and its output decoded, CRLF turned into LF. When its time is over it is killed, and
whatever it started in its group with it. A daemon that the command leaves behind (VBoxSVC,
libvirtd started on demand) may keep the output pipes open: `run` does not wait for those.

What is raised is plain (`CommandTimeout`, `CommandMissing`, `CommandCancelled`): drivers turn it
into DriverError with sentences of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TypeVar

import psutil

Result = TypeVar("Result")
MOST_OUTPUT_BYTES = 8 * 1024 * 1024
"""Kept of each of stdout and stderr; the rest is read and dropped."""
PIPE_GRACE_S = 0.5
"""After the command has ended, how long its last output may take to arrive."""
ENGLISH = {"LC_ALL": "C", "LANG": "C", "LANGUAGE": "C"}


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended by itself."""

    argv: tuple[str, ...]
    exit_code: int
    """On POSIX, minus the signal number if a signal ended it."""
    stdout: str
    stderr: str
    seconds: float
    cut: bool = False
    """There was more output than MOST_OUTPUT_BYTES."""


class CommandProblem(Exception):  # noqa: N818 (also a command that ran as asked: cancelled)
    """Base of what `run` raises."""

    def __init__(self, argv: Sequence[str], text: str) -> None:
        super().__init__(text)
        self.argv = tuple(argv)


class CommandMissing(CommandProblem):
    """There is no such program, or it cannot be executed."""


class CommandTimeout(CommandProblem):
    """It did not end in time and was killed; what it had said by then is in stdout and stderr."""

    def __init__(self, argv: Sequence[str], timeout_s: float, stdout: str, stderr: str) -> None:
        super().__init__(argv, f"{os.path.basename(argv[0])} did not end within {timeout_s:g} s")
        self.timeout_s = timeout_s
        self.stdout = stdout
        self.stderr = stderr


class CommandCancelled(CommandProblem):
    """`cancel` was set while it ran; it was killed."""


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input: str | bytes | None = None,
    cancel: threading.Event | None = None,
    background: bool = False,
) -> Finished:
    """Run a command to its end. A non-zero exit code is not an error here.

    `env` is laid over our own environment and the C locale; None removes a variable. Without
    `input` the command's stdin is empty. `background`: at the lowest CPU and disk priority, for
    long work that nobody waits for. Raises CommandMissing, CommandTimeout, and, if `cancel`
    is given, CommandCancelled within some 20 ms of its being set.
    """
    words = tuple(os.fspath(word) for word in argv)
    started = time.monotonic()
    process = _start(words, env, cwd, wants_input=input is not None)
    if background:
        yield_to_others(process.pid)
    out, err = _Drain(process.stdout), _Drain(process.stderr)
    if input is not None:
        _feed(process.stdin, input.encode() if isinstance(input, str) else input)
    try:
        ended = _wait(process, started + timeout_s, cancel)
    except BaseException:
        _kill_group(process)
        raise
    if not ended:
        _kill_group(process)
    give_up = time.monotonic() + PIPE_GRACE_S
    stdout, stderr = out.text(give_up), err.text(give_up)
    if ended:
        cut = out.cut or err.cut
        seconds = time.monotonic() - started
        return Finished(words, process.returncode, stdout, stderr, seconds, cut)
    if cancel is not None and cancel.is_set():
        raise CommandCancelled(words, f"{os.path.basename(words[0])} was cancelled")
    raise CommandTimeout(words, timeout_s, stdout, stderr)


def yield_to_others(task: int) -> None:
    """Lowest CPU and disk priority for a process, or on Linux one thread; as far as allowed."""
    # An order on Linux and macOS, a class on Windows.
    with contextlib.suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            psutil.Process(task).nice(psutil.IDLE_PRIORITY_CLASS)
        else:
            psutil.Process(task).nice(19)
    with contextlib.suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            psutil.Process(task).ionice(psutil.IOPRIO_VERYLOW)
        elif sys.platform.startswith("linux"):
            psutil.Process(task).ionice(psutil.IOPRIO_CLASS_IDLE)


def in_background(work: Callable[[], Result]) -> Result:
    """Do `work` in a thread of its own, at the lowest priority where threads have one (Linux);
    returns or raises what it does."""
    results: list[Result] = []
    problems: list[BaseException] = []

    def at_low_priority() -> None:
        if sys.platform.startswith("linux"):
            yield_to_others(threading.get_native_id())
        try:
            results.append(work())
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=at_low_priority, name="background-work", daemon=True)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return results[0]


def _start(
    argv: tuple[str, ...],
    env: Mapping[str, str | None] | None,
    cwd: str | os.PathLike[str] | None,
    *,
    wants_input: bool,
) -> subprocess.Popen[bytes]:
    merged: dict[str, str] = {**os.environ, **ENGLISH}
    for key, value in (env or {}).items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if wants_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=merged,
            cwd=cwd,
            start_new_session=os.name == "posix",
            creationflags=flags,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise CommandMissing(argv, f"{argv[0]} cannot be started: {reason}") from error


def _wait(
    process: subprocess.Popen[bytes], deadline_s: float, cancel: threading.Event | None
) -> bool:
    """True: ended by itself. Polls, at first often: pausing a VM must not wait for a clock tick."""
    delay_s = 0.0005
    while process.poll() is None:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        delay_s = min(delay_s * 1.5, 0.02, left_s)
        if cancel is None:
            time.sleep(delay_s)
        elif cancel.wait(delay_s):
            return process.poll() is not None
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the command and what it started; does not wait for processes that cannot be killed."""
    if sys.platform == "win32":
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except (psutil.Error, OSError):
            family = []
        process.kill()
        for child in family:
            try:
                child.kill()
            except (psutil.Error, OSError):
                continue
    else:
        try:
            # Not reaped yet, so the number still is this group's.
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        # In an uninterruptible system call (a dead network disk). It dies when that returns;
        # the verb must not wait for it.
        threading.Thread(target=process.wait, daemon=True).start()


class _Drain:
    """Reads one pipe to its end in a thread, so that a full pipe never blocks the command."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self._pipe = pipe
        self._kept = bytearray()
        self.cut = False
        self._thread = threading.Thread(target=self._read, name="command-output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe as pipe:
            while chunk := pipe.read(65536):
                room = MOST_OUTPUT_BYTES - len(self._kept)
                self._kept += chunk[:room]
                self.cut = self.cut or len(chunk) > room

    def text(self, give_up_s: float) -> str:
        self._thread.join(max(0.0, give_up_s - time.monotonic()))
        return decode(bytes(self._kept))


def _feed(pipe: IO[bytes] | None, data: bytes) -> None:
    """Write the command's input in a thread: it may end, or write much, before it reads all."""
    assert pipe is not None

    def write() -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[pipe.write(view) or 0 :]
        except OSError:  # it has ended, or closed its input: its exit code tells
            pass
        finally:
            pipe.close()

    threading.Thread(target=write, name="command-input", daemon=True).start()


def decode(data: bytes) -> str:
    """Text of a command: UTF-8, else on Windows the console's own code page; CRLF becomes LF."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding = "oem" if sys.platform == "win32" else "utf-8"
            text = data.decode(encoding, "replace")
    return text.replace("\r\n", "\n")
