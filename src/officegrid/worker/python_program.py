"""Runs a Python function over records, in one long-lived process (see `harness`)."""

from __future__ import annotations

import json
import mmap
import struct
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from officegrid.core.errors import ProgramError
from officegrid.core.isolate import Isolation, Range
from officegrid.wire.data import Layout
from officegrid.wire.work import Limits, OutputSpec, Program
from officegrid.worker.child import Child, ChildHolder, describe_exit
from officegrid.worker.harness import COUNTER_BYTES, IN_WORK, LENGTHS, TICK, WIDTH
from officegrid.worker.runner import (
    BadRecord,
    ChunkResult,
    InputChunk,
    OutputPiece,
    Records,
    check_count,
    check_exhausted,
    input_shape,
    program_environment,
)

START_TIMEOUT_S = 120.0
OWN_WORK_TIMEOUT_S = 60.0  # reading the chunk and sending the reply, outside the user's code
HARNESS = Path(__file__).with_name("harness.py")
# As `python harness.py` does, but with the module that lies there compiled.
_LAUNCH = """
import sys
from importlib.machinery import SourceFileLoader
__file__ = sys.argv.pop(1)
exec(SourceFileLoader("harness", __file__).get_code("harness"))
"""


@dataclass(frozen=True, slots=True)
class _Answer:
    header: dict[str, Any]
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Failure:
    """The process is gone, or could not finish; `culprit` is relative to the range it ran."""

    error: str
    culprit: int | None = None
    width: int = 1


class PythonRunner(ChildHolder):
    """A `Runner` for `python = "module:function"`. See `programs.make_runner`."""

    def __init__(
        self,
        program: Program,
        layout: Layout,
        output: OutputSpec,
        limits: Limits,
        bundle_dir: Path,
        scratch: Path,
        python: Path,
        facts: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._target = program.python or ""
        self._layout = layout
        self._limits = limits
        self._bundle_dir = bundle_dir
        self._python = python
        self._env = program_environment(program, python, scratch, facts)
        # Not as a variable of the harness itself: see there. Nor is it the job's to choose, which
        # could have the bundle written to.
        self._env.pop("PYTHONPYCACHEPREFIX", None)
        self._config = {
            "target": self._target,
            "call": program.call,
            "format": layout.format,
            "delimiter": layout.delimiter,
            "quote": layout.quote,
            "output_format": output.format,
            "output_columns": output.columns,
            "attempts": limits.attempts,
            "batch_records": limits.batch_records,
            "memory_mb": limits.memory_mb,
            "compiled": str(scratch.absolute() / "pycache"),
        }
        self._csv_output = output.format == "csv"
        self._counter_file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        self._counter_file.truncate(COUNTER_BYTES)
        self._counter = mmap.mmap(self._counter_file.fileno(), COUNTER_BYTES)
        self._running = Range(0, 0)

    @property
    def records_done(self) -> int:
        running = self._running
        return running.start + min(max(self._counters()[IN_WORK], 0), running.length)

    def close(self) -> None:
        self._end_child()
        self._counter_file.close()

    def process(self, chunk: InputChunk) -> ChunkResult:
        if not self._target.rpartition(":")[0]:
            raise self._cannot_start("it is not of the form module:function.", "")
        records = Records(chunk, input_shape(self._layout, chunk.columns))
        search = Isolation(0, chunk.records, self._limits.attempts)
        pieces: list[OutputPiece | BadRecord] = []
        seen: list[str] = []
        while (part := search.next()) is not None:
            self._running = part
            self._reset_counters()
            data = records.slice(part.start, part.end)
            answer = self._run(data, part.length, chunk, seen)
            if isinstance(answer, _Failure):
                culprit = None if answer.culprit is None else part.start + answer.culprit
                gone = search.failed(part, answer.error, culprit, answer.width)
                if gone is not None:
                    raw = records.raw(gone.record)
                    pieces.append(
                        BadRecord(chunk.first + gone.record, gone.error, gone.attempts, raw)
                    )
                continue
            if answer.header["found"] != part.length:
                check_count(chunk, part.start + answer.header["found"])
            search.succeeded(part)
            seen = answer.header["seen"]
            pieces += self._pieces(answer, chunk.first + part.start, data)
        self._running = Range(chunk.records, chunk.records)
        return ChunkResult(pieces)

    def _pieces(self, answer: _Answer, first: int, data: bytes) -> list[OutputPiece | BadRecord]:
        pieces: list[OutputPiece | BadRecord] = []
        offset = 0
        for kind, *rest in answer.header["items"]:
            if kind == "out":
                size, rows, columns = rest
                made = answer.payload[offset : offset + size]
                pieces.append(OutputPiece(made, rows, columns if self._csv_output else None))
                offset += size
            else:
                index, error, attempts, start, end = rest
                pieces.append(BadRecord(first + index, error, attempts, data[start:end]))
        return pieces

    def _run(
        self, data: bytes, length: int, chunk: InputChunk, seen: list[str]
    ) -> _Answer | _Failure:
        shape = input_shape(self._layout, chunk.columns)
        columns = None if shape.columns is None else list(shape.columns)
        child = self._ready_child()
        child.forget_messages()
        self._send(child, {"columns": columns, "seen": seen}, data)
        answer = self._await(child, length)
        if isinstance(answer, _Answer) and "failed" in answer.header:
            culprit, width = self._suspects(length)
            return _Failure(answer.header["failed"], culprit, width)
        return answer

    def _ready_child(self) -> Child:
        """The harness, started if there is none or if it died since its last chunk."""
        if self._child is not None and self._child.exited() is not None:
            self._end_child()
        return self._child if self._child is not None else self._start()

    def _start(self) -> Child:
        counter_fd = self._counter_file.fileno()

        def command(to_child: int, from_child: int) -> list[str]:
            fds = [str(fd) for fd in (to_child, from_child, counter_fd)]
            return [str(self._python), "-P", "-c", _LAUNCH, str(HARNESS), *fds]

        def start() -> Child:
            return Child(
                command,
                cwd=self._bundle_dir,
                env=self._env,
                memory_mb=self._limits.memory_mb,
                own_pipes=True,
                inherit=(counter_fd,),
            )

        try:
            child = self._begin_child(start)
        except OSError as error:
            check_exhausted(error)
            raise self._cannot_start(f"{self._python} cannot be run.", str(error)) from error
        self._send(child, self._config, b"")
        answer = self._await(child, None)
        if isinstance(answer, _Failure):
            self._end_child()
            raise self._cannot_start(answer.error, "")
        if not answer.header.get("ready"):
            self._end_child()
            raise self._cannot_start(
                f"Loading it raised {answer.header['error_type']}.", answer.header["cannot_start"],
                in_its_code=answer.header.get("in_its_code", False),
            )  # fmt: skip
        return child

    def _cannot_start(self, reason: str, detail: str, *, in_its_code: bool = False) -> ProgramError:
        return ProgramError(
            f"The program {self._target!r} cannot be started: {reason}",
            why=detail.strip(),
            fix="Correct that place; a package that is missing belongs into requirements.txt."
            if in_its_code
            else "Check `python` in the job file, and that the folder given as `code` holds the "
            "module and lists the packages it needs in requirements.txt.",
        )

    def _send(self, child: Child, header: dict[str, Any], data: bytes) -> None:
        text = json.dumps(header).encode()
        child.received.clear()
        child.send([LENGTHS.pack(len(text), len(data)) + text, data])

    def _await(self, child: Child, length: int | None) -> _Answer | _Failure:
        """Wait for the reply to a frame about `length` records (None: the first frame)."""
        limit_s = self._limits.record_timeout_s
        tick_s = min(0.25, limit_s / 4)
        child.last_progress = time.monotonic()
        before = self._counters()
        while True:
            child.step(tick_s)
            if (answer := _whole_frame(child.received)) is not None:
                return answer
            self._check_stopped()
            if child.ended or child.exited() is not None:
                return self._died(child, length)
            now = self._counters()
            if now != before:
                before, child.last_progress = now, time.monotonic()
            if child.watch.exceeded():
                error = f"needed more than {self._limits.memory_mb} MB of memory"
                return self._killed(error, length)
            idle_s = time.monotonic() - child.last_progress
            in_user_code = length is not None and 0 <= now[IN_WORK] < length
            if in_user_code and idle_s > limit_s:
                return self._killed(f"took longer than {limit_s:g} s", length)
            if length is None and idle_s > START_TIMEOUT_S:
                return self._killed(f"Loading it took longer than {START_TIMEOUT_S:g} s.", length)
            if not in_user_code and idle_s > max(OWN_WORK_TIMEOUT_S, limit_s):
                return self._killed("stopped answering", length)

    def _killed(self, error: str, length: int | None) -> _Failure:
        culprit, width = self._suspects(length)
        self._end_child()
        if length is None:
            return _Failure(error)
        return _Failure(_on_records(error, culprit, width), culprit, width)

    def _died(self, child: Child, length: int | None) -> _Failure:
        culprit, width = self._suspects(length)
        deadline = time.monotonic() + 1.0
        while child.exited() is None and time.monotonic() < deadline:
            child.step(0.05)
        closed = child.exited() is None
        messages = child  # the object outlives its process
        code = self._end_child()
        error = "the program closed its connection" if closed else ""
        error = error or f"the program {describe_exit(code)}"
        error = _on_records(error, culprit, width) if length is not None else f"{error}."
        tail = messages.messages()[-1000:]
        return _Failure(f"{error}\n{tail}" if tail else error, culprit, width)

    def _suspects(self, length: int | None) -> tuple[int | None, int]:
        in_work, width, _ = self._counters()
        if length is None or not 0 <= in_work < length:
            return None, 1
        return in_work, max(width, 1)

    def _counters(self) -> tuple[int, int, int]:
        in_work, width, tick = struct.unpack_from("=3q", self._counter)
        return in_work, width, tick

    def _reset_counters(self) -> None:
        values = {IN_WORK: -1, WIDTH: 1, TICK: 0}
        struct.pack_into("=3q", self._counter, 0, *(values[place] for place in sorted(values)))


def _on_records(error: str, culprit: int | None, width: int) -> str:
    if culprit is None:
        return f"{error} on this record"
    return f"{error} on this record" if width == 1 else f"{error} on this batch"


def _whole_frame(received: bytearray) -> _Answer | None:
    if len(received) < LENGTHS.size:
        return None
    header_bytes, payload_bytes = LENGTHS.unpack_from(received)
    start = LENGTHS.size + header_bytes
    if len(received) < start + payload_bytes:
        return None
    with memoryview(received) as view:
        header = json.loads(bytes(view[LENGTHS.size : start]))
        return _Answer(header, bytes(view[start : start + payload_bytes]))
