"""Shared by the tests of running programs: build a bundle, run real processes over it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from officegrid.wire.data import Layout
from officegrid.wire.work import Limits, OutputSpec, Program
from officegrid.worker.programs import (
    BadRecord,
    ChunkResult,
    InputChunk,
    OutputPiece,
    Runner,
    make_runner,
)

FAST = Limits(attempts=2, record_timeout_s=1.0, memory_mb=256)


@contextmanager
def runner_for(
    folder: Path,
    program: Program,
    *,
    form: str = "csv",
    output: OutputSpec | None = None,
    limits: Limits = FAST,
    layout: Layout | None = None,
    facts: dict[str, str] | None = None,
    **files: str,
) -> Any:
    """A runner over a bundle of `files` (module name → source); closed at the end."""
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    for name, source in files.items():
        (bundle / f"{name}.py").write_text(source)
    runner = make_runner(
        program,
        layout or Layout(format=form),
        output or OutputSpec(format=form),
        limits,
        bundle,
        folder / "scratch",
        Path(sys.executable),
        facts,
    )
    try:
        yield runner
    finally:
        runner.close()


def chunk_of(data: str | bytes, records: int, *columns: str, first: int = 0) -> InputChunk:
    raw = data.encode() if isinstance(data, str) else data
    return InputChunk(first, records, raw, list(columns) or None)


def numbers(count: int, first: int = 0) -> InputChunk:
    """Lines "0", "1", ... as CSV with the one column n."""
    return chunk_of("".join(f"{n}\n" for n in range(count)), count, "n", first=first)


def bad_ones(result: ChunkResult) -> dict[int, BadRecord]:
    return {piece.record: piece for piece in result.pieces if isinstance(piece, BadRecord)}


def text_of(result: ChunkResult) -> str:
    pieces = [piece for piece in result.pieces if isinstance(piece, OutputPiece)]
    for piece in pieces:
        assert piece.rows > 0
    return b"".join(piece.data for piece in pieces).decode()


def outline(result: ChunkResult) -> list[object]:
    """Output lines and the numbers of bad records, in order."""
    found: list[object] = []
    for piece in result.pieces:
        if isinstance(piece, OutputPiece):
            found += piece.data.decode().splitlines()
        else:
            found.append(piece.record)
    return found


def wait_until(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)


__all__ = ["FAST", "Runner", "bad_ones", "chunk_of", "numbers", "outline", "runner_for"]
