"""`officegrid agent …`: the host agent of this desktop, each sub-command loaded when it is used."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "run": "agent_run",
    "status": "agent_look",
    "pause": "agent_look",
    "session": "agent_session",
    "install": "agent_install",
    "uninstall": "agent_install",
    "tasks": "agent_tasks",
}


class AgentGroup(click.Group):
    """Imports a sub-command's module only when it is used: the agent must stay small."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        loaded = importlib.import_module(f"officegrid.cli.{module}")
        command: click.Command = getattr(loaded, cmd_name)
        return command


@click.group(cls=AgentGroup)
def agent() -> None:
    """Run this desktop's worker VM while nobody is here, and give the PC back at once."""
