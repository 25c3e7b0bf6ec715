"""Runs any executable over records: a batch goes in on stdin, its output comes out on stdout."""

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from officegrid.core.errors import ProgramError
from officegrid.core.isolate import GivenUp, Isolation, Range
from officegrid.data.records import RecordError
from officegrid.wire.data import Layout
from officegrid.wire.work import Limits, OutputSpec, Program
from officegrid.worker.child import Child, ChildHolder, describe_exit
from officegrid.worker.exec_streams import Printed, Streams, UnfitOutput
from officegrid.worker.limits import MEGABYTE
from officegrid.worker.rowcheck import Malformed, read
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


@dataclass(frozen=True, slots=True)
class _Failure:
    error: str
    culprit: int | None = None  # relative to the batch
    final: bool = False  # dividing the batch cannot help


class _Plan:
    """The records of a chunk that a program can be fed with, and those that it cannot."""

    def __init__(self, chunk: InputChunk, layout: Layout) -> None:
        shape = input_shape(layout, chunk.columns)
        self.first = chunk.first
        self.columns = shape.columns
        self.records = Records(chunk, shape)
        self.malformed: list[tuple[int, str]] = []
        found = 0
        for found, value in enumerate(read(chunk.data, shape), 1):
            if value.__class__ is Malformed:
                self.malformed.append((found - 1, value.error))
        check_count(chunk, found)
        bad = {index for index, _ in self.malformed}
        self.good: Sequence[int] = range(found)
        if bad:
            self.good = [index for index in range(found) if index not in bad]

    def data(self, part: Range) -> bytes:
        """The bytes of the good records `[part.start, part.end)`."""
        first, last = self.good[part.start], self.good[part.end - 1]
        if last - first == part.length - 1:
            return self.records.slice(first, last + 1)
        chosen = (self.good[i] for i in range(part.start, part.end))
        return b"".join(self.records.slice(index, index + 1) for index in chosen)

    def take_malformed(self, before: int) -> list[BadRecord]:
        """Malformed records below index `before`, each of them once."""
        count = bisect_left(self.malformed, before, key=lambda entry: entry[0])
        taken, self.malformed = self.malformed[:count], self.malformed[count:]
        return [self.bad(index, error, 1) for index, error in taken]

    def bad(self, index: int, error: str, attempts: int) -> BadRecord:
        return BadRecord(self.first + index, error, attempts, self.records.raw(index))

    def cuts(self, part: Range) -> list[int]:
        """How many records of `part` come before each malformed record that lies inside it."""
        last = self.good[part.end - 1]
        inside = [index for index, _ in self.malformed if index < last]
        return [bisect_left(self.good, index) - part.start for index in inside]


class ExecRunner(ChildHolder):
    """A `Runner` for `run = [...]`. See `programs.make_runner`."""

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
        self._argv = list(program.run or [])
        self._layout = layout
        self._same_count = output.count == "same"
        self._limits = limits
        self._bundle_dir = bundle_dir
        self._env = program_environment(program, python, scratch, facts)
        self._streams = Streams(program, layout, output)
        self._command: list[str] | None = None
        self._done = 0

    @property
    def records_done(self) -> int:
        return self._done

    def close(self) -> None:
        self._end_child()

    def process(self, chunk: InputChunk) -> ChunkResult:
        self._done = 0
        self._check_stopped()
        if self._command is None:
            self._command = self._find_command()
        plan = _Plan(chunk, self._layout)
        search = Isolation(
            0, len(plan.good), self._limits.attempts, step=self._limits.batch_records
        )
        pieces: list[OutputPiece | BadRecord] = []
        while (part := search.next()) is not None:
            self._done = plan.good[part.start]
            outcome = self._run(plan.data(part), part.length, plan.columns)
            gone: list[GivenUp] = []
            if isinstance(outcome, Printed):
                search.succeeded(part)
                pieces += plan.take_malformed(plan.good[part.start])
                pieces += self._pieces(outcome, part, plan)
            elif outcome.final:
                gone = search.give_up(part, outcome.error)
            else:
                hint = None if outcome.culprit is None else part.start + outcome.culprit
                lone = search.failed(part, outcome.error, hint)
                gone = [lone] if lone is not None else []
            for record in gone:
                index = plan.good[record.record]
                pieces += plan.take_malformed(index)
                pieces.append(plan.bad(index, record.error, record.attempts))
        pieces += plan.take_malformed(chunk.records)
        self._done = chunk.records
        return ChunkResult(pieces)

    def _pieces(self, printed: Printed, part: Range, plan: _Plan) -> list[OutputPiece | BadRecord]:
        """The output, with malformed records in their places where output lines tell them.

        A program that may print any number of records says nothing about which line belongs to
        which record: there, malformed records follow the output of the batch they were in.
        """
        if not self._same_count or not plan.malformed:
            return [printed.piece()] if printed.rows else []
        pieces: list[OutputPiece | BadRecord] = []
        done = 0
        for cut in plan.cuts(part):
            if cut > done:
                pieces.append(printed.piece(done, cut))
            done = max(done, cut)
            pieces += plan.take_malformed(plan.good[part.start + cut])
        if done < part.length:
            pieces.append(printed.piece(done, part.length))
        return pieces

    def _run(self, data: bytes, given: int, columns: tuple[str, ...] | None) -> Printed | _Failure:
        """One process over one batch."""
        try:
            stdin = self._streams.stdin(data, columns)
        except RecordError as error:
            reason = f"the record cannot be given to the program: {error.what} {error.why}"
            return _Failure(reason, error.record, final=given == 1)
        outcome = self._converse(stdin)
        if isinstance(outcome, _Failure):
            return outcome
        try:
            printed = self._streams.stdout(outcome)
        except UnfitOutput as error:
            culprit = error.row if self._same_count else None
            return _Failure(str(error), culprit, error.final)
        if self._same_count and printed.rows != given:
            records = "record" if printed.rows == 1 else "records"
            return _Failure(f"the program printed {printed.rows:,} {records} for {given:,}")
        return printed

    def _converse(self, stdin: list[bytes]) -> bytes | _Failure:
        """Feed one process and collect what it prints, within all limits."""
        child = self._start()
        child.send(stdin, close=True)
        most_bytes = self._limits.output_mb * MEGABYTE
        tick_s = min(0.25, self._limits.record_timeout_s / 4)
        verdict = ""
        while child.exited() is None:
            child.step(tick_s)
            self._check_stopped()
            if verdict := self._verdict(child, most_bytes):
                break
        code = self._end_child()
        self._check_stopped()
        if not verdict and len(child.received) > most_bytes:
            verdict = f"the program printed more than {self._limits.output_mb} MB"
        if not verdict and code == 0:
            return bytes(child.received)
        error = verdict or f"the program {describe_exit(code)}"
        messages = child.messages()
        return _Failure(f"{error}: {messages}" if messages else error)

    def _verdict(self, child: Child, most_bytes: int) -> str:
        """Why the program must be killed now; empty if it may go on."""
        limits = self._limits
        if len(child.received) > most_bytes:
            return f"the program printed more than {limits.output_mb} MB"
        if child.watch.exceeded():
            return f"the program needed more than {limits.memory_mb} MB of memory"
        if time.monotonic() - child.last_progress > limits.record_timeout_s:
            idle = f"{limits.record_timeout_s:g} s"
            return f"the program hung: it neither read nor printed anything for {idle}"
        return ""

    def _start(self) -> Child:
        command = self._command or []

        def start() -> Child:
            return Child(
                lambda _to, _from: command,
                cwd=self._bundle_dir,
                env=self._env,
                memory_mb=self._limits.memory_mb,
                own_pipes=False,
            )

        try:
            return self._begin_child(start)
        except OSError as error:
            check_exhausted(error)
            raise ProgramError(
                f"The program {self._argv[0]!r} cannot be started: {error.strerror or error}.",
                why="The system refused to run the file, although it is there.",
                fix='Begin a script with a line such as "#!/bin/sh", or name its interpreter: '
                f'run = ["sh", "{self._argv[0]}"].',
            ) from error

    def _find_command(self) -> list[str]:
        """The command with the full path of its executable: from the bundle, else from PATH."""
        name = self._argv[0]
        inside = self._bundle_dir / name
        if inside.is_file() and os.access(inside, os.X_OK):
            return [str(inside.resolve()), *self._argv[1:]]
        found = shutil.which(name, path=self._env.get("PATH"))
        if found is not None:
            return [found, *self._argv[1:]]
        if inside.is_file():
            raise ProgramError(
                f"The program {name!r} cannot be started: it is not marked as executable.",
                why="The file is in the folder of the job, without the right to run it.",
                fix=f"Run `chmod +x {name}` and submit again, or name its interpreter: "
                f'run = ["sh", "{name}"].',
            )
        raise ProgramError(
            f"The program {name!r} was not found on this machine.",
            why="It is neither in the folder of the job nor on the PATH of the worker.",
            fix="Put it into the folder given as `code`, or install it on every worker machine "
            "(for virtual machines: in their image).",
        )
