"""The presence file: both forms, staleness, garbage, and what a reading costs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent.channel.hub import Hub
from officegrid.agent.sensors.base import SensorError
from officegrid.agent.sensors.combine import open_sensors
from officegrid.agent.sensors.file import FileSensor, parse
from officegrid.core.desk import Session
from officegrid.core.errors import UsageError

AT = 1_790_000_000.0


class Clock:
    now_s = AT

    def __call__(self) -> float:
        return self.now_s


def _write(path: Path, data: Any) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(data if isinstance(data, str) else json.dumps(data))
    fresh.replace(path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "presence.json"


@pytest.fixture
def sensor(path: Path, clock: Clock) -> FileSensor:
    return FileSensor(path, wall_clock=clock)


def test_the_short_and_the_long_form(path: Path, sensor: FileSensor) -> None:
    _write(path, {"idle_s": 12.5, "locked": False, "at": AT})
    assert sensor.read() == [Session(id="1", age_s=0.0, idle_s=12.5, locked=False)]
    _write(
        path,
        {
            "at": AT - 2,
            "sessions": [
                {"id": "c1", "idle_s": None, "locked": True, "user": "anna"},
                {"id": "7", "idle_s": 0, "remote": True, "presenting": None},
            ],
        },
    )
    assert sensor.read() == [
        Session(id="c1", age_s=2.0, idle_s=None, locked=True, user="anna"),
        Session(id="7", age_s=2.0, idle_s=0.0, remote=True, presenting=None),
    ]
    _write(path, {"at": AT, "sessions": []})
    assert sensor.read() == []


def test_the_age_grows_while_the_file_stays_and_costs_one_stat(
    path: Path, sensor: FileSensor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(path, {"idle_s": 400, "at": AT - 1})
    assert sensor.read()[0].age_s == 1.0
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("the file was read again"))
    clock.now_s += 60
    assert sensor.read()[0].age_s == 61.0
    assert sensor.read()[0].idle_s == 400.0


def test_an_empty_room_must_be_said_anew(path: Path, sensor: FileSensor, clock: Clock) -> None:
    """An empty list has no session whose age could grow."""
    _write(path, {"at": AT, "sessions": []})
    assert sensor.read() == []
    clock.now_s += 16
    with pytest.raises(SensorError, match="was written 16 s ago"):
        sensor.read()


def test_a_time_in_the_future_is_not_believed(path: Path, sensor: FileSensor, clock: Clock) -> None:
    _write(path, {"idle_s": 1, "at": AT + 1.5})
    assert sensor.read()[0].age_s == 0.0
    _write(path, {"idle_s": 1, "at": AT + 3600})
    with pytest.raises(SensorError, match="3600 s in the future"):
        sensor.read()
    clock.now_s += 3600
    assert sensor.read()[0].age_s == 0.0


def test_missing_then_there_then_gone(path: Path, sensor: FileSensor) -> None:
    with pytest.raises(SensorError, match="does not exist"):
        sensor.read()
    _write(path, {"idle_s": 5, "at": AT})
    assert sensor.read()[0].idle_s == 5.0
    path.unlink()
    with pytest.raises(SensorError, match="does not exist"):
        sensor.read()
    path.mkdir()
    with pytest.raises(SensorError, match="cannot be read"):
        sensor.read()


GARBAGE = {
    "empty": ("", "not JSON"),
    "cut short": ('{"idle_s": 12.5, "at": 17900', "not JSON"),
    "a list": ("[1]", "not a JSON object"),
    "no time": ({"idle_s": 1}, "'at' is missing"),
    "time as text": ({"idle_s": 1, "at": "now"}, "'at' is not"),
    "no idle time": ({"at": AT}, "neither 'idle_s' nor"),
    "idle as text": ({"idle_s": "12", "at": AT}, "'idle_s' is not"),
    "idle as flag": ({"idle_s": True, "at": AT}, "'idle_s' is not"),
    "negative": ({"idle_s": -1, "at": AT}, "'idle_s' is not"),
    "not a number": ('{"idle_s": NaN, "at": 1790000000}', "'idle_s' is not"),
    "infinite": ('{"idle_s": Infinity, "at": 1790000000}', "'idle_s' is not"),
    "enormous": ('{"idle_s": 1' + "0" * 400 + ', "at": 1790000000}', "'idle_s' is not"),
    "locked as text": ({"idle_s": 1, "locked": "no", "at": AT}, "'locked' is neither"),
    "remote unknown": ({"idle_s": 1, "remote": None, "at": AT}, "'remote' is neither"),
    "sessions as object": ({"at": AT, "sessions": {}}, "not a list"),
    "session as text": ({"at": AT, "sessions": ["x"]}, "not a JSON object"),
    "same id twice": (
        {"at": AT, "sessions": [{"id": "1", "idle_s": 1}, {"id": "1", "idle_s": 2}]}, "same id",
    ),
    "far too long": (" " * 70000, "more than"),
    "deep": ("[" * 60000, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_says_nothing(path: Path, sensor: FileSensor, name: str) -> None:
    data, sentence = GARBAGE[name]
    _write(path, data)
    for _ in range(2):  # the second answer is the remembered one
        with pytest.raises(SensorError, match=sentence):
            sensor.read()
    _write(path, {"idle_s": 5, "at": AT})
    assert sensor.read()[0].idle_s == 5.0


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parse(b"\xff\xfe\x00")


def _hub() -> Hub:
    return Hub(clock=time.monotonic, status=dict, pause=lambda *_: None, unpause=lambda *_: None)


def test_through_the_common_door_trouble_is_none_and_explained(path: Path) -> None:
    sensors = open_sensors("file", path, _hub())
    assert sensors.read() is None
    assert "does not exist" in sensors.explain()[0]
    _write(path, {"at": time.time(), "sessions": []})
    assert sensors.read() == ()
    assert sensors.trouble == ""
    assert sensors.explain() == ["file: nobody is logged on"]
    _write(path, {"at": time.time(), "idle_s": 90, "locked": True})
    found = sensors.read()
    assert found is not None
    assert found[0].locked is True
    assert "session 1: idle 90 s, locked" in sensors.explain()[0]
    sensors.close()


def test_a_file_sensor_without_a_file_is_a_wrong_setting() -> None:
    with pytest.raises(UsageError, match="presence file is not named"):
        open_sensors("file", None, _hub())


def test_a_change_within_the_same_tick_and_size_is_seen(path: Path, sensor: FileSensor) -> None:
    """Renamed files differ in their inode even where the clock of the file system is coarse."""
    _write(path, {"idle_s": 5, "at": AT})
    about = path.stat()
    assert sensor.read()[0].idle_s == 5.0
    _write(path, {"idle_s": 7, "at": AT})
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert sensor.read()[0].idle_s == 7.0
