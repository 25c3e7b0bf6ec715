"""Windows' numbers about sessions, as our words; on any system."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.windows import AllSessions, merge
from officegrid.agent.windows import translate
from officegrid.agent.windows.readings import ListedSession
from officegrid.agent.windows.translate import SessionState
from officegrid.core.desk import Session

WINDOWS_7, WINDOWS_10 = (6, 1), (10, 0)


@pytest.mark.parametrize(
    ("last", "now", "idle_s"),
    [
        (1000, 1000, 0.0),
        (1000, 3500, 2.5),
        (2**32 - 1000, 500, 1.5),  # the counter has started anew in between
        (2000, 1500, 0.0),  # not monotonic: the input is "ahead" of now
        (100, 2**32 - 100, 0.0),  # the same, across the wrap
        (0, 2**31, 2147483.648),  # 24 days: half of what the counter can tell
        (0, 2**32 - translate.BACKWARDS_MS - 1, (2**32 - 60_001) / 1000),
    ],
)
def test_idle_time_from_two_ticks(last: int, now: int, idle_s: float) -> None:
    assert translate.idle_s(last, now) == pytest.approx(idle_s)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - translate.BACKWARDS_MS - 1))
def test_idle_time_is_right_wherever_the_counter_stands(last: int, passed_ms: int) -> None:
    assert translate.idle_s(last, (last + passed_ms) % 2**32) == passed_ms / 1000


@given(st.integers(0, 2**32 - 1), st.integers(0, translate.BACKWARDS_MS))
def test_an_input_from_the_near_future_is_now(now: int, ahead_ms: int) -> None:
    assert translate.idle_s((now + ahead_ms) % 2**32, now) == 0.0


@pytest.mark.parametrize(
    ("flags", "windows", "locked"),
    [
        (0, WINDOWS_10, True), (1, WINDOWS_10, False), (0, (6, 3), True),
        (0, WINDOWS_7, False), (1, WINDOWS_7, True),
        (0xFFFFFFFF, WINDOWS_10, None), (0xFFFFFFFF, WINDOWS_7, None), (7, WINDOWS_10, None),
    ],
)  # fmt: skip
def test_lock_flag_is_reversed_on_windows_7(
    flags: int, windows: tuple[int, int], locked: bool | None
) -> None:
    assert translate.locked(flags, windows) is locked


@pytest.mark.parametrize(
    ("state", "presenting"),
    [(1, False), (2, True), (3, True), (4, True), (5, False), (6, False), (7, False), (0, None),
     (8, None), (-1, None)],
)  # fmt: skip
def test_presenting(state: int, presenting: bool | None) -> None:
    assert translate.presenting(state) is presenting


@pytest.mark.parametrize(("line", "battery"), [(0, True), (1, False), (255, None), (9, None)])
def test_battery(line: int, battery: bool | None) -> None:
    assert translate.on_battery(line) is battery


def wtsinfoex(
    session: int, state: int, flags: int, user: str, domain: str, level: int = 1
) -> bytes:
    """A WTSINFOEXW as a 64-bit Windows lays it out: 232 bytes, the times zero."""

    def text(value: str, size: int) -> bytes:
        return value.encode("utf-16-le").ljust(size * 2, b"\0")

    head = struct.pack("<IxxxxIII", level, session, state, flags)
    names = text("Console", 33) + text(user, 21) + text(domain, 18)
    return (head + names).ljust(232, b"\0")


def test_session_info_is_read() -> None:
    raw = wtsinfoex(3, SessionState.ACTIVE, 0, "kim", "OFFICE")
    info = translate.session_info(raw, WINDOWS_10)
    assert info == translate.SessionInfo(session=3, state=0, locked=True, user="OFFICE\\kim")
    assert translate.session_info(wtsinfoex(3, 0, 0, "", ""), WINDOWS_7) == translate.SessionInfo(
        session=3, state=0, locked=False, user=""
    )


@given(st.binary(max_size=300))
def test_session_info_of_anything_never_fails(raw: bytes) -> None:
    info = translate.session_info(raw, WINDOWS_10)
    assert info is None or len(raw) >= 164


def test_another_level_is_not_read() -> None:
    assert translate.session_info(wtsinfoex(3, 0, 0, "kim", "X", level=2), WINDOWS_10) is None
    assert translate.session_info(wtsinfoex(3, 0, 0, "kim", "X")[:160], WINDOWS_10) is None


def reading(session: str, idle_s: float = 9.0) -> Session:
    return Session(id=session, age_s=0.5, idle_s=idle_s)


def test_a_connected_session_without_a_helper_is_silent() -> None:
    (found,) = merge([], [ListedSession(2, SessionState.ACTIVE, "kim")])
    assert (found.id, found.idle_s, found.age_s, found.user) == ("2", None, float("inf"), "kim")


def test_who_is_not_connected_is_left_out() -> None:
    listed = [
        ListedSession(1, SessionState.DISCONNECTED, "kim"),  # switched to another user
        ListedSession(2, SessionState.ACTIVE, "lee"),
        ListedSession(3, SessionState.CONNECTED, ""),  # the login screen
        ListedSession(65536, SessionState.LISTEN, ""),
    ]
    merged = merge([reading("1", 0.1), reading("2", 30), reading("7", 0.1)], listed)
    assert merged == [reading("2", 30)]


def test_the_login_screen_alone_is_nobody() -> None:
    assert merge([], [ListedSession(1, SessionState.CONNECTED, "")]) == []


class Listing:
    """The system's list, and how often it was asked for."""

    def __init__(self) -> None:
        self.asked, self.now_s, self.fails = 0, 0.0, False
        self.entries = [ListedSession(1, SessionState.ACTIVE, "kim")]

    def __call__(self) -> list[ListedSession]:
        self.asked += 1
        if self.fails:
            raise SensorError("no list")
        return self.entries


def test_the_list_is_kept_for_a_second_unless_something_changed() -> None:
    listing = Listing()
    sensor = AllSessions(lambda: [reading("1")], listing, own=list, clock=lambda: listing.now_s)
    for _ in range(10):
        assert sensor.read() == [reading("1")]
    assert listing.asked == 1
    listing.entries = []
    sensor.refresh()
    assert sensor.read() == []
    listing.now_s = 1.5
    sensor.read()
    assert listing.asked == 3


def test_an_agent_started_by_hand_sees_its_own_session_until_a_helper_speaks_for_it() -> None:
    told: list[Session] = []
    sensor = AllSessions(lambda: list(told), Listing(), own=lambda: [reading("1", 4.0)])
    assert sensor.read() == [reading("1", 4.0)]
    told.append(reading("1", 2.0))
    assert sensor.read() == [reading("1", 2.0)]


def test_without_a_list_the_helpers_are_believed_and_without_them_nobody() -> None:
    listing = Listing()
    listing.fails = True
    told = [reading("1")]
    sensor = AllSessions(lambda: list(told), listing, own=list, clock=lambda: listing.now_s)
    assert sensor.read() == [reading("1")]
    told.clear()
    with pytest.raises(SensorError, match="no list"):
        sensor.read()
