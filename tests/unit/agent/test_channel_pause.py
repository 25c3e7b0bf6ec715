"""Who may pause the grid on a PC, and who may end somebody's pause."""

from __future__ import annotations

import time
from typing import Any

import pytest

from officegrid.agent.channel.hub import REPORT_COUNTS_S, Hub, Peer, Present

ROOT = Peer("0", "", admin=True)
ANNA = Peer("1000", "3", admin=False)
BERT = Peer("1001", "5", admin=False)
SERVER = Peer("33", "", admin=False, pid=7)
"""A service's account: nobody ever sits there."""
LATER_S = time.time() + 3600


class Door:
    """A hub with the pause behind it, as the agent keeps it."""

    def __init__(self, *, file: bool = True) -> None:
        self.now_s = 0.0
        self.by: str | None = None
        self.calls: list[str] = []
        self.hub = Hub(
            clock=lambda: self.now_s, status=dict, pause=self._pause, unpause=self._unpause,
            alive=lambda pid: True, paused_by=(lambda: self.by) if file else None,
        )  # fmt: skip

    def _pause(self, until_s: float | None, peer: Peer) -> None:
        self.by = peer.user
        self.calls.append(f"pause {peer.user}")

    def _unpause(self, peer: Peer) -> None:
        self.by = None
        self.calls.append(f"unpause {peer.user}")

    def pause(self, peer: Peer, until_s: float | None = None) -> dict[str, Any]:
        return self.hub.handle(peer, {"do": "pause", "until_s": until_s})

    def unpause(self, peer: Peer) -> dict[str, Any]:
        return self.hub.handle(peer, {"do": "unpause"})

    def report(self, peer: Peer) -> None:
        reading = {"idle_s": 1.0, "presenting": False}
        assert self.hub.handle(peer, {"do": "session", "session": reading})["ok"] is True


@pytest.fixture(params=["file", "memory"])
def door(request: pytest.FixtureRequest) -> Door:
    return Door(file=request.param == "file")


def test_a_service_account_neither_pauses_nor_ends_a_pause(door: Door) -> None:
    door.hub.know_present(Present(users=frozenset({"1000"})))
    for answer in (door.pause(SERVER), door.unpause(SERVER)):
        assert answer["ok"] is False
        assert all(answer["error"][key].endswith(".") for key in ("what", "why", "fix"))
    assert door.pause(ANNA)["ok"] is True
    assert door.unpause(SERVER)["ok"] is False
    assert door.calls == ["pause 1000"]


def test_who_paused_an_admin_and_who_is_logged_on_end_a_pause(door: Door) -> None:
    door.hub.know_present(Present(users=frozenset({"1000", "1001"})))
    for other in (ANNA, BERT, ROOT):
        assert door.pause(ANNA)["ok"] is True
        assert door.unpause(other)["ok"] is True
    assert door.pause(ANNA)["ok"] is True
    door.hub.know_present(Present())  # anna has logged off
    assert door.unpause(BERT)["ok"] is False
    assert door.unpause(ANNA)["ok"] is True


def test_on_windows_the_session_says_who_is_logged_on(door: Door) -> None:
    door.hub.know_present(Present(sessions=frozenset({"3"})))
    service = Peer("S-1-5-80-1", "0", admin=False)
    assert [door.pause(peer)["ok"] for peer in (ANNA, BERT, service)] == [True, False, False]
    assert [door.unpause(peer)["ok"] for peer in (service, BERT, ANNA)] == [False, False, True]


def test_a_pause_in_place_of_anothers_ends_it(door: Door) -> None:
    door.hub.know_present(Present(users=frozenset({"1000"})))
    assert door.pause(ANNA)["ok"] is True
    door.report(SERVER)  # any program may report, and so pause while nobody else does
    for until_s in (0.0, 1.0, LATER_S, None):
        assert "Somebody else" in door.pause(SERVER, until_s)["error"]["what"]
    assert door.unpause(SERVER)["ok"] is False
    assert door.unpause(ANNA)["ok"] is True
    assert door.pause(SERVER, LATER_S)["ok"] is True
    assert door.pause(ANNA, LATER_S)["ok"] is True


def test_without_a_list_only_who_paused_and_admins_end_a_pause(door: Door) -> None:
    door.report(SERVER)
    assert door.pause(ANNA, LATER_S)["ok"] is True  # by the session that the system gave it
    for stranger in (SERVER, BERT):
        assert door.unpause(stranger)["ok"] is False
    assert door.unpause(ANNA)["ok"] is True
    assert door.unpause(ROOT)["ok"] is True
    assert door.pause(SERVER, LATER_S)["ok"] is True  # by its helper
    assert door.unpause(SERVER)["ok"] is True
    door.now_s += REPORT_COUNTS_S + 1  # which has gone
    assert door.pause(SERVER, LATER_S)["ok"] is False


def test_an_agent_that_has_restarted_asks_the_file_who_paused() -> None:
    door = Door()
    door.by = "1000"
    assert door.unpause(BERT)["ok"] is False
    assert door.unpause(ANNA)["ok"] is True
    door.by = ""  # somebody, but it cannot be read who
    assert [door.unpause(peer)["ok"] for peer in (ANNA, ROOT)] == [False, True]


def test_a_pause_that_is_over_is_nobodys() -> None:
    door = Door(file=False)
    assert door.pause(ROOT, time.time() - 1)["ok"] is True
    assert door.pause(ANNA, LATER_S)["ok"] is True
