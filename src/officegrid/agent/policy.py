"""Whose rule holds: the coordinator's, the machine's own, or the default.

The coordinator may set any rule, laxer than the default or stricter. The machine's own settings
can only make the outcome stricter; a value of theirs that would make it laxer is ignored, and
`Effective.ignored` says so in a sentence for `officegrid agent status` and the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from officegrid.core.desk import DeskPolicy, Hours
from officegrid.core.deskrules import STRICTER, format_hours, parse_hours
from officegrid.core.errors import UsageError
from officegrid.wire.agent import DeskRules

Origin = Literal["default", "central", "local"]
_HOURS_RULES = ("quiet_hours", "run_hours")
_WHOSE: Mapping[Origin, str] = {"default": "the default", "central": "the coordinator's"}


@dataclass(frozen=True, slots=True)
class Effective:
    """The rules that hold on this machine, and where each came from."""

    policy: DeskPolicy
    origins: dict[str, Origin]
    """For each field of DeskPolicy."""
    ignored: tuple[str, ...] = ()
    """Sentences: own settings that do not count because they are laxer."""
    problems: tuple[str, ...] = ()
    """Sentences: rules of the coordinator that this agent cannot read. It then never runs."""


def effective_policy(central: DeskRules, local: DeskRules) -> Effective:
    """Default, then central, then local where it is stricter.

    Raises UsageError when an own rule cannot be read. A central one that cannot be read must not
    stop the agent and must not be dropped (it might forbid what is done next): it means `never`.
    """
    base, origins, problems = _central(central)
    values = {field.name: getattr(base, field.name) for field in fields(DeskPolicy)}
    ignored: list[str] = []
    for name, own in _stated(local).items():
        if name in _HOURS_RULES:
            own = _own_hours(name, own)
        present = values[name]
        merged = STRICTER[name](present, own)
        if not _same(name, merged, present):
            kept = _kept_part(name, own, merged, origins[name], present)
            values[name], origins[name] = merged, "local"
            ignored += kept
        elif not _same(name, own, present):
            ignored.append(
                f"{name} = {_text(own)} is laxer than {_whose(origins[name], present)}"
                " and is ignored."
            )
    return Effective(DeskPolicy(**values), origins, tuple(ignored), tuple(problems))


def _stated(rules: DeskRules) -> dict[str, Any]:
    return {name: value for name, value in rules.model_dump().items() if value is not None}


def _central(rules: DeskRules) -> tuple[DeskPolicy, dict[str, Origin], list[str]]:
    policy, problems = DeskPolicy(), []
    origins: dict[str, Origin] = {field.name: "default" for field in fields(DeskPolicy)}
    for name, value in _stated(rules).items():
        if name in _HOURS_RULES:
            try:
                value = tuple(parse_hours(text) for text in value)
            except UsageError as error:
                problems.append(f"The coordinator's rule {name} cannot be read: {error.what}")
                policy, origins["never"] = replace(policy, never=True), "central"
                continue
        elif name == "never":
            value = value or bool(problems)
        policy, origins[name] = replace(policy, **{name: value}), "central"
    return policy, origins, problems


def _own_hours(name: str, texts: Sequence[str]) -> tuple[Hours, ...]:
    try:
        return tuple(parse_hours(text) for text in texts)
    except UsageError as error:
        raise UsageError(
            f"The rule {name} of this machine is wrong: {error.what}", error.why, error.fix
        ) from None


def _same(name: str, left: Any, right: Any) -> bool:
    """Hours are the same when they are the same minutes, however they are written."""
    if name in _HOURS_RULES:
        merge = STRICTER[name]
        return bool(merge(left, left) == merge(right, right))
    return bool(left == right)


def _kept_part(name: str, own: Any, merged: Any, origin: Origin, present: Any) -> list[str]:
    """Own run hours that are only partly within the given ones lose the rest: say so."""
    if name != "run_hours" or _same(name, own, merged):
        return []
    return [
        f"run_hours = {_text(own)} is partly outside {_whose(origin, present)};"
        f" {_text(merged)} remain."
    ]


def _whose(origin: Origin, value: Any) -> str:
    return f"{_WHOSE[origin]} {_text(value)}"


def _text(value: Any) -> str:
    """As it would stand in the settings."""
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{format_hours(hours)}"' for hours in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}"
