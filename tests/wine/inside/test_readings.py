"""What the agent reads from Windows about a session, on Windows."""

from __future__ import annotations

import ctypes
import importlib
import pkgutil
import sys
import time

import pytest
from inputs import press_shift

import officegrid.agent
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.windows import AllSessions, OwnSession, own_reading
from officegrid.agent.windows import readings
from officegrid.core.desk import Session


def test_input_resets_the_idle_time_and_silence_lets_it_grow() -> None:
    press_shift()
    assert readings.idle_s() < 0.5
    began_s = time.monotonic()
    while readings.idle_s() < 0.4:
        assert time.monotonic() - began_s < 5
        time.sleep(0.02)
    grown_s = readings.idle_s()
    assert grown_s <= time.monotonic() - began_s + 0.5
    press_shift()
    assert readings.idle_s() < grown_s


def test_a_reading_of_our_session_is_complete() -> None:
    (session,) = OwnSession().read()
    assert session.id == str(readings.own_session_id()) != "0"
    assert session.idle_s is not None
    assert session.remote is False
    assert session.presenting is False
    # Wine cannot tell whether it is locked; Windows can. Never a wrong answer.
    assert session.locked in (None, False)
    assert set(own_reading()) == {"idle_s", "locked", "remote", "presenting"}


def test_power_is_told() -> None:
    assert readings.is_on_battery() in (True, False, None)
    assert readings.windows_version() == (10, 0)


def test_the_sessions_are_listed_or_said_not_to_be() -> None:
    reported = [Session(id="1", age_s=0, idle_s=5)]
    listed = _listed()
    if listed is None:  # Wine
        assert AllSessions(lambda: list(reported), own=list).read() == reported
        with pytest.raises(SensorError, match="the list is empty"):
            AllSessions(list, own=list).read()
        (own,) = AllSessions(list).read()  # an agent that was started by hand
        assert own.id == str(readings.own_session_id())
    else:
        assert readings.own_session_id() in [entry.session for entry in listed]


def _listed() -> list[readings.ListedSession] | None:
    try:
        return readings.list_sessions()
    except SensorError:
        return None


def test_a_reading_costs_little() -> None:
    own_reading()
    began_s = time.process_time()
    for _ in range(200):
        own_reading()
    assert (time.process_time() - began_s) / 200 < 0.002  # at one a second: 0.2 % of a core


UNIX_ONLY = {"cgroups", "launch", "posix"}


def test_every_module_of_the_agent_imports_on_windows() -> None:
    assert sys.platform == "win32"
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    imported = 0
    for module in pkgutil.walk_packages(officegrid.agent.__path__, "officegrid.agent."):
        if module.name.rpartition(".")[2] in UNIX_ONLY:
            continue
        importlib.import_module(module.name)
        imported += 1
    assert imported > 20
