"""`officegrid worker`: process units on this machine."""

from __future__ import annotations

import click

from officegrid.core.errors import ConflictError


@click.command()
@click.option(
    "--slots",
    envvar="OFFICEGRID_SLOTS",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Units worked on at once.",
)
@click.option("--drain", is_flag=True, help="Stop when nothing is left to do (for cron).")
@click.option(
    "--peers-port",
    envvar="OFFICEGRID_PEERS_PORT",
    type=click.IntRange(0, 65535),
    help="Share data with workers on the same network, listening here; 0: any free port.",
)
def worker(slots: int, drain: bool, peers_port: int | None) -> None:
    """Work for the grid: one instance per machine, stopped cleanly by Ctrl-C or SIGTERM."""
    from officegrid.transport.profile import home_folder
    from officegrid.worker.bootstrap import entered

    home = home_folder()
    try:
        with entered(home / "worker") as running:
            from officegrid.worker.main import run_worker

            run_worker(home, running, slots=slots, drain=drain, peers_port=peers_port)
    except ConflictError as error:
        # Cron starts a worker every few minutes: that one runs already is the normal case.
        if not drain or error.code != "already_running":
            raise
        click.echo(error.what, err=True)
