"""When the coordinator's word about the worker in the VM counts, and when it says nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from officegrid.agent.files import Folders
from officegrid.agent.joining import FINDS_BACK_S, Joining
from officegrid.agent.orders import KeptOrders
from officegrid.core.vm import VmState
from officegrid.core.vmlife import Action, Verb, Want
from officegrid.transport.profile import Profile
from officegrid.wire.agent import AgentOrders


class Known:
    """What the coordinator said, and since when it has been in touch."""

    def __init__(self, folder: Path) -> None:
        folders = Folders(folder)
        folders.agent.mkdir(parents=True)
        self.orders = KeptOrders(folders.orders)
        self.touch_s: float | None = time.monotonic() - 1000.0
        profile = Profile(
            url="https://grid.test", ca_pem="", machine_id="m", token="t", role="agent", name="desk"
        )
        self.joining = Joining(
            folders, profile, None, self.orders,  # type: ignore[arg-type]
            vm_name="GridMachine", in_touch_since_s=lambda: self.touch_s,
        )  # fmt: skip

    def says(self, ago_s: float | None, *, replaced: bool = False) -> None:
        self.orders.take(AgentOrders(worker_seen_ago_s=ago_s, replaced=replaced))


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path)


def test_nothing_is_known_before_the_first_word(known: Known) -> None:
    assert known.joining.heard(time.monotonic() - 10) is None
    assert known.joining.unheard_s() is None


def test_a_worker_is_heard_if_it_was_seen_since_the_start(known: Known) -> None:
    known.says(5.0)
    assert known.joining.heard(time.monotonic() - 10) is True
    assert known.joining.heard(time.monotonic() - 2) is False
    unheard_s = known.joining.unheard_s()
    assert unheard_s is not None
    assert 5.0 <= unheard_s < 10.0


def test_without_the_coordinator_nobody_counts_as_silent(known: Known) -> None:
    known.says(900.0)
    known.touch_s = None
    assert known.joining.heard(time.monotonic() - 10) is None
    assert known.joining.unheard_s() is None


def test_after_an_outage_a_worker_has_time_to_come_back(known: Known) -> None:
    known.says(900.0)
    start_s = time.monotonic() - 500.0
    known.touch_s = time.monotonic() - 1.0
    assert known.joining.heard(start_s) is None
    assert known.joining.unheard_s() == pytest.approx(1.0, abs=1.0)
    known.touch_s = time.monotonic() - FINDS_BACK_S
    assert known.joining.heard(start_s) is False


def test_a_worker_never_seen_is_silent_for_as_long_as_the_coordinator_is_there(
    known: Known,
) -> None:
    known.says(None)
    assert known.joining.unheard_s() == pytest.approx(1000.0, abs=5.0)


def test_a_replaced_agent_is_told_nothing_about_its_worker(known: Known) -> None:
    known.says(None, replaced=True)
    assert known.joining.heard(time.monotonic() - 10) is None
    assert known.joining.unheard_s() is None


def test_a_worker_that_was_heard_just_before_its_stop_needs_no_second_code(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Joining, "_fresh_code", lambda self: asked.append("code") or "code")
    boot = Action(Verb.START, "boot", Want.RUN)
    known.joining.prepare(boot, VmState.OFF)
    known.joining.prepare(boot, VmState.OFF)
    assert len(asked) == 2  # not heard yet
    known.says(0.0)
    known.joining.prepare(boot, VmState.OFF)
    assert len(asked) == 2
