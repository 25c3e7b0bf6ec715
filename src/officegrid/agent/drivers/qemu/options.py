"""`[vm.options]` of agent.toml for the QEMU driver."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from officegrid.core.errors import UsageError

ACCELERATORS = ("auto", "kvm", "tcg", "hvf")
# Linux takes 15 characters and neither slash nor space; QEMU would read a comma as its own, and
# % as a pattern.
_TAP = re.compile(r"tap:(?!\.{1,2}$)[A-Za-z0-9._-]{1,15}")


@dataclass(frozen=True, slots=True)
class QemuOptions:
    """All options, with their defaults; docs/drivers/qemu.md explains each."""

    accelerator: str = "auto"
    """auto: hardware virtualisation where it really works, else tcg (QEMU's own emulation)."""
    machine: str = "q35"
    cpu_model: str = ""
    """QEMU's `-cpu`; empty: host with hardware virtualisation, max without."""
    boot_deadline_s: float = 180.0
    """With `auto`: a guest that has not said `ready` after running for this long shows that
    hardware virtualisation does not work here; it is started again without."""
    kernel: str = ""
    """A Linux kernel to boot directly; empty: the disk has a boot loader of its own."""
    initrd: str = ""
    append: str = "console=ttyS0 quiet"
    """The kernel's command line, with `kernel` only."""
    network: str = "user"
    """user: outgoing connections only; 10.0.2.2 is this PC, with its services on loopback.
    tap:NAME: the existing tap interface NAME, on a bridge as a rule; it must let our user in.
    none: no network card."""
    disk_margin_mb: int = 512
    """Must be free on the disk of the VM's folder before a start."""
    save_timeout_s: float = 60.0
    """A save that takes longer is given up."""
    code_cache_mb: int = 256
    """tcg only: memory for translated code, on top of the guest's."""
    sandbox: bool = True
    """QEMU may neither start programs nor gain rights (Linux, seccomp)."""
    binary: str = "qemu-system-x86_64"
    image_tool: str = "qemu-img"
    extra: tuple[str, ...] = ()
    """Further arguments, added as they are."""


def parse_options(given: dict[str, Any]) -> QemuOptions:
    """Check and complete. Raises UsageError naming the option."""
    known = {item.name: item for item in fields(QemuOptions)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise _wrong(key, f"There is no such option; there are {', '.join(known)}.")
        values[key] = _checked(key, value, getattr(QemuOptions(), key))
    options = QemuOptions(**values)
    if options.accelerator not in ACCELERATORS:
        raise _wrong("accelerator", f"It is one of {', '.join(ACCELERATORS)}.")
    if options.network not in ("user", "none") and not _TAP.fullmatch(options.network):
        raise _wrong(
            "network", "It is user, none, or tap: and an interface's name, 1 to 15 characters."
        )
    if options.boot_deadline_s <= 0:
        raise _wrong("boot_deadline_s", "It is a number of seconds above 0.")
    if options.save_timeout_s <= 0:
        raise _wrong("save_timeout_s", "It is a number of seconds above 0.")
    if options.disk_margin_mb < 0:
        raise _wrong("disk_margin_mb", "It is a number of megabytes, 0 or more.")
    if options.code_cache_mb < 16:
        raise _wrong("code_cache_mb", "It is at least 16.")
    if options.initrd and not options.kernel:
        raise _wrong("initrd", "It needs `kernel` too.")
    return options


def _checked(key: str, value: Any, default: object) -> object:
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise _wrong(key, "It is a list of texts.")
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if key in ("kernel", "initrd") and isinstance(value, Path):
        return str(value)
    if type(value) is not type(default):
        raise _wrong(key, f"It is a {_WORDS[type(default)]}, not {value!r}.")
    return value


_WORDS: dict[type, str] = {str: "text", float: "number", int: "whole number", bool: "truth value"}


def _wrong(key: str, why: str) -> UsageError:
    return UsageError(
        f"The QEMU option {key!r} is wrong.", why, "Correct [vm.options]; see docs/drivers/qemu.md."
    )
