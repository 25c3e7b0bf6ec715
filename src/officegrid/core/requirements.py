"""What a release needs of the libraries beside it, compared with what is installed. Pure.

Reads the part of the requirement language that wheels of programs use: names, version conditions,
extras, and single comparisons of `sys_platform` or `python_version`. What it cannot read counts as
not met: an update that might not start is not tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from officegrid.core.versions import satisfies

_REQUIREMENT = re.compile(
    r"\s*(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?P<extras>\[[^\]]*\])?\s*"
    r"\(?(?P<conditions>[^;()]*)\)?\s*(?:;\s*(?P<marker>.+))?"
)
_CONDITION = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*([^\s,]+)\s*")
_MARKER = re.compile(
    r"\(?\s*(?P<name>sys_platform|python_version|python_full_version)\s*(?P<operator>~=|==|!=|<=|>=|<|>)"
    r"\s*(['\"])(?P<value>[^'\"]*)\3\s*\)?"
)


def unmet(
    requires: Iterable[str], installed: Callable[[str], str | None], *, python: str,
    requires_python: str = "", platform: str = "linux",
) -> list[str]:  # fmt: skip
    """What is missing, one short text each: ["pydantic>=3 (2.14.1 is installed)"].

    `requires`: the lines of Requires-Dist. `installed` gives the version of a package, None when it
    is not there. `python`: the version of the Python that would run it.
    """
    missing = []
    if requires_python and not _python_fits(requires_python, python):
        missing.append(f"Python {requires_python} ({python} is installed)")
    for line in requires:
        found = _REQUIREMENT.fullmatch(line)
        if found is None:
            missing.append(f"{line.strip()[:100]} (not understood)")
            continue
        marker = found["marker"] or ""
        if re.search(r"\bextra\b", marker):
            continue
        applies = _applies(marker, python, platform) if marker else True
        conditions = _conditions(found["conditions"])
        wanted = f"{found['name']}{found['conditions'].strip()}"
        if applies is None or conditions is None:
            missing.append(f"{line.strip()[:100]} (not understood)")
        elif applies:
            version = installed(found["name"])
            if version is None:
                missing.append(f"{wanted} (not installed)")
            elif not satisfies(version, conditions):
                missing.append(f"{wanted} ({version} is installed)")
    return missing


def _python_fits(wanted: str, python: str) -> bool:
    conditions = _conditions(wanted)
    return bool(conditions is not None and satisfies(python, conditions))


def _conditions(text: str) -> list[tuple[str, str]] | None:
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        one = _CONDITION.fullmatch(part)
        if one is None:
            return None
        found.append((one[1], one[2]))
    return found


def _applies(marker: str, python: str, platform: str) -> bool | None:
    found = _MARKER.fullmatch(marker.strip())
    if found is None:
        return None
    operator, value = found["operator"], found["value"]
    if found["name"] == "sys_platform":
        same = platform == value
        return {"==": same, "!=": not same}.get(operator)
    short = ".".join(python.split(".")[:2])
    version = short if found["name"] == "python_version" else python
    return satisfies(version, [(operator, value)])
