"""Makes the runner that fits a program: a Python function, or any executable.

A runner is loaded when it is first wanted: few workers need both kinds, and none at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from officegrid.core.errors import ProgramError
from officegrid.wire.data import Layout
from officegrid.wire.work import Limits, OutputSpec, Program
from officegrid.worker.runner import (
    BadRecord,
    ChunkResult,
    InputChunk,
    OutputPiece,
    Runner,
    Stopped,
)

if TYPE_CHECKING:
    from officegrid.worker.exec_program import ExecRunner
    from officegrid.worker.python_program import PythonRunner

__all__ = [
    "BadRecord",
    "ChunkResult",
    "InputChunk",
    "OutputPiece",
    "Runner",
    "Stopped",
    "make_runner",
]


def make_runner(
    program: Program,
    layout: Layout,
    output: OutputSpec,
    limits: Limits,
    bundle_dir: Path,
    scratch: Path,
    python: Path,
    facts: Mapping[str, str] | None = None,
) -> Runner:
    """A runner for `program`, whose files lie in `bundle_dir`; nothing is started yet.

    `layout` is how the records of the chunks are written, `python` the interpreter for Python
    programs (see `environments`), `scratch` a folder the program may write to (its HOME), and
    `facts` more environment variables, such as OFFICEGRID_JOB. Raises ProgramError if the program
    names neither a Python function nor a command, or both.
    """
    if (program.python is None) == (not program.run):
        raise ProgramError(
            "The job names no program to run, or two of them.",
            why="Exactly one of `python` and `run` must be given.",
            fix='Set python = "module:function" or run = ["command", "argument"] in the job file.',
        )
    kind = _python_runner if program.python is not None else _exec_runner
    return kind()(program, layout, output, limits, bundle_dir, scratch, python, facts or {})


def _python_runner() -> type[PythonRunner]:
    from officegrid.worker.python_program import PythonRunner

    return PythonRunner


def _exec_runner() -> type[ExecRunner]:
    from officegrid.worker.exec_program import ExecRunner

    return ExecRunner
