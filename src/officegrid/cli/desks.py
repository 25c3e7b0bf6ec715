"""Commands about desktops: the central rules, and taking a machine out of service."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from officegrid.cli.common import connect, json_option
from officegrid.cli.main import show_json
from officegrid.client.text import table
from officegrid.core.desk import DeskPolicy
from officegrid.core.errors import UsageError
from officegrid.core.quantities import duration_text
from officegrid.wire.agent import DeskRules, DrainRequest, desk_rules
from officegrid.wire.jobs import MachineView

RULES_PATH = "/v1/desk-rules"


@click.command()
@click.option(
    "--set",
    "file",
    type=click.Path(path_type=Path),
    help="Replace the rules by those of this TOML file ([rules] table or top level).",
)
@click.option("--reset", is_flag=True, help="Back to the defaults.")
@json_option
def policy(file: Path | None, reset: bool, as_json: bool) -> None:
    """Show or replace the rules that say when desktops may work."""
    if file is not None and reset:
        raise UsageError("--set and --reset contradict each other.", fix="Give one of them.")
    new = DeskRules() if reset else read_rules_file(file) if file is not None else None
    with connect() as connection:
        if new is None:
            rules = connection.call("GET", RULES_PATH, reply=DeskRules)
        else:
            rules = connection.call("PUT", RULES_PATH, body=new, reply=DeskRules)
    if as_json:
        show_json({"in_force": in_force(rules), "set": rules.model_dump(exclude_none=True)})
        return
    if new is not None:
        click.echo("The rules are replaced; each desktop hears of them with its next report.")
    click.echo(_rules_text(rules))


def read_rules_file(path: Path) -> DeskRules:
    """Rules from a TOML file. Raises UsageError that names the wrong key."""
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The rules in {path} cannot be read.", str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}.", fix="Correct the line named above."
        ) from None
    table_of_rules = raw.get("rules")
    if isinstance(table_of_rules, dict):
        beside = sorted(set(raw) - {"rules"})
        if beside:
            raise UsageError(
                f"{path} has {beside[0]!r} beside its [rules].",
                "Rules are either in a [rules] table or at the top of the file.",
                "Move it into [rules], or remove it.",
            )
        raw = table_of_rules
    return desk_rules(raw, str(path))


def in_force(rules: DeskRules) -> dict[str, Any]:
    """Every rule with the value that counts: as set, else its default."""
    defaults = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(DeskPolicy()).items()
    }
    return {**defaults, **rules.model_dump(exclude_none=True)}


def _rules_text(rules: DeskRules) -> str:
    stated = rules.model_dump(exclude_none=True)
    rows = [
        [name, _value_text(name, value), "" if name in stated else "default"]
        for name, value in in_force(rules).items()
    ]
    return table(["rule", "value", ""], rows)


def _value_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(value) or "none"
    if isinstance(value, int | float):
        if name.endswith("_s"):
            return duration_text(value)
        if name.endswith("_share"):
            return f"{100 * value:g} %"
        if name.endswith("_mb"):
            return f"{value} MB"
    return str(value)


@click.command()
@click.argument("name_or_id")
@click.option("--off", is_flag=True, help="Put it back into service.")
@json_option
def drain(name_or_id: str, off: bool, as_json: bool) -> None:
    """Take a machine out of service: it gets no new units, and a desktop yields."""
    with connect() as connection:
        view = connection.call(
            "POST", f"/v1/machines/{name_or_id}/drain", body=DrainRequest(drain=not off),
            reply=MachineView,
        )  # fmt: skip
    if as_json:
        show_json(view.model_dump())
        return
    if off:
        click.echo(f"{view.name} ({view.id}) is back in service.")
    else:
        click.echo(f"{view.name} ({view.id}) is taken out of service.")
        click.echo(f"Put it back: officegrid drain {view.name} --off", err=True)
