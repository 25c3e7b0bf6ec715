"""Write the part of requirements.lock that the worker needs, one file per Python of a guest.

    python tools/worker_lock.py            # after `make lock`
    python tools/worker_lock.py --check    # exit 1 when a file is out of date

`officegrid image build` reads the files, which lie in the package and so in every installation.
Conditions ("; python_version …") are decided here: pip would decide them for the Python it runs
under and not for the guest's.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "src" / "officegrid" / "image"
PYTHONS = ("3.11", "3.13")
_GUEST = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
          "platform_machine": "x86_64", "implementation_name": "cpython",
          "platform_python_implementation": "CPython", "extra": ""}  # fmt: skip


def environment(python: str) -> dict[str, str]:
    """What the conditions are asked about."""
    return {**_GUEST, "python_version": python, "python_full_version": f"{python}.0"}


def closure(wanted: list[str], guest: dict[str, str]) -> set[str]:
    """Names of these requirements and of all that they need in this guest."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate(guest):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            waiting += [Requirement(text) for text in requires(name) or []]
    return found


def lock_text(python: str) -> str:
    """The lock file for this Python."""
    guest = environment(python)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = closure(project["project"]["dependencies"], guest)
    lines: list[str] = []
    kept, seen = False, set()
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in " #":
            requirement = Requirement(line.rstrip("\\ "))
            name = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate(guest)
            kept = name in names and applies
            seen |= {name} if kept else set()
            line = f"{requirement.name}{requirement.specifier} \\"
        if kept:
            lines.append(line)
    if missing := names - seen:
        raise SystemExit(f"worker_lock.py: not in the lock: {', '.join(sorted(missing))}")
    return "\n".join(lines) + "\n"


def main() -> None:
    stale = []
    for python in PYTHONS:
        path, text = FOLDER / f"worker-py{python}.lock", lock_text(python)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print(f"changed: {', '.join(stale)}" if stale else "up to date")
    if stale and "--check" in sys.argv:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
