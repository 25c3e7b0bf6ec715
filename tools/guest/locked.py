"""Print the part of a lock file that the worker needs, hashes included.

    python tools/guest/locked.py requirements.lock > worker.lock

The names come from pyproject.toml and, for what those packages need in turn, from the packages
installed beside this interpreter, read for the guest: Linux, Python 3.11.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

GUEST = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux",
         "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
         "implementation_name": "cpython", "platform_python_implementation": "CPython",
         "extra": ""}  # fmt: skip


def closure(wanted: list[str]) -> set[str]:
    """Names of these requirements and of all that they need in the guest."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate(GUEST):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            waiting += [Requirement(text) for text in requires(name) or []]
    return found


def main() -> None:
    lock = Path(sys.argv[1])
    project = tomllib.loads((lock.parent / "pyproject.toml").read_text(encoding="utf-8"))
    names = closure(project["project"]["dependencies"])
    kept = False
    seen = set()
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(" "):
            name = canonicalize_name(line.partition("==")[0].strip())
            kept = name in names
            seen.add(name)
        if kept:
            print(line)
    if missing := names - seen:
        raise SystemExit(f"locked.py: not in {lock}: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
