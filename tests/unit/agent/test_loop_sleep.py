"""A PC that slept, hibernated, or whose clock was set, under the real loop and its threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from officegrid.agent import sampler as sampler_module
from officegrid.core.vm import VmState
from unit.agent.desk_kit import Desk, quicken


class Clocks:
    """What the sampler takes for the time: so many seconds ahead of the truth."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.monotonic_s = 0.0

    def module(self) -> SimpleNamespace:
        return SimpleNamespace(
            time=lambda: time.time() + self.wall_s,
            monotonic=lambda: time.monotonic() + self.monotonic_s,
            localtime=time.localtime,
        )


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(sampler_module, "time", made.module())
    quicken(monkeypatch)
    return made


@pytest.fixture
def desk(tmp_path: Path, clocks: Clocks) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.person.leaves()
    yield made
    made.close()


def _sleeps(clocks: Clocks) -> None:
    clocks.wall_s += 3 * 3600  # Linux: the monotonic clock stands still in sleep


def _hibernates(clocks: Clocks) -> None:
    clocks.wall_s += 3 * 3600
    clocks.monotonic_s += 3 * 3600  # Windows: it goes on


@pytest.mark.parametrize("gap", [_sleeps, _hibernates])
def test_who_wakes_a_pc_finds_it_free_and_it_starts_again_when_left(
    desk: Desk, clocks: Clocks, gap: Callable[[Clocks], None]
) -> None:
    desk.wait_state(VmState.RUNNING)
    gap(clocks)
    desk.wait_told("saved")
    # Nobody has touched it since: after a fresh idle time it goes on from where it was.
    desk.wait_state(VmState.RUNNING)
    assert desk.verbs().count("start") == 2


def test_a_clock_set_back_neither_stops_nor_starts_anything(desk: Desk, clocks: Clocks) -> None:
    desk.wait_state(VmState.RUNNING)
    clocks.wall_s -= 86400
    seen = desk.person.reads
    while desk.person.reads < seen + 20:
        time.sleep(0.05)
    assert desk.state is VmState.RUNNING
    assert desk.verbs().count("start") == 1
