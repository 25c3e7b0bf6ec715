"""Commands about machines: make join codes, look at machines, revoke one."""

from __future__ import annotations

import socket
from datetime import datetime

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.machine_text import machine_lines, machine_table
from officegrid.cli.main import show_json
from officegrid.core.errors import UsageError
from officegrid.core.quantities import parse_duration_s
from officegrid.core.roles import ROLES
from officegrid.wire.jobs import JoinCodeReply, JoinCodeRequest, MachineList, MachineView


@click.command("join-code")
@click.option("--role", type=click.Choice([str(r) for r in ROLES]), required=True)
@click.option("--uses", default=1, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--ttl", default="1h", show_default=True, help="How long it is valid: 30m, 1h, 7d.")
@json_option
def join_code(role: str, uses: int, ttl: str, as_json: bool) -> None:
    """Make a code with which machines or people can join."""
    ttl_s = parse_duration_s(ttl)
    if ttl_s <= 0:
        raise UsageError("A join code must be valid for some time.", fix="Give --ttl 1h.")
    request = JoinCodeRequest.model_validate({"role": role, "uses": uses, "ttl_s": ttl_s})
    with connect() as connection:
        reply = connection.call(
            "POST", "/v1/join-codes", body=request, reply=JoinCodeReply, retry=False
        )
        url = connection.url
    if as_json:
        show_json(reply.model_dump())
        return
    until = datetime.fromtimestamp(reply.expires_at).strftime("%Y-%m-%d %H:%M")
    click.echo(reply.code)
    times = "once" if uses == 1 else f"{uses} times"
    click.echo(f"Valid {times}, until {until}. To use it:", err=True)
    host = url.replace("https://127.0.0.1", f"https://{socket.gethostname()}")
    service = " --install" if role == "agent" else ""
    click.echo(f"  officegrid join {host} --code {reply.code}{service}", err=True)


@click.command()
@json_option
def machines(as_json: bool) -> None:
    """List machines, each desktop with its worker in one row, and below them people."""
    with connect() as connection:
        reply = connection.call("GET", "/v1/machines", reply=MachineList)
    if as_json:
        show_json([m.model_dump() for m in reply.machines])
        return
    click.echo(machine_table(reply.machines))


@click.command()
@click.argument("name_or_id")
@json_option
def machine(name_or_id: str, as_json: bool) -> None:
    """Show one machine."""
    with connect() as connection:
        view = connection.call("GET", f"/v1/machines/{name_or_id}", reply=MachineView)
    if as_json:
        show_json(view.model_dump())
        return
    for line in machine_lines(view):
        click.echo(line)


@click.command()
@click.argument("name_or_id")
@json_option
def revoke(name_or_id: str, as_json: bool) -> None:
    """Take a machine's or user's access away; its units go to others."""
    with connect() as connection:
        view = connection.call("POST", f"/v1/machines/{name_or_id}/revoke", reply=MachineView)
    if as_json:
        show_json(view.model_dump())
        return
    click.echo(f"{view.name} ({view.id}) has no access any more.")
