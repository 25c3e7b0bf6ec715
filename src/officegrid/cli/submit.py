"""`officegrid submit` and `officegrid watch`: send a job, follow it, get its output."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from officegrid.cli.common import connect, job_exit_code, json_option
from officegrid.cli.main import show_json
from officegrid.client.leftout import LeftOuts
from officegrid.client.output import OutputSpool
from officegrid.client.progress import JobLine, UploadLine
from officegrid.client.submit import UploadProgress
from officegrid.client.submit import submit as submit_job
from officegrid.client.watch import follow
from officegrid.core.errors import UnavailableError
from officegrid.core.quantities import duration_text
from officegrid.transport.http import Connection
from officegrid.wire.jobs import JobView

DELIVERY_LOOK_S = 0.5


@click.command()
@click.argument("job_file", type=click.Path(path_type=Path))
@click.option(
    "--watch",
    "watching",
    is_flag=True,
    help="Follow the job and put its output in place when it has finished.",
)
@json_option
def submit(job_file: Path, watching: bool, as_json: bool) -> None:  # fmt: skip
    """Upload the program and the input that JOB_FILE names, and start the job."""
    with connect() as connection:
        line = UploadLine()
        warnings: list[str] = []
        left_out = LeftOuts()

        def progress(state: UploadProgress) -> None:
            line(state)
            warnings[:] = state.warnings

        with line:
            view = submit_job(connection, job_file, progress, left_out)
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
        if not as_json:
            left_out.tell()
        if not watching:
            if as_json:
                show_json({**view.model_dump(), "left_out": left_out.plain()})
            else:
                click.echo(f"{view.name} ({view.id}): {view.state}, {view.total:,} records.")
                click.echo(f"Follow it: officegrid watch {view.id}")
            return
        if not as_json:
            click.echo(f"{view.name} ({view.id}): {view.state}.", err=True)
        try:
            code = _watch(connection, view, as_json, left_out)
        except KeyboardInterrupt:
            click.echo(
                f"{view.id} goes on. Follow it: officegrid watch {view.id}; end it: "
                f"officegrid cancel {view.id}", err=True,
            )  # fmt: skip
            raise
    sys.exit(code)


@click.command()
@click.argument("job_id")
@json_option
def watch(job_id: str, as_json: bool) -> None:
    """Follow a job until it ends. Exit code 3: it has quarantined records."""
    with connect() as connection:
        view = connection.call("GET", f"/v1/jobs/{job_id}", reply=JobView)
        final = _follow(connection, view)
    _tell_end(final, as_json)
    sys.exit(job_exit_code(final))


def _follow(connection: Connection, view: JobView) -> JobView:
    """The job when it has ended, or has been held: only a person can help then."""
    with JobLine() as line:
        for now in follow(connection, view.id):
            view = now
            ended = view.state in ("finished", "cancelled", "held")
            line(view, last=ended)
            if ended or view.state == "scheduled":
                break
    return delivered(connection, view)


def delivered(connection: Connection, view: JobView) -> JobView:
    """The job when its output is in its table, or that has failed."""
    if view.delivery is not None and view.delivery.state == "pending":
        click.echo(f"Putting the output into table {view.delivery.table} …", err=True)
    while view.delivery is not None and view.delivery.state == "pending":
        time.sleep(DELIVERY_LOOK_S)
        view = connection.call("GET", f"/v1/jobs/{view.id}", reply=JobView)
    return view


def _watch(connection: Connection, view: JobView, as_json: bool, left_out: LeftOuts) -> int:
    """Follow the job, fetch its output meanwhile, write it in the end; the exit code."""
    path = Path(view.output_path) if view.output_path else None
    with ExitStack() as stack:
        spool = None
        if path is not None:
            if not path.parent.is_dir():
                raise UnavailableError(
                    f"There is no folder {path.parent} for the output.", fix="Create it first."
                )
            spool = stack.enter_context(OutputSpool(connection, view.id, path.parent))
            spool.follow()
        final = _follow(connection, view)
        if spool is not None and path is not None and final.state == "finished":
            written = spool.write(path, final.output_file_format)
            if not as_json:
                click.echo(f"Output: {written.path} ({final.records_out:,} records)")
    _tell_end(final, as_json, {"left_out": left_out.plain()})
    return job_exit_code(final)


def tell_delivery(view: JobView) -> None:
    found = view.delivery
    if found is None:
        return
    place = f"table {found.table} of {found.source}"
    if found.state == "done":
        click.echo(f"Delivered: {found.rows:,} records into {place}.")
    elif found.state == "failed":
        click.echo(f"Not delivered into {place}: {found.text}.", err=True)
        click.echo(f"When that is mended: officegrid deliver {view.id}", err=True)
    else:
        trouble = f" ({found.text})" if found.text else ""
        click.echo(f"On its way into {place}{trouble}.")


def _tell_end(view: JobView, as_json: bool, also: Mapping[str, object] | None = None) -> None:
    if as_json:
        show_json({**view.model_dump(), **(also or {})})
        return
    took = ""
    if view.started_at and view.ended_at:
        took = f" in {duration_text(view.ended_at - view.started_at)}"
    click.echo(
        f"{view.name} ({view.id}) {view.state}{took}: {view.done:,} of {view.total:,} records "
        f"done, {view.quarantined:,} quarantined."
    )
    tell_delivery(view)
    if view.state == "held":
        click.echo(f"Held: {view.reason}.", err=True)
        click.echo(f"What to do: officegrid why {view.id}", err=True)
    elif view.quarantined:
        click.echo(f"Look at them: officegrid quarantine {view.id}", err=True)
