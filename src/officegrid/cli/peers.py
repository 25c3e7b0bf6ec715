"""`officegrid peers`: which workers share data with others, and how much that saved."""

from __future__ import annotations

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import ago, bytes_text, table
from officegrid.wire.peers import PeerList


@click.command()
@json_option
def peers(as_json: bool) -> None:
    """Show the workers that share data with others on their network."""
    with connect() as connection:
        found = connection.call("GET", "/v1/peers", reply=PeerList)
    if as_json:
        show_json(found.model_dump())
        return
    if not found.allowed:
        click.echo("Workers fetch from the coordinator only: [peers] in coordinator.toml is off.")
        return
    rows = [
        [one.network, one.name, f"{one.address} port {one.port}", f"{one.objects:,}",
         ago(one.told_at)]
        for one in found.peers
    ]  # fmt: skip
    if rows:
        click.echo(table(["network", "worker", "address", "objects", "told"], rows))
    else:
        click.echo("No worker shares anything now. They do with `officegrid worker --peers-port`.")
    click.echo(
        f"From one another: {found.got_objects:,} objects with {bytes_text(found.got_bytes)} "
        "since the coordinator began."
    )
