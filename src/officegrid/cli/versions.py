"""Commands about versions of program folders: push, list, compare, go back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client import bundles as client
from officegrid.client.catalogue import LISTS, pick, versions, versions_path
from officegrid.client.leftout import LeftOuts
from officegrid.client.text import ago, bytes_text, table
from officegrid.core.errors import ConflictError, UsageError
from officegrid.wire.catalogue import MOST_NAME_CHARS, RollBack, VersionView, is_name

PATIENCE_S = 60.0


def version_name(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """A name that code or data can have: found out before anything is packed or sent. Raises
    UsageError."""
    if name is None or (is_name(name) and len(name) <= MOST_NAME_CHARS):
        return name
    raise UsageError(
        f"{name[:MOST_NAME_CHARS]!r} cannot be the name of code or data.",
        "A name begins with a letter or a digit, and has nothing but letters, digits and . _ + - "
        f"in it, {MOST_NAME_CHARS} at most.",
        'Write it like "postcodes".',
    )


@click.command()
@click.argument("name", callback=version_name)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def push(name: str, folder: Path, as_json: bool) -> None:
    """Make DIR the newest version of the program NAME."""
    left_out = LeftOuts()
    with connect(retry_s=PATIENCE_S) as connection:
        view = client.push(connection, name, folder, left_out)
    tell_pushed(name, view, as_json, left_out)


def tell_pushed(
    name: str, view: VersionView, as_json: bool, left_out: LeftOuts | None = None
) -> None:
    if as_json:
        also = {} if left_out is None else {"left_out": left_out.plain()}
        show_json({**view.model_dump(), **also})
        return
    if left_out is not None:
        left_out.tell()
    if not view.new:
        click.echo(f"{name}: nothing has changed; version {view.n} is the newest.")
    else:
        click.echo(f"{name}: version {view.n}, {view.digest[:12]}.")
    tell_switched(view)


def tell_switched(view: VersionView) -> None:
    if view.switched_jobs:
        click.echo(f"Running jobs that switched to it: {', '.join(view.switched_jobs)}.")


@click.command()
@click.argument("name", required=False, callback=version_name)
@json_option
def bundles(name: str | None, as_json: bool) -> None:
    """List programs, or all versions of the program NAME."""
    with connect() as connection:
        found = versions(connection, "code", name)
    if as_json:
        show_json([one.model_dump() for one in found])
        return
    if not found:
        click.echo("No program yet. Push one: officegrid push NAME DIR")
        return
    click.echo(version_table(found, with_names=name is None))


def version_table(
    found: list[VersionView], without: Sequence[str] = (), *, with_names: bool
) -> str:
    """Of versions, and of the names `without` any."""
    headers = ["name", "version", "content", "size", "pushed", "by", "from"]
    rows = [
        [
            one.name, f"{one.n}{' (newest)' if one.newest and not with_names else ''}",
            "cleaned up" if one.gone else one.digest[:12],
            "-" if one.stored_bytes is None else bytes_text(one.stored_bytes),
            ago(one.created_at), one.pushed_by, one.origin,
        ]
        for one in found
    ]  # fmt: skip
    rows += [[name, "none yet", "-", "-", "-", "-", "-"] for name in without]
    return table(headers, rows)


@click.command()
@click.argument("name", callback=version_name)
@click.argument("old", type=click.IntRange(min=1), required=False)
@click.argument("new", type=click.IntRange(min=1), required=False)
@click.option("--names", is_flag=True, help="Only which files differ, not how.")
@json_option
def diff(name: str, old: int | None, new: int | None, names: bool, as_json: bool) -> None:
    """Show what differs between two versions of a program.

    Without numbers: the newest against the one before. With one: that one against the newest.
    """
    with connect() as connection:
        known = versions(connection, "code", name)
        after = pick(known, new)
        before = pick(known, old if old is not None else _before(known, after))
        changes = client.compare(connection, before, after)
    if as_json:
        show_json(
            {"name": name, "old": before.n, "new": after.n, "changes": [asdict(c) for c in changes]}
        )
        return
    found = "1 file differs" if len(changes) == 1 else f"{len(changes)} files differ"
    click.echo(f"{name}: version {before.n} → {after.n}, {found}.")
    for change in changes:
        click.echo(f"{change.kind} {change.path}: {change.note}")
        if not names:
            click.echo("".join(f"{line}\n" for line in change.lines), nl=False)


def _before(known: list[VersionView], after: VersionView) -> int:
    earlier = [one.n for one in known if one.n < after.n and not one.gone]
    if not earlier:
        raise ConflictError(
            f"{after.name} has no version before {after.n} to compare with.",
            "There was none, or its content was cleaned up.",
            f"Name two of `{LISTS['code']} {after.name}`.",
        )
    return max(earlier)


@click.command()
@click.argument("name", callback=version_name)
@click.option("--to", type=click.IntRange(min=1), help="Default: the last other content.")
@json_option
def rollback(name: str, to: int | None, as_json: bool) -> None:
    """Make an earlier version of a program the newest again, under a new number."""
    roll_back("code", name, to, as_json)


def roll_back(kind: str, name: str, to: int | None, as_json: bool) -> None:
    with connect() as connection:
        view = connection.call(
            "POST", f"{versions_path(kind, name)}/roll-back", body=RollBack(to=to),
            reply=VersionView, retry=False,
        )  # fmt: skip
    if as_json:
        show_json(view.model_dump())
        return
    click.echo(f"{name}: version {view.n} is {view.origin}.")
    tell_switched(view)
