"""Quantities as people write them: "10s", "1.5 h", "512MB", "1%"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from officegrid.core.errors import UsageError

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}
_LONGEST_NUMBER = 18  # digits; more would no longer fit a database or a floating point number
_QUANTITY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")


def _split(text: object, kind: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.match(str(text)) if not isinstance(text, bool) else None
    if match is None or len(match[1]) > _LONGEST_NUMBER:
        raise UsageError(f"{text!r} is not a {kind}.", fix=f"Write it like {example}.")
    return float(match[1]), match[2].lower()


def parse_duration_s(text: object) -> float:
    """Seconds from "250ms", "10s", "5m", "1h", "2d" or a bare number of seconds."""
    example = '"10s", "5m" or "1h"'
    number, unit = _split(text, "duration", example)
    if unit and unit not in _SECONDS:
        raise UsageError(f"{text!r} is not a duration.", fix=f"Write it like {example}.")
    return number * _SECONDS[unit or "s"]


def parse_size_bytes(text: object) -> int:
    """Bytes from "512MB" (10^6), "512MiB" (2^20) or a bare number of bytes."""
    example = '"512MB" or "2GiB"'
    number, unit = _split(text, "size", example)
    if unit and unit not in _BYTES:
        raise UsageError(f"{text!r} is not a size.", fix=f"Write it like {example}.")
    return int(number * _BYTES[unit or "b"])


def percent_text(share: float) -> str:
    """A share for people: "100 %", "3.2 %", "0.0004 %"."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{float(f'{percent:.2g}'):g} %"


@dataclass(frozen=True, slots=True)
class Limit:
    """A count of records, or a share of them."""

    count: int | None = None
    percent: float | None = None

    def records(self, total: int) -> int:
        """Most records allowed out of `total`; a share allows at least one."""
        if self.count is not None:
            return self.count
        share = total * (self.percent or 0.0) / 100
        return max(int(share), 1) if self.percent else 0


def parse_limit(text: object) -> Limit:
    """A `Limit` from "1%" or a whole number of records."""
    words = str(text).strip()
    fix = 'Write a share like "1%" or a number of records like 500.'
    if isinstance(text, bool):
        raise UsageError(f"{text!r} is not a limit.", fix=fix)
    if words.endswith("%"):
        try:
            percent = float(words[:-1])
        except ValueError:
            raise UsageError(f"{text!r} is not a limit.", fix=fix) from None
        if not 0 <= percent <= 100:
            raise UsageError(f"{text!r} is not between 0% and 100%.", fix=fix)
        return Limit(percent=percent)
    if not (words.isascii() and words.isdigit()) or len(words) > _LONGEST_NUMBER:
        raise UsageError(f"{text!r} is not a limit.", fix=fix)
    return Limit(count=int(words))


def duration_text(seconds: float) -> str:
    """ "8 s", "3 min 20 s", "2 h 5 min": two units at most, for people."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
