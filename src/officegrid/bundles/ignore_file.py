"""`.officegridignore`: which files of a program folder stay out of its bundle.

One pattern a line, as in .gitignore: `*`, `?` and `[...]` match within a name and `**` across
folders; a pattern with a slash at its start or middle counts from the folder itself, any other
matches at every depth; a slash at the end means folders only; `#` begins a comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from officegrid.core.errors import UsageError

IGNORE_FILE = ".officegridignore"
ALWAYS_IGNORED = (".git", "__pycache__", "*.pyc", ".venv", "node_modules")

MOST_COUNTED = 10_000
"""Files of one ignored folder: counting must not take longer than packing."""


@dataclass(slots=True)
class LeftOut:
    """What of a folder is in no version of it. `files`: how many files and links `ignore_file`
    names, those in folders included; `more`: at least so many, for a folder is not counted to its
    end when it has very many. `always`: which of ALWAYS_IGNORED were found."""

    ignore_file: str = ""
    files: int = 0
    more: bool = False
    always: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Was anything left out?"""
        return bool(self.files or self.always)

    def count(self, files: int) -> None:
        """So many files more; above MOST_COUNTED: at least."""
        self.more = self.more or files > MOST_COUNTED
        self.files += min(files, MOST_COUNTED)


@dataclass(frozen=True, slots=True)
class _Rule:
    segments: tuple[str, ...]
    folders_only: bool
    built_in: str = ""


class IgnoreRules:
    """The patterns of one folder, those that always hold included."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Raises UsageError for a pattern that is not supported."""
        self._rules = [
            replace(_rule(pattern, "built in"), built_in=pattern) for pattern in ALWAYS_IGNORED
        ]
        for number, line in enumerate(patterns, 1):
            pattern = line.strip()
            if pattern and not pattern.startswith("#"):
                self._rules.append(_rule(pattern, f"line {number}"))

    @classmethod
    def read(cls, file: Path) -> IgnoreRules:
        """The rules of an ignore file; without the file, those that always hold."""
        try:
            return cls(file.read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{file} cannot be read.", f"{error}.", "Write it as UTF-8 text, or remove it."
            ) from None

    def ignore(self, name: str, *, is_folder: bool) -> bool:
        """Is this path (relative, forward slashes) left out by a rule of its own?"""
        return self.rule(name, is_folder=is_folder) is not None

    def rule(self, name: str, *, is_folder: bool) -> str | None:
        """Which rule leaves this path out: one of ALWAYS_IGNORED, "" for one of the file's own,
        None when none does."""
        segments = tuple(name.split("/"))
        return next(
            (
                rule.built_in for rule in self._rules
                if (is_folder or not rule.folders_only) and _matches(rule.segments, segments)
            ),
            None,
        )  # fmt: skip


def _rule(pattern: str, place: str) -> _Rule:
    if pattern.startswith("!"):
        raise UsageError(
            f"{IGNORE_FILE}, {place}: {pattern!r} is not supported.",
            "Patterns can only leave files out; a leading ! would bring some back.",
            "Write narrower patterns instead.",
        )
    body = pattern.rstrip("/")
    if not body:
        raise UsageError(
            f"{IGNORE_FILE}, {place}: {pattern!r} leaves out everything.",
            "A slash alone names the whole folder.",
            "Remove the line.",
        )
    segments = tuple(body.lstrip("/").split("/"))
    anchored = "/" in body
    return _Rule(segments if anchored else ("**", *segments), pattern.endswith("/"))


def _matches(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "**":
        # As in .gitignore, `folder/**` is what is inside the folder, not the folder.
        least = 1 if len(pattern) == 1 else 0
        return any(_matches(pattern[1:], name[i:]) for i in range(least, len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and _matches(pattern[1:], name[1:])
