"""QEMU's process: started apart from the agent, found again by the next agent, ended for sure.

A pid alone proves nothing: it may belong to somebody else by now. Ours is the process whose
command line names our pid file, and before anything is done to it that is looked at again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import threading
import time
from dataclasses import asdict, dataclass

import psutil

from officegrid.agent.drivers.qemu.files import Files, read_json, remove, write_json
from officegrid.core.vm import DriverError, Trouble

DIES_WITHIN_S = 10.0
_POLL_S = 0.005
_ALL_POLL_S = 0.02

_started: list[subprocess.Popen[bytes]] = []
_started_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Running:
    """How the present process was started: the content of running.json."""

    accelerator: str
    sentence: str
    qemu_version: str
    digest: str
    """`arguments.digest` of its command line."""
    may_fall_back: bool
    """The accelerator was chosen by us: when the guest does not come up, choose another."""
    waits_since_s: float
    """Monotonic clock: the guest has been running, not ready, since then."""

    @classmethod
    def read(cls, files: Files) -> Running | None:
        found = read_json(files.running)
        try:
            return cls(**found) if found is not None else None
        except TypeError:
            return None

    def write(self, files: Files) -> None:
        write_json(files.running, asdict(self))


def launch(command: list[str], files: Files) -> subprocess.Popen[bytes]:
    """Start in a session of its own, with its words in the log. Raises DriverError MISSING."""
    remove(files.pid, files.control, files.look)
    files.log.unlink(missing_ok=True)
    with files.log.open("wb") as log:
        try:
            process = subprocess.Popen(
                command, cwd=files.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DriverError(
                Trouble.MISSING, f"{command[0]} cannot be started.", error.strerror or str(error),
                "Install QEMU (Debian: apt-get install qemu-system-x86).",
            ) from None  # fmt: skip
    with _started_lock:
        _started.append(process)
    return process


def reap() -> None:
    """Take note of ended children, so that they do not stay as zombies."""
    with _started_lock:
        _started[:] = [process for process in _started if process.poll() is None]


def find(files: Files, *, search: bool = False) -> psutil.Process | None:
    """The living QEMU of this folder, or None.

    `search` also looks through all processes: for when the pid file may be missing or wrong.
    """
    reap()
    pid = _read_pid(files)
    if pid is not None and (process := _ours(pid, files)) is not None:
        return process
    with _started_lock:
        pids = [process.pid for process in _started]
    if search:
        pids += psutil.pids()
    for pid in pids:
        if (process := _ours(pid, files)) is not None:
            return process
    return None


def is_alive(process: psutil.Process) -> bool:
    try:
        # The first thread may be done while others still hold the memory.
        if process.is_running() and (
            process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
        ):
            return True
    except psutil.Error:
        pass
    reap()
    return False


def wait_gone(process: psutil.Process, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def kill(process: psutil.Process, files: Files) -> None:
    """End it at once. Raises DriverError STUCK when the kernel cannot, PERMISSION."""
    deadline = time.monotonic() + DIES_WITHIN_S
    # Looked at once: a process that is on its way out has no command line any more.
    ours = _ours(process.pid, files) is not None
    while ours and is_alive(process):
        try:
            process.kill()  # psutil compares the start time: never a successor of the same pid
        except psutil.NoSuchProcess:
            break
        except psutil.AccessDenied:
            raise DriverError(
                Trouble.PERMISSION, f"QEMU (process {process.pid}) may not be ended by us.",
                "It runs as another user.", "Run the agent as the user who started it.",
            ) from None  # fmt: skip
        if wait_gone(process, 0.5):
            break
        if time.monotonic() > deadline:
            raise DriverError(
                Trouble.STUCK, f"QEMU (process {process.pid}) does not end.",
                "It waits inside the kernel, most often for a disk that does not answer.",
                "Look at the disk and the kernel's log; a restart of this PC ends it.",
            )  # fmt: skip
        time.sleep(_ALL_POLL_S)
    remove(files.pid, files.control, files.look, files.running)


def last_words(files: Files, most_chars: int = 600) -> str:
    """The end of QEMU's log, in one line."""
    with contextlib.suppress(OSError):
        text = files.log.read_text(encoding="utf-8", errors="replace")
        return " ".join(text.split())[-most_chars:]
    return ""


def _read_pid(files: Files) -> int | None:
    try:
        return int(files.pid.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def _ours(pid: int, files: Files) -> psutil.Process | None:
    if pid <= 0 or pid == os.getpid():
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        words = process.cmdline()
    except (psutil.Error, OSError):
        return None
    # As two neighbours, so that an editor or a shell that merely mentions the file is no match.
    pairs = itertools.pairwise(words)
    if ("-pidfile", str(files.pid)) in pairs and "-chardev" in words:
        return process
    return None
