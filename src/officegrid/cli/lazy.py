"""Groups of commands, each loaded only when it is used: a worker must not load the server."""

from __future__ import annotations

import importlib
from typing import ClassVar

import click


class LazyGroup(click.Group):
    """`modules` names the module in `officegrid.cli` for each command. The function in it is
    called as the command, with `_` for `-`; `module:function` says so where it is not."""

    modules: ClassVar[dict[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self.modules.get(cmd_name)
        if place is None:
            return None
        module, _, function = place.partition(":")
        loaded = importlib.import_module(f"officegrid.cli.{module}")
        command: click.Command = getattr(loaded, function or cmd_name.replace("-", "_"))
        return command
