"""`officegrid why` and `officegrid story`: why something does not run, and what happened to it."""

from __future__ import annotations

from datetime import datetime

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.wire.jobs import StoryReply, WhyReply


@click.command()
@click.argument("job_or_machine")
@json_option
def why(job_or_machine: str, as_json: bool) -> None:
    """Say in words why a job or a machine is not working."""
    with connect() as connection:
        reply = connection.call("GET", f"/v1/why/{job_or_machine}", reply=WhyReply)
    if as_json:
        show_json(reply.model_dump())
        return
    for sentence in reply.sentences:
        click.echo(sentence)


@click.command()
@click.argument("job_or_machine")
@json_option
def story(job_or_machine: str, as_json: bool) -> None:
    """Show what happened to a job or machine, in order."""
    with connect() as connection:
        reply = connection.call("GET", f"/v1/story/{job_or_machine}", reply=StoryReply)
    if as_json:
        show_json([event.model_dump() for event in reply.events])
        return
    for event in reply.events:
        at = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"{at}  {event.text}")
