"""`officegrid image …`: the worker image, each sub-command loaded when it is used."""

from __future__ import annotations

import click

from officegrid.cli.lazy import LazyGroup

COMMANDS = {
    "build": "image_build",
    "list": "images:list_images",
    "show": "images",
    "push": "images",
    "rollout": "images",
    "seed": "image_seed",
}


class ImageGroup(LazyGroup):
    modules = COMMANDS


@click.group(cls=ImageGroup)
def image() -> None:
    """Build the worker image, push it to the coordinator, and follow who runs it."""
