"""Commands about jobs: list, show, cancel, hold, release, retry."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import ago, share, table
from officegrid.core.errors import UsageError
from officegrid.core.quantities import duration_text
from officegrid.wire.jobs import (
    HoldRequest,
    JobList,
    JobView,
    ReleaseJobRequest,
    RetryRequest,
)


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@json_option
def jobs(limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    with connect() as connection:
        reply = connection.call("GET", "/v1/jobs", params={"limit": limit}, reply=JobList)
    if as_json:
        show_json([job.model_dump() for job in reply.jobs])
        return
    if not reply.jobs:
        click.echo("No jobs yet. Submit one: officegrid submit job.toml --watch")
        return
    rows = [
        [
            job.id, job.name, job.state, f"{job.total:,}", share(job.done, job.total),
            f"{job.quarantined:,}", f"{job.records_per_s:,.0f}" if job.records_per_s else "-",
            "-" if job.eta_s is None else duration_text(job.eta_s), ago(job.created_at),
        ]
        for job in reply.jobs
    ]  # fmt: skip
    headers = [
        "id", "name", "state", "records", "done", "quarantined", "records/s", "left", "submitted"
    ]  # fmt: skip
    click.echo(table(headers, rows))


@click.command()
@click.argument("job_id")
@json_option
def job(job_id: str, as_json: bool) -> None:
    """Show one job (by id, or the newest of a name)."""
    with connect() as connection:
        view = connection.call("GET", f"/v1/jobs/{job_id}", reply=JobView)
    if as_json:
        show_json(view.model_dump())
        return
    show_job(view)


def show_job(view: JobView) -> None:
    click.echo(f"{view.name} ({view.id}): {view.state}{f', {view.reason}' if view.reason else ''}")
    click.echo(f"  records      {view.total:,}")
    click.echo(f"  done         {view.done:,} ({share(view.done, view.total)})")
    click.echo(f"  quarantined  {view.quarantined:,}")
    click.echo(f"  left         {view.pending + view.leased:,}, {view.units_running} units running")
    click.echo(f"  output       {view.records_out:,} records, {view.output_file_format}")
    click.echo(f"  units        {view.units:,} committed")
    if view.records_per_s:
        eta = "" if view.eta_s is None else f", {duration_text(view.eta_s)} left"
        click.echo(f"  speed        {view.records_per_s:,.0f} records/s{eta}")
    if view.started_at and view.ended_at:
        click.echo(f"  took         {duration_text(view.ended_at - view.started_at)}")
    if view.schedule:
        click.echo(f"  schedule     {view.schedule}")
    click.echo(f"  submitted    {ago(view.created_at)} by {view.submitter}")
    if view.delivery is not None:
        words = f", {view.delivery.text}" if view.delivery.text else ""
        place = f"{view.delivery.source}.{view.delivery.table}"
        click.echo(f"  table        {place}: {view.delivery.state}{words}")
    if view.bundle:
        version = "" if view.code_version is None else f"{view.code_name} {view.code_version}, "
        more = (
            "" if view.pins < 2 else f"; {view.pins} versions so far: officegrid lineage {view.id}"
        )
        click.echo(f"  code         {version}{view.bundle[:12]}{more}")


def _report(view: JobView, as_json: bool, sentence: str) -> None:
    if as_json:
        show_json(view.model_dump())
    else:
        click.echo(f"{view.name} ({view.id}) {sentence}")


@click.command()
@click.argument("job_id")
@json_option
def cancel(job_id: str, as_json: bool) -> None:
    """Cancel a job; what is committed stays, the rest is not processed."""
    with connect() as connection:
        view = connection.call("POST", f"/v1/jobs/{job_id}/cancel", reply=JobView)
    _report(view, as_json, "is cancelled.")


@click.command()
@click.argument("job_id")
@json_option
def deliver(job_id: str, as_json: bool) -> None:
    """Put the output of a job into its table once more, after that has failed, and wait."""
    from officegrid.cli.submit import delivered, tell_delivery

    with connect() as connection:
        view = connection.call("POST", f"/v1/jobs/{job_id}/deliver", reply=JobView)
        view = delivered(connection, view)
    if as_json:
        show_json(view.model_dump())
    else:
        tell_delivery(view)
    # Of the delivery: the job itself may run again, for a retry.
    if view.delivery is None or view.delivery.state == "failed":
        sys.exit(1)
    sys.exit(3 if view.quarantined else 0)


@click.command()
@click.argument("job_id")
@click.option("--reason", default="", help="Shown to everybody who asks why.")
@json_option
def hold(job_id: str, reason: str, as_json: bool) -> None:
    """Give out no more units of a job until it is released."""
    with connect() as connection:
        view = connection.call(
            "POST", f"/v1/jobs/{job_id}/hold", body=HoldRequest(reason=reason), reply=JobView
        )
    _report(view, as_json, "is held; units that run may still end.")


@click.command()
@click.argument("job_id")
@click.option("--quarantine-limit", help='New limit for a job held for it, like "5%" or 1000.')
@json_option
def release(job_id: str, quarantine_limit: str | None, as_json: bool) -> None:
    """Let a held job go on."""
    body = ReleaseJobRequest(quarantine_limit=quarantine_limit)
    with connect() as connection:
        view = connection.call("POST", f"/v1/jobs/{job_id}/release", body=body, reply=JobView)
    _report(view, as_json, f"is {view.state}.")


@click.command()
@click.argument("job_id")
@click.option(
    "--job-file",
    type=click.Path(path_type=Path),
    help="Use the program and limits of this job file, and upload its code afresh.",
)
@json_option
def retry(job_id: str, job_file: Path | None, as_json: bool) -> None:
    """Process the quarantined records of a job again, with newer code if --job-file is given."""
    from officegrid.client.leftout import LeftOuts
    from officegrid.client.submit import bundle_of, load_job_file
    from officegrid.wire.jobs import JobSpec

    left_out = LeftOuts()
    with connect() as connection:
        request = RetryRequest()
        if job_file is not None:
            parsed = load_job_file(job_file)
            before = connection.call("GET", f"/v1/jobs/{job_id}", reply=JobView)
            if parsed.name != before.name:
                raise UsageError(
                    f"{job_file} is the job file of {parsed.name!r}, and {before.id} is "
                    f"{before.name!r}.",
                    "A retry runs the records of that job with its corrected program.",
                    "Name the job's own file.",
                )
            bundle = bundle_of(connection, parsed, job_file.resolve().parent, left_out)
            old = JobSpec.model_validate(before.spec)
            program = parsed.program(old.program.stdin or old.output.format)
            if old.program.stdin is not None:
                program = program.model_copy(
                    update={"stdin": old.program.stdin, "stdout": old.program.stdout}
                )
            request = RetryRequest(bundle=bundle, program=program, limits=parsed.limits())
        view = connection.call("POST", f"/v1/jobs/{job_id}/retry", body=request, reply=JobView)
    if not as_json:
        left_out.tell()
    again = view.pending + view.leased
    _report(view, as_json, f"runs again: {again:,} records to process.")
