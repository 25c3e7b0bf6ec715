"""`officegrid`: one command with sub-commands, each loaded only when it is used.

Exit codes: 0 done, 1 failed, 2 usage, 3 finished with quarantined records.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from officegrid import __version__
from officegrid.cli.lazy import LazyGroup
from officegrid.core.errors import OfficeGridError

COMMANDS = {
    "agent": "agent",
    "bundles": "versions",
    "cancel": "jobs",
    "clean": "clean",
    "data": "data",
    "deliver": "jobs",
    "demo": "demo",
    "diff": "versions",
    "drain": "desks",
    "floor": "floor",
    "hold": "jobs",
    "image": "image",
    "job": "jobs",
    "jobs": "jobs",
    "join": "join",
    "join-code": "machines",
    "lineage": "lineage",
    "machine": "machines",
    "machines": "machines",
    "output": "results",
    "peers": "peers",
    "policy": "desks",
    "push": "versions",
    "quarantine": "results",
    "release": "jobs",
    "rerun": "lineage",
    "retry": "jobs",
    "revoke": "machines",
    "rollback": "versions",
    "serve": "serve",
    "story": "why",
    "submit": "submit",
    "update": "update",
    "watch": "submit",
    "why": "why",
    "worker": "worker",
}


class MainGroup(LazyGroup):
    """Suggests a command for a mistyped one."""

    modules = COMMANDS

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if close:
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None
            raise


@click.group(cls=MainGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="officegrid")
@click.option(
    "--home",
    metavar="DIR",
    help="Folder with this machine's credentials (default: $OFFICEGRID_HOME, else "
    "~/.config/officegrid).",
)
def cli(home: str | None) -> None:
    """Office Grid: makes idle office desktops one batch engine."""
    if home:
        os.environ["OFFICEGRID_HOME"] = home


def main(arguments: list[str] | None = None) -> None:
    """Entry point: every error a person can meet ends here as text and an exit code."""
    try:
        code = cli.main(args=arguments, prog_name="officegrid", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except OfficeGridError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the reader of our output is gone
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def show_error(error: OfficeGridError) -> None:
    click.echo(f"Error: {error.what}", err=True)
    if error.why:
        click.echo(f"  why: {error.why}", err=True)
    if error.fix:
        click.echo(f"  fix: {error.fix}", err=True)


def show_json(value: Any) -> None:
    """Machine-readable output: one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))


if __name__ == "__main__":
    main()
