"""Comparing versions of programs, by the rules of Python packages (PEP 440). Pure.

    1.2 == 1.2.0 < 1.2.post1;  1.3.dev1 < 1.3a1 < 1.3b2 < 1.3rc1 < 1.3

A version that cannot be read has no place in that order: whoever compares decides what it means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from officegrid.core.errors import UsageError

MOST_CHARS = 64

_FORM = re.compile(
    r"""v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)
    (?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_n>[0-9]*))?
    (?P<post>-(?P<post_i>[0-9]+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>[0-9]*))?
    (?P<dev>[-_.]?dev[-_.]?(?P<dev_n>[0-9]*))?
    (?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?""",
    re.VERBOSE | re.ASCII,
)
_PRE_RANK = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_FINAL = 3
_BEFORE_PRE = -1
_LAST = 10**100

Key = tuple[int, tuple[int, ...], tuple[int, int], int, int, tuple[tuple[int, int, str], ...]]


def key(text: str) -> Key | None:
    """What sorts versions; None for a text that is no version."""
    text = text.strip().lower()
    found = _FORM.fullmatch(text) if len(text) <= MOST_CHARS else None
    if found is None:
        return None
    numbers = [int(part) for part in found["release"].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    post = -1
    if found["post"] is not None:
        post = int(found["post_i"] or found["post_n"] or 0)
    is_dev = found["dev"] is not None
    if found["pre"] is not None:
        pre = (_PRE_RANK[found["pre"]], int(found["pre_n"] or 0))
    elif is_dev and post < 0:
        pre = (_BEFORE_PRE, 0)  # 1.3.dev1 comes before 1.3a1
    else:
        pre = (_FINAL, 0)
    dev = int(found["dev_n"] or 0) if is_dev else _LAST
    parts = re.split(r"[-_.]", found["local"]) if found["local"] else []
    local = tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts)
    return int(found["epoch"] or 0), tuple(numbers), pre, post, dev, local


def is_older(text: str, than: str) -> bool:
    """Does `text` come before `than`? What is no version counts as older than any that is one,
    and as not older than another that is none."""
    limit, found = key(than), key(text)
    if limit is None:
        return False
    return found is None or found < limit


def checked(text: str, what: str) -> str:
    """The version without spaces around it. Raises UsageError, naming `what` it is for."""
    text = text.strip()
    if key(text) is None:
        raise UsageError(
            f"{text[:MOST_CHARS]!r} is not a version ({what}).",
            "A version is made of numbers, such as 0.2.0, perhaps with a1, b1, rc1, .post1 or "
            ".dev1 at its end.",
            "See `officegrid --version` for one.",
        )
    return text


def satisfies(text: str, conditions: Sequence[tuple[str, str]]) -> bool | None:
    """Does a version meet all of `[(">=", "1.8"), ("<", "2")]`? None: something in it cannot be
    understood."""
    verdicts = [_meets(text, operator, limit) for operator, limit in conditions]
    return None if None in verdicts else all(verdicts)


def _meets(text: str, operator: str, limit: str) -> bool | None:
    if operator in ("==", "!=") and limit.endswith(".*"):
        base = key(limit[:-2])
        found = key(text)
        if base is None or found is None:
            return None
        same = _starts_with(found[1], limit[:-2])
        return same if operator == "==" else not same
    found, wanted = key(text), key(limit)
    if found is None or wanted is None:
        return None
    if operator == "~=":
        most = limit.strip().split(".")[:-1]
        return found >= wanted and bool(most) and _starts_with(found[1], ".".join(most))
    if operator in ("==", "!=", "<=") and not wanted[5]:
        found = (*found[:5], ())  # 1.2+ubuntu1 is a 1.2
    verdicts = {
        "==": found == wanted, "!=": found != wanted, ">=": found >= wanted,
        "<=": found <= wanted, ">": found > wanted, "<": found < wanted,
    }  # fmt: skip
    return verdicts.get(operator)


def _starts_with(release: tuple[int, ...], prefix: str) -> bool:
    numbers = [int(part) for part in prefix.split(".") if part.isdigit()]
    padded = (*release, *([0] * len(numbers)))
    return list(padded[: len(numbers)]) == numbers
