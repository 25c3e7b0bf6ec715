"""What tells one family of systems from another; everything else of a build is shared.

A family turns a recipe into commands that fill a folder with packages, and says where the kernel
lies in it and which packages it has. `debian` and `el9` are the two there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from officegrid.image.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Command:
    """One program with its arguments; `what` says in an error what did not work, `fix` what to do.
    `in_root`: it runs inside the guest's root."""

    argv: tuple[str, ...]
    what: str
    fix: str = ""
    in_root: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """`files`: by absolute path in the root, written before any package is configured.
    `indexes`: addresses whose contents say which packages there are: they decide whether an
    earlier base can be used again, and their newest date is the date of the image."""

    files: dict[str, str]
    commands: tuple[Command, ...]
    indexes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package. `licences`: as the distribution words them, may be empty."""

    name: str
    version: str
    architecture: str = ""
    source: str = ""
    licences: tuple[str, ...] = field(default=())


Run = Callable[[list[str], str], str]
"""(command, what it is for) -> what it printed."""


class Family(Protocol):
    """`python`: version of the interpreter that runs the worker. `kernel`, `initrd`: patterns
    below the root. `stdlib`: folder of the interpreter's own modules."""

    name: str

    def tools(self) -> dict[str, str]:
        """Programs needed on the building machine, with the Debian package that has each."""

    def python(self, recipe: Recipe) -> str:
        """Such as "3.11"."""

    def plan(self, recipe: Recipe, root: Path, before: Path, downloads: Path) -> Plan:
        """How to fill `root`. `before`: folder that will hold the plan's files; `downloads`:
        kept between builds."""

    def boot_files(self, root: Path) -> tuple[Path, Path]:
        """(kernel, initrd), the newest ones. Raises BuildError."""

    def installed(self, root: Path, run: Run) -> list[Package]:
        """Sorted by name."""

    def leavings(self) -> tuple[str, ...]:
        """Patterns below the root of what installing leaves behind and no guest needs."""
