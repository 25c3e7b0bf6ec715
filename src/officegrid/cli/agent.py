"""`officegrid agent …`: the host agent of this desktop, each sub-command loaded when it is used."""

from __future__ import annotations

import click

from officegrid.cli.lazy import LazyGroup

COMMANDS = {
    "run": "agent_run",
    "status": "agent_look",
    "pause": "agent_look",
    "session": "agent_session",
    "install": "agent_install",
    "uninstall": "agent_install",
    "tasks": "agent_tasks",
}


class AgentGroup(LazyGroup):
    modules = COMMANDS


@click.group(cls=AgentGroup)
def agent() -> None:
    """Run this desktop's worker VM while nobody is here, and give the PC back at once."""
