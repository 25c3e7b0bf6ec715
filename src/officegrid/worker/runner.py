"""What a worker asks of a running program, and what all kinds of programs share."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from officegrid.core.errors import InputError, OfficeGridError, UnavailableError
from officegrid.wire.data import Layout
from officegrid.wire.work import Program
from officegrid.worker.rowcheck import Shape, boundaries

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Stopped(OfficeGridError):  # noqa: N818
    """The run was stopped on purpose; nothing of the chunk counts as processed."""

    code = "stopped"


@dataclass(frozen=True, slots=True)
class InputChunk:
    """`records` whole records from number `first`, as stored in blocks (CSV rows, no header)."""

    first: int
    records: int
    data: bytes
    columns: list[str] | None


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """`rows` output records with the same columns (CSV; None for other formats)."""

    data: bytes
    rows: int
    columns: list[str] | None


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be processed; `record` counts from the start of the job's input."""

    record: int
    error: str
    attempts: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """Output and bad records, in record order."""

    pieces: list[OutputPiece | BadRecord]


class Runner(Protocol):
    """A user's program, ready to process chunk after chunk. One thread calls `process`."""

    def process(self, chunk: InputChunk) -> ChunkResult:
        """Run the program over the chunk; blocks. Every record ends in a piece or a BadRecord.

        Raises ProgramError if the program cannot be started at all, InputError if the chunk does
        not hold the records it claims to hold, Stopped after `stop()`.
        """

    @property
    def records_done(self) -> int:
        """Records finished in the running chunk. Any thread."""

    def stop(self) -> None:
        """Kill the program at once; `process` raises Stopped from now on. Any thread."""

    def close(self) -> None:
        """End the program and free what it held."""


class Records:
    """The records of one chunk by index; boundaries are found when they are first needed."""

    def __init__(self, chunk: InputChunk, shape: Shape) -> None:
        self._chunk = chunk
        self._shape = shape
        self._offsets: list[int] | None = None

    def slice(self, start: int, end: int) -> bytes:
        """The bytes of records `[start, end)` of the chunk."""
        if (start, end) == (0, self._chunk.records):
            return self._chunk.data
        offsets = self.offsets()
        return self._chunk.data[offsets[start] : offsets[end]]

    def raw(self, index: int) -> bytes:
        """The bytes of one record, line break included."""
        return self.slice(index, index + 1)

    def offsets(self) -> list[int]:
        """Starts of all records, then the end. Raises InputError if their number is wrong."""
        if self._offsets is None:
            self._offsets = boundaries(self._chunk.data, self._shape)
            check_count(self._chunk, len(self._offsets) - 1)
        return self._offsets


def check_count(chunk: InputChunk, found: int) -> None:
    """Raises InputError unless the chunk holds as many records as it says."""
    if found != chunk.records:
        raise InputError(
            f"The input has {found:,} records where {chunk.records:,} were announced, "
            f"from record {chunk.first:,}.",
            why="The index of the dataset does not fit its content.",
            fix="Upload the dataset again; if it happens again, report it with the dataset's id.",
        )


def check_exhausted(error: OSError) -> None:
    """Raises UnavailableError if a process could not be started for lack of resources."""
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        raise UnavailableError(
            "No process can be started on this machine now.",
            why=str(error),
            fix="Close programs on this machine, or give the worker fewer slots.",
        ) from error


def input_shape(layout: Layout, columns: list[str] | None) -> Shape:
    """How the records of a chunk are written."""
    names = columns if columns is not None else layout.columns
    chosen = tuple(names) if names is not None and layout.format == "csv" else None
    return Shape(layout.format, layout.delimiter, layout.quote, chosen)


def program_environment(
    program: Program, python: Path, scratch: Path, facts: Mapping[str, str]
) -> dict[str, str]:
    """The environment variables of a program: few, and none of the worker's secrets.

    `facts` are variables such as OFFICEGRID_JOB; the job file's own settings win over all.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PATH", DEFAULT_PATH)
    return {
        "PATH": f"{python.parent}{os.pathsep}{path}",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "TZ": os.environ.get("TZ", "UTC"),
        # A set must not be iterated in another order on another machine.
        "PYTHONHASHSEED": "0",
        **facts,
        **program.env,
        # A bundle is shared and never written to, whatever the job says.
        "PYTHONPYCACHEPREFIX": str(scratch / "pycache"),
    }
