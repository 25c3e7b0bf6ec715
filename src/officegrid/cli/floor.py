"""`officegrid floor`: how old a program may be and still get work."""

from __future__ import annotations

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import table
from officegrid.core.errors import UsageError
from officegrid.wire.updates import FloorSettings, FloorView

OFF = "off"


@click.command()
@click.option(
    "--worker", metavar="VERSION", help="Oldest officegrid that a worker may run, or off."
)
@click.option("--agent", metavar="VERSION", help="Oldest officegrid of a desktop's agent, or off.")
@click.option("--image", metavar="N", help="Oldest version of the image a VM is made from, or off.")
@json_option
def floor(worker: str | None, agent: str | None, image: str | None, as_json: bool) -> None:
    """Show or set how old programs may be; machines below that get no units."""
    asked = FloorSettings(worker=_version(worker), agent=_version(agent), image=_number(image))
    changes = any(option is not None for option in (worker, agent, image))
    with connect() as connection:
        if changes:
            view = connection.call("PUT", "/v1/floor", body=asked, reply=FloorView)
        else:
            view = connection.call("GET", "/v1/floor", reply=FloorView)
    if as_json:
        show_json(view.model_dump())
        return
    rows = [
        ["worker", view.worker or OFF],
        ["agent", view.agent or OFF],
        ["image", str(view.image or OFF)],
    ]
    click.echo(table(["floor", "oldest"], rows))
    for one in view.below:
        click.echo(f"{one.name} ({one.id}) gets no units: {one.why}")
    if view.below:
        click.echo("`officegrid why NAME` says what would change that.")


def _version(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise UsageError("A floor has a version.", fix=f"Give one, such as 0.2.0, or {OFF}.")
    return "" if text == OFF else text


def _number(text: str | None) -> int | None:
    if text is None or text == OFF:
        return None if text is None else 0
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:12]) < 1_000_000_000:
        raise UsageError(
            f"{text[:40]!r} is not the version of an image.",
            fix=f"Give a number of `officegrid image list`, or {OFF}.",
        )
    return int(text)
