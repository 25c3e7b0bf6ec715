"""`officegrid image …`: the worker image, each sub-command loaded when it is used."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "build": "image_build",
    "list": "images",
    "show": "images",
    "push": "images",
    "rollout": "images",
    "seed": "image_seed",
}


class ImageGroup(click.Group):
    """Imports a sub-command's module only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        loaded = importlib.import_module(f"officegrid.cli.{module}")
        # `list` is a Python word: its function is called list_images, its command `list`.
        wanted = {"list": "list_images"}.get(cmd_name, cmd_name)
        command: click.Command = getattr(loaded, wanted)
        return command


@click.group(cls=ImageGroup)
def image() -> None:
    """Build the worker image, push it to the coordinator, and follow who runs it."""
