"""JSON records with every number kept as it is written: 1.10 stays 1.10, of any length."""

from __future__ import annotations

import json
from typing import Any

from officegrid.data.records import RecordError

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Number(str):
    """A number as it stands in the JSON text."""

    __slots__ = ()


_DECODER = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=Number)


def parse_object(text: str, index: int) -> dict[str, Any]:
    """One NDJSON line; numbers are `Number`. Raises RecordError unless it is a JSON object."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            "The record is not valid JSON.",
            f"The JSON parser says: {error}.",
            "Correct the line; in NDJSON each line is one JSON object.",
            record=index,
        ) from None
    if not isinstance(value, dict):
        raise RecordError(
            "The record is not a JSON object.",
            f"The line is {text[:80]!r}; its values have no names.",
            'Write each line as an object such as {"id": 1}.',
            record=index,
        )
    return value


def field_text(value: Any) -> str:
    """A JSON value as a CSV field: null is empty, text is itself, the rest is JSON text."""
    if isinstance(value, str):  # a Number too
        return value
    if value is None:
        return ""
    return json_text(value)


def json_text(value: Any) -> str:
    """Compact JSON text of a value made by `parse_object`."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{_ENCODER.encode(key)}:{json_text(item)}" for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    return _ENCODER.encode(value)


def strings_object(columns: list[str], row: list[str]) -> str:
    """One CSV row as the text of a JSON object of strings."""
    return _ENCODER.encode(dict(zip(columns, row, strict=True)))
