"""`officegrid image seed`: the seed disk for a VM that is set up by hand, without an agent."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import click

from officegrid.core.errors import ConflictError, UnavailableError, UsageError
from officegrid.core.joincode import parse_code
from officegrid.transport.address import is_loopback, normalise_url


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("seed.iso"),
    show_default=True,
    help="File to write; it must not be there yet.",
)
@click.option("--url", required=True, metavar="URL", help="The coordinator, as the VM reaches it.")
@click.option(
    "--code", envvar="OFFICEGRID_CODE", help="A worker's join code; asked for when left out."
)
@click.option("--name", help="The VM's name on the grid (default: grid- and six characters).")
@click.option("--proxy", metavar="URL", help="The way out: http://proxy.example.com:3128")
@click.option("--ntp", multiple=True, metavar="HOST", help="A time server. Repeatable.")
@click.option(
    "--allow",
    multiple=True,
    metavar="HOST:PORT",
    help="What programs may reach besides, such as a database. Repeatable.",
)
@click.option("--slots", type=int, help="Units worked on at once (default: as the image says).")
@click.option(
    "--start",
    type=click.Choice(["service", "cron"]),
    help="The worker is always there, or started every few minutes while there is work.",
)
def seed(
    output: Path, url: str, code: str | None, name: str | None, proxy: str | None,
    ntp: tuple[str, ...], allow: tuple[str, ...], slots: int | None, start: str | None,
) -> None:  # fmt: skip
    """Write the disk that tells a VM which grid to join, for a VM without an agent."""
    os.environ.pop("OFFICEGRID_CODE", None)  # no program that is started from here needs it
    told = {
        "proxy": proxy, "ntp": list(ntp), "allow": list(allow), "slots": slots, "start": start
    }  # fmt: skip
    settings = _checked({key: value for key, value in told.items() if value not in (None, "", [])})
    address = _reachable(url)
    if output.exists():
        raise ConflictError(
            f"{output} is there already.",
            "A VM that it is attached to would become another machine.",
            "Delete it first, or choose another file with -o.",
        )
    code = code or str(click.prompt("Join code", hide_input=True, err=True))
    parse_code(code)
    name = name or f"grid-{secrets.token_hex(3)}"
    _write(output, name, address, code, settings)
    click.echo(f"Wrote {output} for the VM {name!r}. The code in it is a secret until it is used.")
    click.echo("Attach it as a CD before the VM's first start; afterwards delete it.")


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """By the guest's own reader. Raises UsageError."""
    from officegrid.guest.settings import merge

    _, complaints = merge({}, settings)
    if complaints:
        raise UsageError(
            "The VM would not take these settings.",
            " ".join(complaints),
            "--proxy is http://HOST:PORT, --allow HOST:PORT or NETWORK/BITS:PORT, --ntp a host, "
            "--slots 1 to 256.",
        )
    return settings


def _reachable(url: str) -> str:
    address = normalise_url(url)
    if is_loopback(address):
        raise UsageError(
            f"A VM cannot reach the coordinator at {address}.",
            "That address means the VM itself.",
            "Give a name or address of the coordinator that is on the network.",
        )
    return address


def _write(output: Path, name: str, url: str, code: str, settings: dict[str, Any]) -> None:
    from officegrid.agent.files import write_private
    from officegrid.agent.seed import Seed, iso_image

    seed = Seed(f"officegrid-{secrets.token_hex(8)}", name, url, code, settings)
    try:
        image = iso_image(seed.files())
    except ImportError:
        raise UsageError(
            "The disk cannot be written.",
            "The package pycdlib is not installed.",
            "Install officegrid with its extra `agent`.",
        ) from None
    try:
        write_private(output, image)
    except OSError as error:
        raise UnavailableError(
            f"{output} cannot be written.", error.strerror or str(error),
            "Choose another folder with -o.",
        ) from None  # fmt: skip
