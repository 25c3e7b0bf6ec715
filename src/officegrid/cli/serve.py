"""`officegrid serve`: run the coordinator."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from officegrid.core.errors import UsageError

DEFAULT_LISTEN = "0.0.0.0:8443"


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for the database, the objects and the certificates.",
)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT")
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="Further DNS name or address under which clients reach it (repeatable).",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its settings (default: coordinator.toml in DIR, if there is one).",
)
@click.option(
    "--lease-seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(2, 3600),
    help="How long a silent worker keeps its unit.",
)
@click.option(
    "--log",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    help="Log format; auto: text on a terminal, JSON lines elsewhere.",
)
def serve(
    data: Path, listen: str, names: tuple[str, ...], config_file: Path | None,
    lease_seconds: float, log: str,
) -> None:  # fmt: skip
    """Run the coordinator: it holds the jobs, hands out work and keeps the results."""
    try:
        from officegrid.coordinator import server
        from officegrid.coordinator.app import open_coordinator
        from officegrid.coordinator.config import FILE_NAME, load_config
        from officegrid.coordinator.local_admin import ensure_local_admin
        from officegrid.coordinator.log import configure_logging, get_logger
        from officegrid.coordinator.service.context import GridSettings
        from officegrid.coordinator.sources import check_all
    except ModuleNotFoundError as error:
        raise UsageError(
            "The coordinator's part of officegrid is not installed.",
            f"The package {error.name} is missing.",
            "Run `pip install 'officegrid[coordinator]'`.",
        ) from None

    configure_logging(json_lines=log == "json" or (log == "auto" and not sys.stderr.isatty()))
    if config_file is not None and not config_file.exists():
        raise UsageError(f"There is no settings file {config_file}.")
    config = load_config(config_file or data / FILE_NAME)
    check_all(config)
    host, port = server.parse_listen(listen)
    listener = server.bind(host, port)
    coordinator = open_coordinator(
        data,
        names=list(names),
        settings=replace(GridSettings(), lease_s=lease_seconds),
        config=config,
    )
    actual_port = int(listener.getsockname()[1])
    for warning in coordinator.storage.warnings:
        get_logger("serve").warning("storage", text=warning)
    home = ensure_local_admin(coordinator, data, actual_port)

    def ready() -> None:
        get_logger("serve").info("listening", url=f"https://{host}:{actual_port}", data=str(data))
        if sys.stderr.isatty():
            click.echo(f"Admin commands on this machine: officegrid --home {home} …", err=True)

    server.run(coordinator, listener, ready)
