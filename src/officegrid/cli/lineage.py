"""`officegrid lineage` and `officegrid rerun`: where an output comes from, and once more."""

from __future__ import annotations

from collections.abc import Iterator

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import ago, table
from officegrid.transport.http import Connection
from officegrid.wire.catalogue import Lineage, LineageUnit, LineageUnits, PinView
from officegrid.wire.jobs import JobView

RANGES_SHOWN = 5


@click.command()
@click.argument("job_id")
@click.option("--units", "with_units", is_flag=True, help="Each unit with its machine and lease.")
@json_option
def lineage(job_id: str, with_units: bool, as_json: bool) -> None:
    """Say which code, data and input made the output of a job, and on which machines."""
    with connect() as connection:
        found = connection.call("GET", f"/v1/jobs/{job_id}/lineage", reply=Lineage)
        listed = list(_units(connection, found.job)) if with_units else []
    if as_json:
        shown = found.model_dump()
        show_json({**shown, "units": [u.model_dump() for u in listed]} if with_units else shown)
        return
    _show(found)
    if with_units:
        _show_units(found, listed)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _units(connection: Connection, job: str) -> Iterator[LineageUnit]:
    at: int | None = 0
    while at is not None:
        page = connection.call(
            "GET", f"/v1/jobs/{job}/lineage/units", params={"from_record": at}, reply=LineageUnits
        )
        yield from page.units
        at = page.next_record


def _show(found: Lineage) -> None:
    click.echo(f"{found.name} ({found.job}): {found.state}")
    rows = [
        ("program", found.program),
        ("input", f"{found.records:,} records, {found.input_source}".rstrip(", ")),
        ("", f"sha256 {found.input_digest}" if found.input_digest else "not read yet"),
        ("output", f"{found.records_out:,} records, {found.quarantined:,} set aside"),
        ("submitted", f"{ago(found.created_at)} by {found.submitter}"),
        ("rerun of", found.rerun_of or ""),
    ]
    for name, text in rows:
        if text:
            click.echo(f"  {name:<11}{text}")
    for pin in found.pins:
        _show_pin(pin)
    for one in found.machines:
        click.echo(
            f"  machine    {one.name} ({one.id}): {_count(one.units, 'unit')}, "
            f"{_count(one.records, 'record')}"
        )


def _show_pin(pin: PinView) -> None:
    click.echo(f"  from {ago(pin.at)} on ({pin.why}): {_ranges(pin)}")
    if pin.bundle:
        version = "" if pin.code_version is None else f" version {pin.code_version}"
        click.echo(f"    code     {pin.code_name or ''}{version}, sha256 {pin.bundle}")
    for key, one in pin.data.items():
        click.echo(f"    data     {key} = {one.name} version {one.n}, sha256 {one.digest}")


def _ranges(pin: PinView) -> str:
    if not pin.records:
        return "no records"
    shown = ", ".join(f"{start:,}-{end - 1:,}" for start, end in pin.ranges[:RANGES_SHOWN])
    more = " and further ones" if len(pin.ranges) > RANGES_SHOWN else ""
    return f"{pin.records:,} records: {shown}{more}"


def _show_units(found: Lineage, listed: list[LineageUnit]) -> None:
    names = {one.id: one.name for one in found.machines}
    rows = [
        [
            f"{one.start:,}-{one.end - 1:,}", str(one.pin), str(one.generation),
            names.get(one.machine, one.machine), one.lease, one.digest[:12],
        ]
        for one in listed
    ]  # fmt: skip
    click.echo(table(["records", "version", "retry", "machine", "lease", "content"], rows))


@click.command()
@click.argument("job_id")
@json_option
def rerun(job_id: str, as_json: bool) -> None:
    """Run a job once more: the same input, with the very versions it ran last."""
    with connect() as connection:
        view = connection.call("POST", f"/v1/jobs/{job_id}/rerun", reply=JobView, retry=False)
    if as_json:
        show_json(view.model_dump())
        return
    click.echo(f"{view.name} ({view.id}): {view.state}, {view.total:,} records.")
    click.echo(f"Get its output: officegrid watch {view.id}; officegrid output {view.id} -o FILE")
