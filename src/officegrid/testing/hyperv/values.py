"""PowerShell's values: text, numbers, null, lists and hashtables are Python's; the rest is here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class PsError(Exception):
    """An error as PowerShell's catch sees it."""

    def __init__(
        self, category: str, error_id: str, message: str, hresult: int = 0x80131500
    ) -> None:
        super().__init__(message)
        self.category = category
        self.error_id = error_id
        self.message = message
        # .NET gives HRESULTs as signed numbers.
        self.hresult = hresult - 2**32 if hresult >= 2**31 else hresult

    def record(self) -> Thing:
        """$_ in a catch block."""
        return Thing(
            "ErrorRecord",
            {
                "CategoryInfo": Thing("ErrorCategoryInfo", {"Category": self.category}),
                "FullyQualifiedErrorId": self.error_id,
                "Exception": Thing("Exception", {"HResult": self.hresult, "Message": self.message}),
            },
        )


class Ended(BaseException):
    """PowerShell itself ends here."""


@dataclass
class Thing:
    """An object: properties, and methods as callables."""

    kind: str
    properties: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, Callable[..., Any]] = field(default_factory=dict)
    setters: dict[str, Callable[[Any], None]] = field(default_factory=dict)


class Char(str):
    """[char]: one UTF-16 unit."""


@dataclass(frozen=True)
class Named:
    """A member of an enumeration: a name and a number."""

    name: str
    number: int


@dataclass(frozen=True)
class Block:
    """A script block."""

    body: tuple[Any, ...]


def lookup(mapping: dict[str, Any], name: str) -> tuple[bool, Any]:
    """By name, whatever its case."""
    for key, value in mapping.items():
        if key.lower() == name.lower():
            return True, value
    return False, None


def text(value: object) -> str:
    """[string]"""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, Named):
        return value.name
    if isinstance(value, list):
        return " ".join(text(one) for one in value)
    return value.kind if isinstance(value, Thing) else str(value)


def units(value: str) -> str:
    """As .NET holds text: what lies beyond 16 bits as two surrogates."""
    data = value.encode("utf-16-le", "surrogatepass")
    return "".join(
        chr(int.from_bytes(data[at : at + 2], "little")) for at in range(0, len(data), 2)
    )


def formatted(pattern: str, arguments: list[Any]) -> str:
    """-f, with .NET's hexadecimal format ({0:x4}) in Python's words ({0:04x})."""
    return re.sub(r":x(\d+)}", r":0\1x}", pattern).format(*arguments)


def truth(value: object) -> bool:
    """[bool]"""
    if isinstance(value, list):
        return len(value) > 1 or (len(value) == 1 and truth(value[0]))
    if isinstance(value, Named):
        return value.number != 0
    return value not in (None, False, 0, "")


def same(left: object, right: object) -> bool:
    """-eq: text without regard to case; the right side is converted to the left's type."""
    if left is None or right is None:
        return left is right
    if isinstance(left, (bool, int)) and not isinstance(right, str):
        return left == right
    return text(left).lower() == text(right).lower()


def to_json(value: object, shell: str) -> str:
    """ConvertTo-Json -Compress. 5.1 escapes what HTML could misread, and gives the numbers of
    enumerations; 7 gives the numbers too unless told otherwise."""
    result = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))
    if shell.startswith("5"):
        for sign in "'<>&":
            result = result.replace(sign, f"\\u{ord(sign):04x}")
    return result


def _plain(value: object) -> object:
    if isinstance(value, Named):
        return value.number
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Thing):
        return _plain(value.properties)
    return value
