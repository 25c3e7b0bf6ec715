"""`officegrid update …`: the release that workers update themselves to."""

from __future__ import annotations

from pathlib import Path

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import ago, bytes_text, table
from officegrid.client.updates import push as push_release
from officegrid.wire.updates import UpdateList

PATIENCE_S = 60.0


@click.group()
def update() -> None:
    """Push a release of officegrid to the workers, see who runs what, take it back."""


@update.command()
@click.argument("wheel", required=False, type=click.Path(path_type=Path))
@json_option
def push(wheel: Path | None, as_json: bool) -> None:
    """Put WHEEL in force, or without it the officegrid that is installed here."""
    with connect(retry_s=PATIENCE_S) as connection:
        reply = push_release(connection, wheel)
    _show(reply, as_json)


@update.command("list")
@json_option
def list_updates(as_json: bool) -> None:
    """List releases, newest first, and the machines on which they failed."""
    with connect() as connection:
        reply = connection.call("GET", "/v1/updates", reply=UpdateList)
    _show(reply, as_json)


@update.command("roll-back")
@json_option
def roll_back(as_json: bool) -> None:
    """Withdraw the release in force; workers go back to the one before."""
    with connect() as connection:
        reply = connection.call("POST", "/v1/updates/roll-back", reply=UpdateList, retry=False)
    _show(reply, as_json)


@update.command()
@json_option
def retry(as_json: bool) -> None:
    """Have machines on which the release in force failed try it again."""
    with connect() as connection:
        reply = connection.call("POST", "/v1/updates/retry", reply=UpdateList, retry=False)
    _show(reply, as_json)


def _show(reply: UpdateList, as_json: bool) -> None:
    if as_json:
        show_json(reply.model_dump())
        return
    if reply.releases:
        rows = [
            [
                one.version, one.digest[:12], one.state, str(one.running), str(len(one.failed)),
                bytes_text(one.size), ago(one.pushed_at), one.pushed_by,
            ]
            for one in reply.releases
        ]  # fmt: skip
        headers = ["version", "digest", "state", "running", "failed", "size", "pushed", "by"]
        click.echo(table(headers, rows))
    else:
        click.echo("No release was pushed yet: workers run what is installed on each machine.")
    for release in reply.releases:
        for one in release.failed:
            click.echo(f"{release.version} did not work on {one.name} ({one.id}): {one.why}")
    if reply.versions:
        known = ", ".join(f"{version} on {count}" for version, count in reply.versions.items())
        click.echo(f"Workers run: {known}")
