"""Hours and rules as people write them, and the merge of two sets of rules."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.desk import DeskPolicy, Hours
from officegrid.core.deskrules import (
    EVERY_DAY,
    NO_HOURS,
    STRICTER,
    common_hours,
    format_hours,
    hours_allow,
    inside,
    inside_any,
    minutes_until_allowed,
    parse_hours,
    read_rules,
    stricter,
    union_hours,
)
from officegrid.core.errors import UsageError

WEEK = [(day, minute) for day in range(7) for minute in range(0, 1440, 5)]
MON, TUE, FRI, SAT, SUN = 0, 1, 4, 5, 6

hours = st.builds(
    Hours,
    days=st.frozensets(st.integers(0, 6)),
    start_minute=st.integers(0, 287).map(lambda n: n * 5),
    end_minute=st.integers(0, 288).map(lambda n: n * 5),
)
many_hours = st.lists(hours, max_size=3).map(tuple)
policies = st.builds(
    DeskPolicy,
    idle_s=st.floats(0, 900),
    lock_counts=st.booleans(),
    cpu_busy_share=st.floats(0, 1),
    cpu_busy_s=st.floats(0, 60),
    cpu_idle_share=st.floats(0, 1),
    cpu_idle_s=st.floats(0, 60),
    on_battery=st.booleans(),
    remote_session=st.booleans(),
    memory_free_mb=st.integers(0, 9000),
    quiet_hours=many_hours,
    run_hours=many_hours,
    sensor_timeout_s=st.floats(1, 60),
    settle_s=st.floats(0, 60),
    never=st.booleans(),
    saves_per_hour=st.integers(0, 20),
    save_delay_s=st.floats(0, 60),
)


# --- hours as text


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        ("mon-fri 08:00-18:00", {0, 1, 2, 3, 4}, 480, 1080),
        ("sat,sun 00:00-24:00", {5, 6}, 0, 1440),
        ("20:00-06:00", set(range(7)), 1200, 360),
        ("fri-mon 9:30-10:00", {4, 5, 6, 0}, 570, 600),
        ("Mon, Wed-Fri 08:00 - 12:00", {0, 2, 3, 4}, 480, 720),
        ("tuesday 00:00-00:00", {1}, 0, 0),
        ("sun 23:59-24:00", {6}, 1439, 1440),
        ("  mon  08:00-18:00 ", {0}, 480, 1080),
        ("never", set(), 0, 0),
    ],
)
def test_hours_are_read(text: str, days: set[int], start: int, end: int) -> None:
    assert parse_hours(text) == Hours(frozenset(days), start, end)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not [days]"),
        ("mon-fri", "not [days]"),
        ("08:00", "not [days]"),
        ("8-18", "not [days]"),
        ("mon-fri 08:00-18:00 sat", "not [days]"),
        ("24:00-06:00", "only be an end"),
        ("08:00-25:00", "not a time of day"),
        ("08:60-09:00", "not a time of day"),
        ("24:01-06:00", "not a time of day"),
        ("08:00-24:01", "not a time of day"),
        ("moon 08:00-18:00", "'moon' is not a day"),
        ("mon--fri 08:00-18:00", "is not a day"),
        ("mon, 08:00-18:00", "is not a day"),
        ("- 08:00-18:00", "is not a day"),
    ],
)
def test_hours_that_cannot_be_read_are_explained(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_hours(text)
    assert repr(text) in caught.value.what
    assert why in caught.value.why
    assert "mon-fri 08:00-18:00" in caught.value.fix


@pytest.mark.parametrize(
    ("given_hours", "text"),
    [
        (Hours(frozenset({0, 1, 2, 3, 4}), 480, 1080), "mon-fri 08:00-18:00"),
        (Hours(frozenset({5, 6}), 0, 1440), "sat,sun 00:00-24:00"),
        (Hours(EVERY_DAY, 1200, 360), "20:00-06:00"),
        (Hours(frozenset({0, 2, 3, 4, 6}), 0, 5), "mon,wed-fri,sun 00:00-00:05"),
        (NO_HOURS, "never"),
    ],
)
def test_hours_are_written(given_hours: Hours, text: str) -> None:
    assert format_hours(given_hours) == text


@given(hours)
def test_what_is_written_is_read_back(each: Hours) -> None:
    back = parse_hours(format_hours(each))
    assert back == (each if each.days else NO_HOURS)


# --- hours as minutes


@pytest.mark.parametrize(
    ("text", "weekday", "clock", "expected"),
    [
        ("mon-fri 08:00-18:00", MON, "07:59", False),
        ("mon-fri 08:00-18:00", MON, "08:00", True),
        ("mon-fri 08:00-18:00", MON, "17:59", True),
        ("mon-fri 08:00-18:00", MON, "18:00", False),
        ("mon-fri 08:00-18:00", SAT, "12:00", False),
        ("fri 20:00-06:00", FRI, "19:59", False),
        ("fri 20:00-06:00", FRI, "20:00", True),
        ("fri 20:00-06:00", SAT, "05:59", True),
        ("fri 20:00-06:00", SAT, "06:00", False),
        ("fri 20:00-06:00", FRI, "05:00", False),
        ("sun 22:00-02:00", MON, "01:59", True),
        ("sun 22:00-02:00", MON, "02:00", False),
        ("20:00-06:00", TUE, "03:00", True),
        ("sat 00:00-24:00", SAT, "00:00", True),
        ("sat 00:00-24:00", SAT, "23:59", True),
        ("sat 00:00-24:00", SUN, "00:00", False),
        ("sat 08:00-08:00", SUN, "07:59", True),
        ("never", MON, "00:00", False),
    ],
)
def test_a_minute_is_inside_or_not(text: str, weekday: int, clock: str, expected: bool) -> None:
    minute = int(clock[:2]) * 60 + int(clock[3:])
    assert inside(parse_hours(text), weekday, minute) is expected


@given(many_hours, many_hours)
def test_a_union_has_the_minutes_of_both(left: tuple[Hours, ...], right: tuple[Hours, ...]) -> None:
    both = union_hours(left, right)
    for moment in WEEK:
        expected = inside_any(left, *moment) or inside_any(right, *moment)
        assert inside_any(both, *moment) is expected


@given(many_hours, many_hours)
def test_common_hours_are_inside_both(left: tuple[Hours, ...], right: tuple[Hours, ...]) -> None:
    both = common_hours(left, right)
    for moment in WEEK:
        expected = all(not each or inside_any(each, *moment) for each in (left, right))
        assert (not both or inside_any(both, *moment)) is expected


def test_no_common_hour_is_not_the_same_as_no_rule() -> None:
    days, nights = (parse_hours("08:00-18:00"),), (parse_hours("20:00-06:00"),)
    assert common_hours(days, nights) == (NO_HOURS,)
    assert common_hours((), ()) == ()
    assert not any(hours_allow(DeskPolicy(run_hours=(NO_HOURS,)), *moment) for moment in WEEK)


@pytest.mark.parametrize(
    ("texts", "canonical"),
    [
        (["08:00-12:00", "12:00-18:00"], ["08:00-18:00"]),
        (["mon 00:00-24:00", "tue 00:00-24:00"], ["mon,tue 00:00-24:00"]),
        (["20:00-06:00"], ["20:00-06:00"]),
        (["sun 20:00-24:00", "mon 00:00-06:00"], ["sun 20:00-06:00"]),
        (
            ["fri 18:00-24:00", "sat,sun 00:00-24:00", "mon 00:00-07:00"],
            ["mon 00:00-07:00", "fri 18:00-24:00", "sat,sun 00:00-24:00"],
        ),
        (["mon-fri 08:00-18:00", "tue 09:00-10:00"], ["mon-fri 08:00-18:00"]),
        (["sat 08:00-08:00"], ["sat 08:00-24:00", "sun 00:00-08:00"]),
        (["never"], []),
    ],
)
def test_hours_have_one_canonical_form(texts: list[str], canonical: list[str]) -> None:
    merged = union_hours([parse_hours(text) for text in texts], ())
    assert [format_hours(each) for each in merged] == canonical


@given(many_hours, many_hours, st.integers(0, 6), st.integers(0, 1439))
def test_the_wait_ends_in_the_first_minute_that_is_allowed(
    quiet: tuple[Hours, ...], run: tuple[Hours, ...], weekday: int, minute: int
) -> None:
    policy = DeskPolicy(quiet_hours=quiet, run_hours=run)
    wait = minutes_until_allowed(policy, weekday, minute)
    moments = (divmod((weekday * 1440 + minute + n) % 10080, 1440) for n in range(10080))
    expected = next((n for n, at in enumerate(moments) if hours_allow(policy, *at)), None)
    assert wait == expected


# --- the merge


def test_every_rule_has_a_stricter_direction() -> None:
    assert set(STRICTER) == {field.name for field in fields(DeskPolicy)}


@pytest.mark.parametrize(
    ("name", "mild", "strict"),
    [
        ("idle_s", 60.0, 300.0),
        ("lock_counts", True, False),
        ("cpu_busy_share", 0.5, 0.25),
        ("cpu_busy_s", 60.0, 10.0),
        ("cpu_idle_share", 0.3, 0.1),
        ("cpu_idle_s", 10.0, 30.0),
        ("on_battery", True, False),
        ("remote_session", True, False),
        ("memory_free_mb", 512, 1024),
        ("quiet_hours", (), (parse_hours("mon-fri 08:00-18:00"),)),
        ("run_hours", (), (parse_hours("mon-fri 08:00-18:00"),)),
        ("sensor_timeout_s", 30.0, 10.0),
        ("settle_s", 0.0, 10.0),
        ("never", False, True),
        ("saves_per_hour", 10, 2),
        ("save_delay_s", 60.0, 0.0),
    ],
)
def test_the_stricter_value_wins_from_either_side(name: str, mild: object, strict: object) -> None:
    left, right = (replace(DeskPolicy(), **{name: value}) for value in (mild, strict))
    assert getattr(stricter(left, right), name) == strict
    assert getattr(stricter(right, left), name) == strict


@given(policies, policies, policies)
def test_the_merge_is_idempotent_commutative_and_associative(
    one: DeskPolicy, two: DeskPolicy, three: DeskPolicy
) -> None:
    both = stricter(one, two)
    assert both == stricter(two, one)
    assert stricter(both, three) == stricter(one, stricter(two, three))
    assert stricter(both, both) == both
    assert stricter(both, one) == both
    plain = replace(one, quiet_hours=(), run_hours=())
    assert stricter(plain, plain) == plain


# --- rules as people write them


def test_rules_are_read_in_the_units_of_people() -> None:
    raw = {
        "idle": "10m",
        "settle_s": "30s",
        "cpu_idle_s": 45,
        "cpu_busy_share": "25%",
        "cpu_idle_share": 0.1,
        "memory_free": "1GiB",
        "on_battery": False,
        "quiet_hours": ["mon-fri 08:00-18:00"],
        "run_hours": "20:00-06:00",
    }
    assert read_rules(raw) == {
        "idle_s": 600.0,
        "settle_s": 30.0,
        "cpu_idle_s": 45,
        "cpu_busy_share": 0.25,
        "cpu_idle_share": 0.1,
        "memory_free_mb": 1024,
        "on_battery": False,
        "quiet_hours": ["mon-fri 08:00-18:00"],
        "run_hours": ["20:00-06:00"],
    }


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"idel": "10m"}, "'idel' is not a rule"),
        ({"idle": "ten minutes"}, "The rule idle is wrong"),
        ({"idle": "10m", "idle_s": 600}, "given twice"),
        ({"idle": 10}, "has no unit"),
        ({"memory_free": "much"}, "The rule memory_free is wrong"),
        ({"quiet_hours": ["always"]}, "'always' are not hours"),
        ({"run_hours": [8]}, "8 are not hours"),
    ],
)
def test_rules_that_cannot_be_read_are_explained(raw: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_rules(raw)
    assert said in str(caught.value)
    assert caught.value.fix
