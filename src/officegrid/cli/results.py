"""`officegrid output` and `officegrid quarantine`: what a job made, and what it set aside."""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.output import fetch_output
from officegrid.client.quarantine import plain, quarantined, save_quarantine
from officegrid.client.text import bytes_text
from officegrid.wire.data import FileFormat
from officegrid.wire.jobfile import format_of_path
from officegrid.wire.jobs import QuarantineRow

RAW_SHOWN_CHARS = 200


@click.command()
@click.argument("job_id")
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write; .gz and .zst compress; - is standard output.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(list(get_args(FileFormat))),
    help="Default: by the extension of FILE, else as the job file says.",
)
@json_option
def output(job_id: str, path: Path, file_format: str | None, as_json: bool) -> None:  # fmt: skip
    """Fetch the output of a job as one file, in input order."""
    if str(path) == "-":
        _to_stdout(job_id, cast("FileFormat | None", file_format))
        return
    with connect() as connection:
        chosen = cast("FileFormat | None", file_format) or format_of_path(path.name)
        written = fetch_output(connection, job_id, path, chosen)
    if as_json:
        show_json({"path": str(written.path), "bytes": written.bytes, "sha256": written.sha256})
        return
    click.echo(f"{written.path}: {bytes_text(written.bytes)}, sha256 {written.sha256}")


def _to_stdout(job_id: str, file_format: FileFormat | None) -> None:
    with connect() as connection, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "output"
        fetch_output(connection, job_id, path, file_format)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


@click.command()
@click.argument("job_id")
@click.option(
    "--limit", default=20, show_default=True, help="0 shows all.", type=click.IntRange(min=0)
)
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path),
    help="Write all of them as NDJSON to this file.",
)
@json_option
def quarantine(job_id: str, limit: int, path: Path | None, as_json: bool) -> None:  # fmt: skip
    """Show the records that were set aside: number, reason, attempts, raw text."""
    with connect() as connection:
        if path is not None:
            count = save_quarantine(connection, job_id, path)
            if as_json:
                show_json({"path": str(path), "records": count})
            else:
                click.echo(f"{path}: {count:,} quarantined records")
            return
        shown = _first(quarantined(connection, job_id), limit)
    if as_json:
        show_json([plain(row) for row in shown])
        return
    if not shown:
        click.echo("Nothing is quarantined.")
    for row in shown:
        raw = base64.b64decode(row.raw_base64).decode("utf-8", "backslashreplace").rstrip("\r\n")
        if len(raw) > RAW_SHOWN_CHARS:
            raw = raw[:RAW_SHOWN_CHARS] + "…"
        tries = "once" if row.attempts == 1 else f"{row.attempts} times"
        click.echo(f"record {row.record:,}, tried {tries}: {row.error}")
        click.echo("".join(f"    {line}\n" for line in raw.split("\n")), nl=False)
    if limit and len(shown) == limit:
        click.echo("More with --limit 0, or all as a file with -o FILE.", err=True)


def _first(rows: Iterator[QuarantineRow], limit: int) -> list[QuarantineRow]:
    found: list[QuarantineRow] = []
    for row in rows:
        found.append(row)
        if limit and len(found) >= limit:
            break
    return found
