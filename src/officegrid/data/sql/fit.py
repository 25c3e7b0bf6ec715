"""Values made ready for the columns of a table, or refused with record, column and value.

What a database would change without a word is refused here: digits behind the point that a column
has no room for, and text in a number column of SQLite. What it refuses by itself is left to it.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from officegrid.data.json_text import Number, json_text
from officegrid.data.sql.incoming import misfit
from officegrid.data.sql.source import Dialect
from officegrid.data.sql.target import TargetColumn

Ready = list[str | bytes | None]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_PLAIN_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_PLAIN_DECIMALS = re.compile(r"(?:[+-]?[0-9]+(?:\.[0-9]*)?\n)*+")
_MAY_HAVE_ZONE = re.compile(r"(?:Z|[+-]\d\d(?::?\d\d)?)$", re.MULTILINE)
_ZONE = re.compile(r"[+-]\d\d(?::?\d\d)?$")
_TEXT_TYPES = {str, Number, type(None)}
_NUMBERS = {"integer", "bit", "decimal", "float"}


def fit(
    values: Sequence[Any], column: TargetColumn, dialect: Dialect, first: int, in_key: bool = False
) -> Ready:
    """The values of one column. Raises RecordError; `first` is the number of the first record."""
    if not set(map(type, values)) <= _TEXT_TYPES:
        values = [_text(value, column, dialect) for value in values]
    ready: Ready = list(values)
    if (in_key or not column.nullable) and None in ready:
        why = "It is part of the key" if in_key else "It is NOT NULL"
        raise misfit(first + ready.index(None), column.name, None, why)
    _check_text(values, column, first)
    if column.kind == "blob":
        return [_bytes(value, column, first + i) for i, value in enumerate(values)]
    if column.kind in ("integer", "bit") and dialect != "postgresql":
        if _short_digits(values):
            return ready
        return [_integer(v, column, dialect, first + i) for i, v in enumerate(values)]
    if column.kind == "decimal" and column.scale is not None:
        _check_scale(values, column, first)
    if column.kind == "float" and dialect == "sqlite":
        for index, value in enumerate(values):
            _check_float(value, column, first + index)
    if column.kind in ("timestamp", "timestamptz") and dialect == "mysql":
        if not _MAY_HAVE_ZONE.search("\n".join(filter(None, values))):
            return ready
        return [v if v is None else _utc(v, column, first + i) for i, v in enumerate(values)]
    return ready


def _text(value: Any, column: TargetColumn, dialect: Dialect) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        as_digit = column.kind in _NUMBERS or (dialect == "sqlite" and column.kind == "other")
        return str(int(value)) if as_digit else str(value).lower()
    return json_text(value)


def _check_text(values: Sequence[str | None], column: TargetColumn, first: int) -> None:
    try:
        "".join(filter(None, values)).encode()
    except UnicodeEncodeError:
        for index, value in enumerate(values):
            if value and any("\ud800" <= character <= "\udfff" for character in value):
                shown = value.encode("utf-8", "backslashreplace").decode()
                why = "It holds half of a surrogate pair, which UTF-8 cannot carry"
                raise misfit(first + index, column.name, shown, why) from None


def _bytes(value: str | None, column: TargetColumn, record: int) -> bytes | None:
    if value is None:
        return None
    try:
        return b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        why = f"A {column.declared} column takes bytes, written as base64"
        raise misfit(record, column.name, value, why) from None


def _integer(value: str | None, column: TargetColumn, dialect: str, record: int) -> str | None:
    if value is None or _INTEGER.fullmatch(value):
        if value and dialect == "sqlite" and not -(2**63) <= int(value) < 2**63:
            raise misfit(record, column.name, value, "It has more than 64 bits")
        return value
    if value in ("true", "false"):
        return "1" if value == "true" else "0"
    raise misfit(record, column.name, value, f"A {column.declared} column takes whole numbers")


def _short_digits(values: Sequence[str | None]) -> bool:
    """True if all are digits only, so few that they have 64 bits at most."""
    if None in values or "" in values:
        return False
    digits = "".join(values)  # type: ignore[arg-type]
    longest = max(map(len, values), default=0)  # type: ignore[arg-type]
    return digits.isascii() and digits.isdigit() and longest <= 18


def _check_scale(values: Sequence[str | None], column: TargetColumn, first: int) -> None:
    """Databases round what they have no room for; that would be another value."""
    scale = column.scale or 0
    # All at once: a batch costs one look at its text unless something is unusual.
    text = "".join(f"{value}\n" for value in values if value is not None)
    if _PLAIN_DECIMALS.fullmatch(text) and not re.search(rf"\.\d{{{scale}}}\d*[1-9]\d*\n", text):
        return
    for index, value in enumerate(values):
        if value is None:
            continue
        if _PLAIN_DECIMAL.fullmatch(value):
            digits = len(value.partition(".")[2].rstrip("0"))
        else:
            try:
                exponent = Decimal(value).normalize().as_tuple().exponent
            except InvalidOperation:
                why = f"A {column.declared} column takes numbers"
                raise misfit(first + index, column.name, value, why) from None
            digits = -exponent if isinstance(exponent, int) else 0  # NaN: the database decides
        if digits > scale:
            why = f"{column.declared} has room for {scale} digits behind the point"
            raise misfit(first + index, column.name, value, why)


def _check_float(value: str | None, column: TargetColumn, record: int) -> None:
    try:
        _ = value is None or float(value)
    except ValueError:
        why = f"A {column.declared} column takes numbers"
        raise misfit(record, column.name, value, why) from None


def _utc(value: str, column: TargetColumn, record: int) -> str:
    """MySQL has no zones in its texts: one that is there is applied, and UTC is stored."""
    if value.endswith("Z"):
        return value[:-1]
    if not _ZONE.search(value) or len(value) < len("2024-01-01T00:00+00"):
        return value
    try:
        moment = datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        raise misfit(record, column.name, value, "It is no date and time in ISO 8601") from None
    return moment.isoformat()
