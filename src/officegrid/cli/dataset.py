"""Commands about versions of reference data."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.cli.versions import (
    PATIENCE_S,
    roll_back,
    tell_pushed,
    version_name,
    version_table,
)
from officegrid.client import data as client
from officegrid.client.catalogue import catalogue
from officegrid.client.data import PUSH_TIMEOUT_S
from officegrid.client.leftout import LeftOuts
from officegrid.client.progress import DataLine
from officegrid.client.text import ago
from officegrid.wire.catalogue import SourceView, VersionView


@click.command()
@click.argument("name", callback=version_name)
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@json_option
def push(name: str, path: Path, as_json: bool) -> None:
    """Make the file or folder PATH the newest version of the data NAME."""
    left_out = LeftOuts()
    with connect(retry_s=PATIENCE_S) as connection, DataLine() as line:
        view = client.push(connection, name, path, line, left_out)
    tell_pushed(name, view, as_json, left_out)


@click.command("list")
@click.argument("name", required=False, callback=version_name)
@json_option
def list_data(name: str | None, as_json: bool) -> None:
    """List data sets, or all versions of the data NAME."""
    with connect() as connection:
        listed = catalogue(connection, "data", name)
    found, waiting = listed.versions, listed.sources
    if as_json:
        show_json([one.model_dump() for one in found] + [_without_version(one) for one in waiting])
        return
    if not found and not waiting:
        click.echo("No data yet. Push some: officegrid data push NAME PATH")
        return
    click.echo(version_table(found, [one.name for one in waiting], with_names=name is None))
    for one in found:
        if one.trouble:
            click.echo(f"\n{one.name} was not refreshed: {one.trouble}", err=True)
    for source in waiting:
        looked = "its source has not been looked at so far."
        if source.looked_at:
            looked = f"its source was looked at {ago(source.looked_at)}. {source.trouble}".rstrip()
        click.echo(f"\n{source.name} has no version yet: {looked}", err=True)


def _without_version(source: SourceView) -> dict[str, object]:
    """The keys of a version, those that there are not as null."""
    nothing: dict[str, object] = dict.fromkeys(VersionView.model_fields)
    flags = {"gone": False, "newest": False, "lost": False, "new": False}
    return {**nothing, **flags, "kind": "data", **source.model_dump()}


@click.command()
@click.argument("name", callback=version_name)
@json_option
def refresh(name: str, as_json: bool) -> None:
    """Let the coordinator look at the source of the data NAME now."""
    with connect() as connection:
        view = connection.call(
            "POST", f"/v1/data/{quote(name, safe='')}/refresh", reply=VersionView,
            timeout_s=PUSH_TIMEOUT_S, retry=False,
        )  # fmt: skip
    tell_pushed(name, view, as_json)


@click.command()
@click.argument("name", callback=version_name)
@click.option("--to", type=click.IntRange(min=1), help="Default: the last other content.")
@json_option
def rollback(name: str, to: int | None, as_json: bool) -> None:
    """Make an earlier version of data the newest again, under a new number."""
    roll_back("data", name, to, as_json)
