"""The driver's own options: `[vm.options]` in agent.toml when `driver = "hyperv"`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from officegrid.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Options:
    powershell: str = ""
    """The program, if it is not Windows PowerShell in its usual place (pwsh.exe works too)."""
    switch: str = "Default Switch"
    """The virtual switch the VM is connected to; "" leaves it without a network."""
    generation: int = 1
    """1: the image boots by BIOS; 2: by UEFI."""
    secure_boot: bool = False
    """Generation 2 only: Secure Boot with Microsoft's UEFI template, which Linux needs."""
    host_shutdown: str = "turn_off"
    """What Windows does with the running VM when it shuts down: turn_off or save. "save" makes
    shutting down slower, and Hyper-V keeps disk space of the size of the memory reserved."""
    keep_session: bool = True
    """Keep PowerShell open while the VM is up, so that pausing need not wait for its start."""
    disk_margin_mb: int = 512
    """Must be free beside the guest's memory before a start and before a save."""
    poll_timeout_s: float = 30.0
    pause_timeout_s: float = 10.0
    change_timeout_s: float = 60.0
    start_timeout_s: float = 300.0
    save_timeout_s: float = 300.0
    import_timeout_s: float = 300.0


def read_options(given: dict[str, Any]) -> Options:
    """Check and convert. Raises UsageError naming the option."""
    known = {field.name: field for field in fields(Options)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(
                f"The Hyper-V driver has no option {name!r}.",
                f"It has: {', '.join(known)}.",
                "Correct [vm.options] in agent.toml; docs/drivers/hyperv.md explains them.",
            )
        values[name] = _converted(name, value, known[name].default)
    options = Options(**values)
    if options.generation not in (1, 2):
        raise _wrong("generation", options.generation, "1 or 2")
    if options.host_shutdown not in ("turn_off", "save"):
        raise _wrong("host_shutdown", options.host_shutdown, '"turn_off" or "save"')
    return options


def _converted(name: str, value: object, default: object) -> object:
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
    if isinstance(default, float):
        return float(value)
    if value != int(value):
        raise _wrong(name, value, "a whole number")
    return int(value)


def _wrong(name: str, value: object, wanted: str) -> UsageError:
    return UsageError(
        f"The option {name!r} of the Hyper-V driver is wrong: {value!r}.",
        f"It must be {wanted}.",
        "Correct [vm.options] in agent.toml.",
    )
