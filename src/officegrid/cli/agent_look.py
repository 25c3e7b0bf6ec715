"""`officegrid agent status` and `officegrid agent pause`: for whoever sits at this desk."""

from __future__ import annotations

import time
from typing import Any

import click

from officegrid.cli.common import json_option
from officegrid.core.errors import ForbiddenError, UnavailableError, UsageError
from officegrid.core.quantities import duration_text, parse_duration_s

_OLD_S = 5.0
_NO_AGENT_FIX = "Start it with `officegrid agent run`, or install its service."


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show what the agent of this PC does and why, and what would change it."""
    from officegrid.cli.main import show_json

    found = _status()
    if as_json:
        show_json(found)
        return
    for line in status_lines(found):
        click.echo(line)


@click.command()
@click.option("--for", "span", metavar="TIME", help="Not now, for so long: 30m, 1h.")
@click.option("--today", is_flag=True, help="Not before midnight.")
@click.option("--ever", is_flag=True, help="Not until you say --off.")
@click.option("--off", is_flag=True, help="The grid may use this PC again.")
def pause(span: str | None, today: bool, ever: bool, off: bool) -> None:
    """Keep the grid off this PC for a while (default: for 1 hour)."""
    if sum((span is not None, today, ever, off)) > 1:
        raise UsageError("Choose one of --for, --today, --ever and --off.")
    until_s = None if ever or off else _until_s(span or "1h", today=today)
    _tell_pause(until_s, off=off)
    if off:
        click.echo("The grid may use this PC again.")
    elif until_s is None:
        click.echo("The grid stays off this PC until `officegrid agent pause --off`.")
    else:
        click.echo(f"The grid stays off this PC until {_clock(until_s)}.")


# --- asking the agent


def _status() -> dict[str, Any]:
    """From the agent itself; else from its file, if it is there and fresh."""
    from officegrid.agent.door import ask
    from officegrid.agent.files import Folders, read_json
    from officegrid.transport.profile import home_folder
    from officegrid.transport.single_instance import is_held

    folders = Folders(home_folder())
    try:
        answer: dict[str, Any] = ask(folders.agent, {"do": "status"})["status"]
        return answer
    except (UnavailableError, ForbiddenError) as error:
        kept = read_json(folders.status)
        if kept is not None and is_held(folders.agent, "agent"):
            return kept
        if isinstance(error, ForbiddenError):
            raise
        raise UnavailableError("No agent runs on this PC.", error.why, _NO_AGENT_FIX) from None


def _tell_pause(until_s: float | None, *, off: bool) -> None:
    """To the agent; without one, or without its door, into its file, which it reads."""
    from officegrid.agent.door import ask
    from officegrid.agent.files import Folders
    from officegrid.agent.userpause import UserPause
    from officegrid.transport.profile import home_folder
    from officegrid.transport.single_instance import is_held

    folders = Folders(home_folder())
    try:
        ask(folders.agent, {"do": "unpause"} if off else {"do": "pause", "until_s": until_s})
        return
    except UnavailableError as error:
        if not folders.status.exists() and not is_held(folders.agent, "agent"):
            raise UnavailableError("No agent runs on this PC.", error.why, _NO_AGENT_FIX) from None
    pause_file = UserPause(folders.pause)
    if off:
        pause_file.clear()
    else:
        pause_file.set(until_s, "the owner of the agent's folder")


def _until_s(span: str, *, today: bool) -> float:
    now_s = time.time()
    if today:
        local = time.localtime(now_s)
        midnight = (local.tm_year, local.tm_mon, local.tm_mday + 1, 0, 0, 0, 0, 0, -1)
        return time.mktime(midnight)
    seconds = parse_duration_s(span)
    if seconds <= 0:
        raise UsageError("A pause of no time is no pause.", fix="Write --for 1h, or --off.")
    return now_s + seconds


# --- showing


def status_lines(found: dict[str, Any]) -> list[str]:
    """The status for people, most important first."""
    run = found.get("decision") == "run"
    whose = "The grid may use this PC." if run else "The grid leaves this PC alone."
    lines = [f"{whose} {found.get('sentence', '')}".strip()]
    age_s = time.time() - float(found.get("at", 0))
    if age_s > _OLD_S:
        lines = [f"The agent does not answer; this is {duration_text(age_s)} old.", *lines]
    lines += [_indent(found["change"])] if found.get("change") else []
    lines += [f"VM       {found.get('vm')}: {found.get('vm_detail') or 'nothing to say'}"]
    lines += _driver_lines(found)
    lines += _image_lines(found.get("image") or {})
    lines += _withheld(found)
    lines += _sensor_lines(found)
    lines += [_today(found.get("today") or {})]
    lines += [_coordinator(found)]
    lines += [f"rule     {found.get('rule')}: {_numbers(found.get('numbers') or {})}"]
    lines += _rule_lines(found)
    return lines


def _image_lines(image: dict[str, Any]) -> list[str]:
    """What the VM is made from, and how the image that was ordered fares (wire.images)."""
    if not image.get("format") and not image.get("pinned"):
        return []
    if image.get("pinned"):
        return ["image    a file of this PC's own, named in agent.toml"]
    running, ordered = image.get("running"), image.get("image")
    says = f"the VM is made from {running[:12]}" if running else "there is no VM yet"
    if ordered is None:
        return [f"image    {says}"]
    total = image.get("total_bytes") or 0
    done = f" {100 * image.get('done_bytes', 0) // total} %" if total else ""
    words = {
        "fetching": f"{ordered[:12]} is being fetched{done}",
        "ready": f"{ordered[:12]} is here and takes over when nothing of the VM is in memory",
        "trial": f"{ordered[:12]} is on trial until its worker is heard",
        "good": f"{ordered[:12]} works here",
        "failed": f"{ordered[:12]} failed here",
    }
    fares = words.get(image.get("state") or "", f"{ordered[:12]} is ordered")
    lines = [f"image    {says}; {fares}"]
    return lines + ([_indent(image["text"])] if image.get("text") else [])


def _withheld(found: dict[str, Any]) -> list[str]:
    """Who keeps the grid off this PC, whoever sits here."""
    lines = []
    if found.get("paused"):
        until_s = found.get("pause_until")
        end = "`officegrid agent pause --off`" if until_s is None else _clock(float(until_s))
        lines.append(f"paused   by the user of this PC until {end}")
    if found.get("replaced"):
        lines.append(f"identity {found['replaced']}")
    if found.get("settings_trouble"):
        lines.append(f"settings {found['settings_trouble']}")
    if found.get("below_floor"):
        lines.append(f"too old  {found['below_floor']}")
    if found.get("drain"):
        lines.append("drained  the grid admin took this PC out of service")
    return lines


def _driver_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"driver   {found.get('driver')}: {found.get('health')}. "
             f"{found.get('health_sentence', '')}".rstrip()]  # fmt: skip
    lines += [_indent(found["health_fix"])] if found.get("health_fix") else []
    return lines + [_indent(f"not used: {why}") for why in found.get("drivers_refused") or []]


def _sensor_lines(found: dict[str, Any]) -> list[str]:
    trouble = [found["sensor_trouble"]] if found.get("sensor_trouble") else []
    said = [*trouble, *(found.get("sensors") or [])]
    return [f"sensors  {said[0]}", *map(_indent, said[1:])] if said else []


def _today(today: dict[str, Any]) -> str:
    ran = duration_text(float(today.get("ran_s", 0)))
    visits = int(today.get("interruptions", 0))
    line = f"today    worked {ran}, given back {visits} time{'' if visits == 1 else 's'}"
    worst_ms = float(today.get("cpu_back_ms_worst", 0))
    return f"{line}, at the slowest within {worst_ms:.0f} ms" if visits and worst_ms else line


def _coordinator(found: dict[str, Any]) -> str:
    line = f"grid     {found.get('coordinator')}"
    if found.get("coordinator_trouble"):
        waiting = found.get("events_waiting", 0)
        return f"{line}: {found['coordinator_trouble']} {waiting} events wait to be told."
    return f"{line}: in touch"


def _numbers(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in numbers.items()) or "no numbers"


def _rule_lines(found: dict[str, Any]) -> list[str]:
    rules: dict[str, dict[str, Any]] = found.get("rules") or {}
    lines = ["rules    those that are not defaults; --json shows all"]
    for name, rule in rules.items():
        if rule["from"] == "default":
            continue
        value = rule["value"]
        value = (", ".join(value) or "none") if isinstance(value, list) else value
        lines.append(_indent(f"{name} = {value}  ({rule['from']})"))
    notes = (found.get("rules_ignored") or []) + (found.get("rules_unreadable") or [])
    return lines + [_indent(note) for note in notes]


def _indent(text: str) -> str:
    return f"         {text}"


def _clock(at_s: float) -> str:
    try:
        local = time.localtime(at_s)
    except (OverflowError, ValueError, OSError):  # a year that no calendar here has
        return "the end of time; `officegrid agent pause --off` ends it"
    today = time.strftime("%Y-%m-%d", local) == time.strftime("%Y-%m-%d")
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", local)
