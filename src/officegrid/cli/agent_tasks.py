"""`officegrid agent tasks`: the two scheduled tasks for Windows PCs with nothing installed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from officegrid.agent.install.tasks import VBOXMANAGE, Logon, TaskPlan, task_files
from officegrid.cli.common import json_option
from officegrid.cli.main import show_json
from officegrid.core.errors import UnavailableError


@click.command()
@click.option("--vm", default="GridMachine", show_default=True, help="Name of the VM.")
@click.option("--user", required=True, help=r"The account that owns the VM: PC\grid, DOMAIN\grid$.")
@click.option(
    "--logon",
    type=click.Choice(["password", "s4u"]),
    default="password",
    show_default=True,
    help="How Windows logs the account on: with its stored password, or without one (S4U).",
)
@click.option("--vboxmanage", default=VBOXMANAGE, show_default=True, help="Path on the PCs.")
@click.option("--on-battery", is_flag=True, help="Also run on battery.")
@click.option(
    "--idle-end/--no-idle-end",
    default=True,
    show_default=True,
    help="Save the VM when Windows says that the idle time is over, not only at unlock and logon.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("officegrid-tasks"),
    show_default=True,
    help="Folder for the files.",
)
@json_option
def tasks(
    vm: str, user: str, logon: str, vboxmanage: str, on_battery: bool, idle_end: bool,
    folder: Path, as_json: bool,
) -> None:  # fmt: skip
    """Write two Windows scheduled tasks that start the VM when idle and save it at once."""
    plan = TaskPlan(vm, user, cast("Logon", logon), vboxmanage, on_battery, idle_end)
    files = task_files(plan)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UnavailableError(
            f"The tasks cannot be written to {folder}.",
            error.strerror or str(error),
            "Choose another folder with -o.",
        ) from None
    if as_json:
        show_json({"folder": str(folder), "files": sorted(files), "tasks": [plan.start_name,
                   plan.save_name]})  # fmt: skip
        return
    click.echo(f"Wrote {len(files)} files to {folder}.")
    click.echo("On each PC, as administrator: install.cmd, or install.ps1 for a roll-out.")
    click.echo("docs/windows-tasks.md tells what they do and what Windows needs.")
