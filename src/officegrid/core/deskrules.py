"""The rules of a desk as people write them, and how two sets of rules become one.

Hours are texts: "mon-fri 08:00-18:00", "sat,sun 00:00-24:00", "20:00-06:00" (every day). A span
whose end is not after its start goes on into the next day, so "fri 20:00-06:00" ends on Saturday.

Every rule has a stricter direction. `stricter` merges two policies field by field in it, so the
result never runs where one of the two would yield. The merge is idempotent, commutative and
associative. Hours are merged as sets of minutes of the week and written in one canonical form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from officegrid.core.desk import DeskPolicy, Hours
from officegrid.core.errors import UsageError
from officegrid.core.quantities import parse_duration_s, parse_size_bytes

DAY_MINUTES = 1440
WEEK_MINUTES = 7 * DAY_MINUTES
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))
NO_HOURS = Hours(frozenset(), 0, 0)
"""A span without a minute in it; `run_hours` that leave no hour are written as this one."""

_LONG_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_HOURS = re.compile(r"^(?:(?P<days>[a-z,\s-]+?)\s+)?(?P<from>\d\d?:\d\d)\s*-\s*(?P<to>\d\d?:\d\d)$")
_HOURS_FIX = 'Write it like "mon-fri 08:00-18:00", "sat,sun 00:00-24:00" or "20:00-06:00".'

Spans = list[tuple[int, int]]
"""Minutes of the week, [first, last + 1), sorted, apart from one another; Monday 00:00 is 0."""


# --- hours as text


def parse_hours(text: str) -> Hours:
    """One span of the week; "never" is the span without a minute.

    Raises UsageError with what, why and fix when the text is not such a span.
    """
    words = str(text).strip().lower()
    if words == "never":
        return NO_HOURS
    match = _HOURS.match(words)
    if match is None:
        raise _bad_hours(text, "It is not [days] HH:MM-HH:MM.")
    start, end = _minute(text, match["from"]), _minute(text, match["to"])
    if start == DAY_MINUTES:
        raise _bad_hours(text, "24:00 can only be an end.")
    return Hours(_days(text, match["days"]), start, end)


def _minute(text: str, clock: str) -> int:
    hour, minute = (int(part) for part in clock.split(":"))
    if minute > 59 or hour * 60 + minute > DAY_MINUTES:
        raise _bad_hours(text, f"{clock} is not a time of day.")
    return hour * 60 + minute


def _days(text: str, words: str | None) -> frozenset[int]:
    if words is None:
        return EVERY_DAY
    found: set[int] = set()
    for part in words.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        begin = _day(text, first)
        end = _day(text, last) if dash else begin
        found |= {(begin + step) % 7 for step in range((end - begin) % 7 + 1)}
    return frozenset(found)


def _day(text: str, word: str) -> int:
    for number, names in enumerate(zip(DAYS, _LONG_DAYS, strict=True)):
        if word in names:
            return number
    raise _bad_hours(text, f"{word!r} is not a day; the days are {', '.join(DAYS)}.")


def _bad_hours(text: object, why: str) -> UsageError:
    return UsageError(f"{text!r} are not hours of the week.", why, _HOURS_FIX)


def format_hours(hours: Hours) -> str:
    """The text of a span: what `parse_hours` reads back as the same minutes of the week."""
    if not hours.days:
        return "never"
    end = f"{hours.end_minute // 60:02}:{hours.end_minute % 60:02}"
    span = f"{hours.start_minute // 60:02}:{hours.start_minute % 60:02}-{end}"
    return span if hours.days == EVERY_DAY else f"{_format_days(hours.days)} {span}"


def _format_days(days: frozenset[int]) -> str:
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    texts = []
    for run in runs:
        whole = len(run) > 2
        names = [DAYS[day] for day in run]
        texts.append(f"{names[0]}-{names[-1]}" if whole else ",".join(names))
    return ",".join(texts)


# --- hours as minutes of the week


def inside(hours: Hours, weekday: int, minute: int) -> bool:
    """Is this minute (0 to 1439) of this local weekday (Monday is 0) within the span?"""
    start, end = hours.start_minute, hours.end_minute
    if end > start:
        return weekday in hours.days and start <= minute < end
    today = weekday in hours.days and minute >= start
    return today or ((weekday - 1) % 7 in hours.days and minute < end)


def inside_any(spans: Iterable[Hours], weekday: int, minute: int) -> bool:
    """Is this minute within one of the spans?"""
    return any(inside(hours, weekday, minute) for hours in spans)


def hours_allow(policy: DeskPolicy, weekday: int, minute: int) -> bool:
    """Outside all quiet hours, and inside the run hours if there are any."""
    if inside_any(policy.quiet_hours, weekday, minute):
        return False
    return not policy.run_hours or inside_any(policy.run_hours, weekday, minute)


def minutes_until_allowed(policy: DeskPolicy, weekday: int, minute: int) -> int | None:
    """Minutes from now to the next one in which the hours allow a run; None: there is none.

    Only ends of quiet hours and starts of run hours can be that minute, so only they are tried.
    """
    if hours_allow(policy, weekday, minute):
        return 0
    now = weekday * DAY_MINUTES + minute
    turns = {end for hours in policy.quiet_hours for _, end in _of_days(hours)}
    turns |= {start for hours in policy.run_hours for start, _ in _of_days(hours)}
    for wait in sorted((turn - now) % WEEK_MINUTES for turn in turns):
        then = (now + wait) % WEEK_MINUTES
        if hours_allow(policy, then // DAY_MINUTES, then % DAY_MINUTES):
            return wait
    return None


def _of_days(hours: Hours) -> Spans:
    """One span per day, as minutes from Monday 00:00; the last may end after Sunday 24:00."""
    length = hours.end_minute - hours.start_minute
    length += DAY_MINUTES if length <= 0 else 0
    starts = [day * DAY_MINUTES + hours.start_minute for day in sorted(hours.days)]
    return [(start, start + length) for start in starts]


def _spans(many: Iterable[Hours]) -> Spans:
    """All minutes of these hours within [0, WEEK_MINUTES), overlaps and seams closed."""
    raw: Spans = []
    for start, end in (span for hours in many for span in _of_days(hours)):
        raw.append((start, min(end, WEEK_MINUTES)))
        if end > WEEK_MINUTES:
            raw.append((0, end - WEEK_MINUTES))
    closed: Spans = []
    for start, end in sorted(raw):
        if closed and start <= closed[-1][1]:
            closed[-1] = (closed[-1][0], max(end, closed[-1][1]))
        else:
            closed.append((start, end))
    return closed


def _meet(left: Spans, right: Spans) -> Spans:
    pairs = ((max(a, c), min(b, d)) for a, b in left for c, d in right)
    return sorted((start, end) for start, end in pairs if start < end)


def _written(spans: Spans) -> tuple[Hours, ...]:
    """The canonical hours of these minutes: a night stays one span, longer ones are cut into
    days, and days with the same times share one entry."""
    around = list(spans)
    if len(around) > 1 and around[0][0] == 0 and around[-1][1] == WEEK_MINUTES:
        # Sunday night goes on into Monday morning.
        around[-1] = (around[-1][0], WEEK_MINUTES + around.pop(0)[1])
    days: dict[tuple[int, int], set[int]] = {}
    for start, end in around:
        while start < end:
            midnight = (start // DAY_MINUTES + 1) * DAY_MINUTES
            stop = end if end - start < DAY_MINUTES else min(end, midnight)
            last = (stop - 1) % DAY_MINUTES + 1
            day = start // DAY_MINUTES % 7
            days.setdefault((start % DAY_MINUTES, last), set()).add(day)
            start = stop
    entries = (Hours(frozenset(which), *times) for times, which in days.items())
    return tuple(sorted(entries, key=lambda h: (sorted(h.days), h.start_minute, h.end_minute)))


def union_hours(left: Sequence[Hours], right: Sequence[Hours]) -> tuple[Hours, ...]:
    """Quiet hours of both, canonical."""
    return _written(_spans([*left, *right]))


def common_hours(left: Sequence[Hours], right: Sequence[Hours]) -> tuple[Hours, ...]:
    """Run hours inside both, canonical. () means every hour, `NO_HOURS` alone means none."""
    week: Spans = [(0, WEEK_MINUTES)]
    both = _meet(_spans(left) if left else week, _spans(right) if right else week)
    if both == week:
        return ()
    return _written(both) or (NO_HOURS,)


# --- merging


def _both(left: bool, right: bool) -> bool:
    return left and right


def _either(left: bool, right: bool) -> bool:
    return left or right


STRICTER: Mapping[str, Callable[[Any, Any], Any]] = {
    "idle_s": max,
    "lock_counts": _both,
    "cpu_busy_share": min,
    "cpu_busy_s": min,
    "cpu_idle_share": min,
    "cpu_idle_s": max,
    "on_battery": _both,
    "remote_session": _both,
    "memory_free_mb": max,
    "quiet_hours": union_hours,
    "run_hours": common_hours,
    "sensor_timeout_s": min,
    "settle_s": max,
    "never": _either,
    "saves_per_hour": min,
    "save_delay_s": min,
}
"""For each field of DeskPolicy, the function that picks the stricter of two values."""


def stricter(left: DeskPolicy, right: DeskPolicy) -> DeskPolicy:
    """The mildest policy that is at least as strict as both, field by field."""
    names = [field.name for field in fields(DeskPolicy)]
    return DeskPolicy(
        **{name: STRICTER[name](getattr(left, name), getattr(right, name)) for name in names}
    )


# --- rules as people write them

_RULES = {field.name for field in fields(DeskPolicy)}
_SHARE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*%\s*$")


def read_rules(raw: Mapping[str, object]) -> dict[str, object]:
    """Rules from a settings file, in the units of `DeskPolicy`; values are not range-checked.

    Durations may be texts and then may drop their unit from the name (`idle = "10m"` is
    `idle_s = 600`), shares may be percentages (`cpu_busy_share = "25%"`), memory may be a size
    (`memory_free = "1GiB"`, whole MiB, rounded up). Hours are checked. Raises UsageError naming
    the rule, also for a name that is no rule: a misspelt rule must not vanish.
    """
    rules: dict[str, object] = {}
    for key, value in raw.items():
        name = next((key + unit for unit in ("_s", "_mb") if key + unit in _RULES), key)
        if name not in _RULES:
            raise UsageError(
                f"{key!r} is not a rule.", "", f"The rules are {', '.join(sorted(_RULES))}."
            )
        if name in rules:
            raise UsageError(
                f"The rule {name} is given twice.",
                f"{key} and {name} are the same rule.",
                "Keep one of them.",
            )
        try:
            rules[name] = _read_rule(name, value, unit_named=name == key)
        except UsageError as error:
            raise UsageError(f"The rule {key} is wrong.", error.what, error.fix) from None
    return rules


def _read_rule(name: str, value: object, *, unit_named: bool) -> object:
    if name in ("quiet_hours", "run_hours") and isinstance(value, str | list | tuple):
        texts = [value] if isinstance(value, str) else list(value)
        for text in texts:
            parse_hours(text)
        return texts
    if not isinstance(value, str):
        if not unit_named and not isinstance(value, bool):
            raise UsageError(
                f"{value!r} has no unit.",
                fix=f'Write {name} = {value!r}, or a text with a unit like "10m" or "1GiB".',
            )
        return value
    if name.endswith("_s"):
        return parse_duration_s(value)
    if name.endswith("_mb"):
        return -(-parse_size_bytes(value) // 2**20)
    share = _SHARE.match(value)
    return float(share[1]) / 100 if name.endswith("_share") and share else value
