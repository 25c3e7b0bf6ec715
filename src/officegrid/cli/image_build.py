"""`officegrid image build`: make the worker image, on a Linux machine, as root."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from officegrid.cli.common import json_option
from officegrid.cli.main import show_json
from officegrid.core.errors import UsageError
from officegrid.image.recipe import (
    FORMATS,
    PARTS,
    RELEASES,
    Recipe,
    check,
    parse_list,
    parse_start,
)

_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _cache_folder() -> Path:
    start = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(start) / "officegrid" / "image"


def _work_folder() -> Path:
    return Path(os.environ.get("TMPDIR") or "/var/tmp")


def _epoch_s() -> int:
    """$SOURCE_DATE_EPOCH; 0 where it is not set. Raises UsageError."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdigit():
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {text!r}.", "It must be a number of seconds since 1970."
        )
    return int(text or 0)


@click.command()
@click.option(
    "-o",
    "--output",
    type=_FOLDER,
    default=Path("image"),
    show_default=True,
    help="Folder for the finished image; one of an earlier build is replaced.",
)
@click.option("--family", type=click.Choice(list(RELEASES)), default="debian", show_default=True)
@click.option("--release", help="Debian: bookworm (default) or trixie. el9: 9.")
@click.option(
    "--with",
    "parts",
    multiple=True,
    default=[",".join(PARTS)],
    show_default=True,
    help="Parts to put in, separated by commas, or none.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=[",".join(FORMATS)],
    show_default=True,
    help="Files to write, separated by commas.",
)
@click.option(
    "--start",
    default="service",
    show_default=True,
    help="How the worker runs: service, cron or cron:MINUTES.",
)
@click.option("--package", "packages", multiple=True, help="A further package; repeatable.")
@click.option(
    "--script",
    "scripts",
    multiple=True,
    type=_FILE,
    help="Run in the image's root as root; repeatable.",
)
@click.option("--name", default="", help="Default: gridmachine- and the date of the packages.")
@click.option(
    "--disk",
    "disk_gb",
    type=int,
    default=16,
    show_default=True,
    help="Size of the guest's disk in GB; files take only what is used.",
)
@click.option("--mirror", default="", help="Package mirror instead of the public one.")
@click.option("--security-mirror", default="", help="Debian's security updates come from here.")
@click.option(
    "--wheelhouse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the worker's libraries; nothing is asked of a package index.",
)
@click.option(
    "--cache",
    type=_FOLDER,
    default=_cache_folder,
    help="Downloads kept between builds. Default: ~/.cache/officegrid/image.",
)
@click.option(
    "--work",
    type=_FOLDER,
    default=_work_folder,
    help="Folder for some GB while building. Default: $TMPDIR, else /var/tmp.",
)
@json_option
def build(
    output: Path, family: str, release: str | None, parts: tuple[str, ...],
    formats: tuple[str, ...], start: str, packages: tuple[str, ...], scripts: tuple[Path, ...],
    name: str, disk_gb: int, mirror: str, security_mirror: str, wheelhouse: Path | None,
    cache: Path, work: Path, as_json: bool,
) -> None:  # fmt: skip
    """Build the worker image: a sealed Linux with the worker in it, the same for every desktop."""
    word, every_minutes = parse_start(start)
    recipe = check(
        Recipe(
            family=family,
            release=release or RELEASES[family][0],
            parts=parse_list(parts, PARTS, "--with"),
            formats=parse_list(formats, FORMATS, "--format"),
            start=word,
            every_minutes=every_minutes,
            packages=packages,
            scripts=tuple(script.absolute() for script in scripts),
            disk_gb=disk_gb,
            mirror=mirror,
            security_mirror=security_mirror,
            wheelhouse=wheelhouse.absolute() if wheelhouse else None,
        )
    )
    epoch_s = _epoch_s()
    # Only now: what was wrong with the options is told at once.
    from officegrid.image.build import Where
    from officegrid.image.build import build as build_image

    # A build that is told to end undoes its mounts and removes its draft first.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    started = time.monotonic()
    where = Where(output.absolute(), work.absolute(), cache.absolute())
    description = build_image(
        recipe, where, lambda line: click.echo(line, err=True), name=name, epoch_s=epoch_s
    )
    if as_json:
        show_json({**description, "folder": str(where.output)})
        return
    took = f"officegrid {description['worker_version']}, in {time.monotonic() - started:.0f} s"
    click.echo(f"{description['name']}: {description['about']['system']} with {took}")
    for kind, file in description["files"].items():
        click.echo(f"  {kind:6} {file['size'] / 1e6:7.0f} MB  {where.output / file['name']}")
    click.echo(f"Give it to the desktops: officegrid image push {output}")
