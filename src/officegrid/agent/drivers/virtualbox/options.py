"""The driver's own options: `[vm.options]` in agent.toml when `driver = "virtualbox"`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from officegrid.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Options:
    vboxmanage: str = ""
    """The program, if it is not where the installer puts it."""
    registry: str = "own"
    """own: a VM registry of the agent's alone; account: that of the account it runs as."""
    allow_versions: tuple[str, ...] = ()
    """VirtualBox releases to use in spite of what is known of them, such as "7.2.0"."""
    deny_versions: tuple[str, ...] = ()
    reach_host: bool = False
    """May the guest reach services on this PC's loopback address through NAT?"""
    disk_margin_mb: int = 512
    """Must be free beside the guest's memory before a start and before a save."""
    poll_timeout_s: float = 15.0
    pause_timeout_s: float = 5.0
    change_timeout_s: float = 60.0
    start_timeout_s: float = 300.0
    save_timeout_s: float = 300.0
    stop_timeout_s: float = 15.0
    import_timeout_s: float = 1800.0
    stuck_after_s: float = 15.0
    """On its way somewhere without a process for this long: broken."""


def read_options(given: dict[str, Any]) -> Options:
    """Check and convert. Raises UsageError naming the option."""
    known = {field.name: field for field in fields(Options)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(
                f"The VirtualBox driver has no option {name!r}.",
                f"It has: {', '.join(known)}.",
                "Correct [vm.options] in agent.toml; docs/drivers/virtualbox.md explains them.",
            )
        values[name] = _converted(name, value, known[name].default)
    options = Options(**values)
    if options.registry not in ("own", "account"):
        raise _wrong("registry", options.registry, '"own" or "account"')
    return options


def _converted(name: str, value: object, default: object) -> object:
    if isinstance(default, tuple):
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise _wrong(name, value, 'a list of versions, such as ["7.2.0"]')
    if isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise _wrong(name, value, "true or false")
    if isinstance(default, str):
        if isinstance(value, str):
            return value
        raise _wrong(name, value, "a text")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise _wrong(name, value, "a number that is not negative")
    return float(value) if isinstance(default, float) else int(value)


def _wrong(name: str, value: object, wanted: str) -> UsageError:
    return UsageError(
        f"The option {name!r} of the VirtualBox driver is wrong: {value!r}.",
        f"It must be {wanted}.",
        "Correct [vm.options] in agent.toml.",
    )
