"""What the process driver asks of an operating system, and the note that finds a worker again.

The note, `process.json` in the VM's folder, names the worker's first process by its id and the
moment of its birth: ids are given out again, a birth is not. It is written before the worker's
own program runs, so that no crash of the agent can leave a worker that nobody knows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

NOTE_NAME = "process.json"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the worker may use of this PC."""

    memory_mb: int
    cpus: float
    """In whole processors: 1.5 is one and a half."""


@dataclass(frozen=True, slots=True)
class Root:
    """The first process of a worker."""

    pid: int
    born: str


class KeeperError(Exception):
    """The operating system refused; the text is its reason."""


class Keeper(Protocol):
    """The processes of one worker, as a whole. Raises KeeperError."""

    def weaknesses(self) -> list[str]:
        """What cannot be had on this machine: sentences for the admin; empty is good."""

    def caps_cpu(self) -> bool: ...

    def launch(
        self, argv: Sequence[str], env: Mapping[str, str], log: Path, limits: Limits
    ) -> None:
        """Start the worker apart from the agent, at the lowest priority; its note is written."""

    def root_lives(self) -> bool: ...

    def members(self) -> tuple[int, ...]:
        """Every live process of it, the first one included."""

    def is_frozen(self) -> bool:
        """Does none of them get any CPU?"""

    def freeze(self) -> None:
        """Returns when none of them runs any more."""

    def thaw(self) -> None: ...

    def kill(self) -> None:
        """End all of them, frozen or not; returns when they are gone."""


def born(pid: int) -> str | None:
    """A text that no other process with this id will ever have; None: there is no such process,
    or only its exit code is left."""
    if sys.platform == "linux":
        try:
            # The name, in brackets, may hold anything: count the fields after it.
            # Source: proc(5), /proc/pid/stat: field 3 is the state, 22 the start in ticks.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
        except OSError:
            return None
        state, started = fields.split()[0], fields.split()[19]
        return None if state in "ZX" else f"{_boot_id()}/{started}"
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError):
        process = psutil.Process(pid)
    return f"{process.create_time():.3f}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown-boot"


def lives(root: Root | None) -> bool:
    """Is this very process still there?"""
    return root is not None and born(root.pid) == root.born


def load_note(folder: Path) -> Root | None:
    """The worker that was started last; None: none, or the note cannot be read."""
    try:
        fields = json.loads((folder / NOTE_NAME).read_bytes())
        return Root(int(fields["pid"]), str(fields["born"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_note(folder: Path, root: Root) -> None:
    """Replace the note at once. Raises OSError."""
    draft = folder / f"{NOTE_NAME}.new"
    draft.write_text(json.dumps({"pid": root.pid, "born": root.born}), encoding="utf-8")
    os.replace(draft, folder / NOTE_NAME)


def drop_note(folder: Path) -> None:
    (folder / NOTE_NAME).unlink(missing_ok=True)
