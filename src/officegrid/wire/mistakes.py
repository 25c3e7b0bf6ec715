"""What is wrong in a file or a message, in the words of its keys: the one place that turns what
pydantic found into sentences for people.

No sentence made here quotes a value: it may be a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

_MUST = "must be "
_KINDS = {
    "string_type": "text in quotes",
    "string_sub_type": "text in quotes",
    "path_type": "a path in quotes",
    "int_type": "a whole number, without quotes",
    "int_parsing": "a whole number, without quotes",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number, without quotes",
    "float_parsing": "a number, without quotes",
    "finite_number": "a number that is not infinite",
    "bool_type": "true or false, without quotes",
    "bool_parsing": "true or false, without quotes",
    "list_type": 'a list, like ["a", "b"]',
    "tuple_type": "a list",
    "dict_type": "a table of keys and values",
    "mapping_type": "a table of keys and values",
    "model_type": "a table of keys and values",
    "model_attributes_type": "a table of keys and values",
    "none_required": "left out",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "entry"),
    "too_long": ("at most", "max_length", "entry"),
}
_NAME = re.compile(r"\^\[(?P<first>[^]]+)\](?:\[(?P<more>[^]]+)\](?:\*|\{0,\d+\}))?\$")
"""Patterns of names: what they begin with, and what may follow."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_RANGES = {"A-Z": "letters", "a-z": "letters", "0-9": "digits"}
_FIRST = {"A-Z": "a letter", "0-9": "a digit"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """`place`: the keys that lead to it, from the outermost; list entries as their index from 0.
    `kind`: "unknown", "missing", or "value". `words`: what is wrong with it and what is allowed,
    without the place and without a full stop, like "must be at least 1"."""

    place: tuple[str, ...]
    kind: str
    words: str

    @property
    def key(self) -> str:
        """The place in one word, as TOML writes it: `keep.versions`. A key that looks like an
        address, which may hold a password, is not shown."""
        return ".".join(_shown(one) for one in self.place)

    @property
    def at(self) -> str:
        """ " at 'keep.versions'"; "" for what is wrong as a whole."""
        return f" at {self.key!r}" if self.place else ""

    @property
    def sentence(self) -> str:
        """The words as a sentence of their own."""
        start = f"It {self.words}" if self.words.startswith(("must", "is ")) else self.words
        start = start[:1].upper() + start[1:]
        return start if start.endswith((".", "!", "?")) else f"{start}."


def _shown(key: str) -> str:
    if _BARE.fullmatch(key):
        return key
    return '"…"' if set(key) & set(":/@") else f'"{key}"'


def mistakes(error: ValidationError, raw: object = None) -> list[Mistake]:
    """Each place that is wrong, once. `raw` is what was checked, where it is at hand: it tells keys
    of the file from names of pydantic's own."""
    return told(error.errors(include_url=False, include_input=False), raw)


def told(errors: Iterable[Mapping[str, Any]], raw: object = None) -> list[Mistake]:
    """The same, from the list of details."""
    found: dict[tuple[str, ...], Mistake] = {}
    for one in errors:
        made = _mistake(one, raw)
        known = found.get(made.place)
        if known is None:
            found[made.place] = made
        elif made.words != known.words:  # the same value may be of several kinds
            found[made.place] = Mistake(made.place, known.kind, _either(known.words, made.words))
    # Of a list with a wrong entry it is also said that it is no text: that is beside the point.
    return [one for one in found.values() if not _is_around_another(one, found)]


def _is_around_another(mistake: Mistake, found: Iterable[tuple[str, ...]]) -> bool:
    size = len(mistake.place)
    return mistake.kind == "value" and any(
        0 < size < len(place) and place[:size] == mistake.place for place in found
    )


def _mistake(error: Mapping[str, Any], raw: object) -> Mistake:
    loc = error["loc"]
    place = _place(loc, raw, keep_last=error["type"] in ("missing", "extra_forbidden"))
    if error["type"] == "extra_forbidden":
        return Mistake(place, "unknown", "is no key that is known here")
    if error["type"] == "missing":
        return Mistake(place, "missing", "is missing")
    words = _words(error)
    is_name = bool(loc) and loc[-1] == "[key]"
    return Mistake(place, "value", f"as a name it {words}" if is_name else words)


def _place(loc: Sequence[int | str], raw: object, *, keep_last: bool) -> tuple[str, ...]:
    """The parts of `loc` that are keys of `raw`; those between are names of pydantic's own."""
    if raw is None:
        parts = [str(part) for part in loc]
        return tuple(part for part in parts if not part.startswith(("function-", "[")))
    place, inside = [], raw
    for number, part in enumerate(loc):
        is_key = isinstance(inside, Mapping) and part in inside
        is_entry = isinstance(inside, list) and isinstance(part, int) and part < len(inside)
        if is_key or is_entry:
            inside = inside[part]  # type: ignore[index]
        elif not (keep_last and number == len(loc) - 1):
            continue
        place.append(str(part))
    return tuple(place)


def _either(words: str, other: str) -> str:
    if words.startswith(_MUST) and other.startswith(_MUST):
        return f"{words}, or {other.removeprefix(_MUST)}"
    return f"{words}, or it {other}"


def _words(error: Mapping[str, Any]) -> str:
    kind, about = str(error["type"]), error.get("ctx", {})
    if kind in _KINDS:
        return _MUST + _KINDS[kind]
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        bound = about[key]
        return f"{_MUST}{word} {bound:,.15g}" if isinstance(bound, int | float) else _raw(error)
    if kind in _LENGTHS:
        word, key, unit = _LENGTHS[kind]
        count = int(about[key])
        units = unit if count == 1 else {"entry": "entries"}.get(unit, f"{unit}s")
        return f"must have {word} {count:,} {units}"
    if kind in ("literal_error", "enum"):
        return f"{_MUST}{about['expected']}"
    if kind == "json_invalid":
        return f"{_MUST}JSON: {about['error']}"
    if kind == "string_pattern_mismatch":
        return _pattern_words(str(about["pattern"]))
    return _raw(error)


def _pattern_words(pattern: str) -> str:
    found = _NAME.fullmatch(pattern)
    if found is None:
        return "is not written as it has to be"
    first = " or ".join(one for text, one in _FIRST.items() if text in found["first"])
    more = _characters(found["more"] or found["first"])
    return f"must begin with {first}, and have nothing but {more} in it"


def _characters(members: str) -> str:
    """ "A-Za-z0-9._-" as "letters, digits and . _ -"."""
    words: list[str] = []
    for text, word in _RANGES.items():
        if text in members:
            members = members.replace(text, "", 1)
            words += [] if word in words else [word]
    words += ["spaces"] if " " in members else []
    words += [" ".join(members.replace(" ", ""))] if members.strip() else []
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _raw(error: Mapping[str, Any]) -> str:
    """The words of a check of our own; pydantic's, where it is none of the common kinds."""
    return str(error["msg"]).removeprefix("Value error, ").rstrip(".")
