"""`officegrid clean`: remove what nobody needs any more, and say why the rest stays."""

from __future__ import annotations

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import bytes_text, table
from officegrid.core.quantities import duration_text
from officegrid.wire.keeping import CleanReply, CleanRequest

WITHIN_S = 3600.0  # a store of a million objects takes a minute
SHOWN = 20


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def clean(dry_run: bool, as_json: bool) -> None:
    """Remove old versions, unused inputs and files that nothing refers to (admins only)."""
    with connect() as connection:
        reply = connection.call(
            "POST", "/v1/clean", body=CleanRequest(dry_run=dry_run), reply=CleanReply,
            timeout_s=WITHIN_S, retry=False,
        )  # fmt: skip
    if as_json:
        show_json(reply.model_dump())
        return
    _show(reply)


def _show(reply: CleanReply) -> None:
    verb = "Would go" if reply.dry_run else "Gone"
    click.echo(
        f"{verb}: {len(reply.jobs):,} jobs, {len(reply.versions):,} versions, "
        f"{reply.datasets:,} unused inputs, {reply.objects:,} objects with "
        f"{bytes_text(reply.bytes)}, in {duration_text(reply.took_s)}."
    )
    for one in reply.versions[:SHOWN]:
        click.echo(f"  {one.kind} {one.name} version {one.n}, {one.digest[:12]}")
    if len(reply.versions) > SHOWN:
        click.echo(f"  and {len(reply.versions) - SHOWN:,} more (--json lists all)")
    rows = [
        [one.what, one.reason, f"{one.count:,}", bytes_text(one.bytes) if one.bytes else "-"]
        for one in reply.stay
    ]
    if rows:
        click.echo(table(["stay", "because", "count", "size"], rows))
