"""What the guest does beside the clock: whom it asks for the time, and what an absence sets off."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from guest_kit import PROFILE, GuestFiles

from officegrid.core.identity import Choice, Decision
from officegrid.guest import servertime, timekeeping, upkeep
from officegrid.guest.persona import Persona
from officegrid.guest.settings import Settings
from officegrid.guest.timekeeping import Timekeeper
from officegrid.guest.upkeep import ASK_TIME_AGAIN_S, ASK_TIME_EVERY_S, Upkeep

URL = "https://10.0.2.2:8443"


@pytest.fixture
def guest(tmp_path: Path) -> GuestFiles:
    made = GuestFiles(tmp_path)
    (tmp_path / "run/officegrid").mkdir()
    return made


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """By how much the wall clock would have been moved; it is this computer's, and stays."""
    made: list[float] = []
    monkeypatch.setattr(
        timekeeping.time, "clock_settime", lambda _clock, at_s: made.append(at_s - time.time())
    )
    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs that would have been run."""
    made: list[str] = []
    monkeypatch.setattr(upkeep.programs, "run", lambda *argv, **_: made.append(" ".join(argv)))
    monkeypatch.setattr(upkeep.programs, "has", lambda program: program == "chronyc")
    return made


def upkeep_of(guest: GuestFiles, url: str = URL) -> Upkeep:
    who = Persona(Decision(Choice.KEEP, ""), "abc", url)
    return Upkeep(guest.place, Settings(), who, Timekeeper(guest.place), late=False)


def test_the_time_is_asked_of_the_one_the_seed_disk_named(
    guest: GuestFiles, steps: list[float], ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def tells(url: str, ca_pem: str, _proxy: str = "") -> float:
        asked.append((url, ca_pem))
        return time.time()

    monkeypatch.setattr(servertime, "coordinator_time_s", tells)
    assert upkeep_of(guest)._ask_time() == ASK_TIME_EVERY_S
    assert asked == [], "it has not joined"
    guest.put("var/lib/officegrid/profile.json", json.dumps(PROFILE))
    upkeep_of(guest, "")._ask_time()
    assert asked == [], "the profile alone is not believed"
    upkeep_of(guest)._ask_time()
    upkeep_of(guest, "https://10.0.2.2/")._ask_time()
    assert asked == [(URL, "pem"), (URL, "pem")]
    assert (steps, ran) == ([], [])


def test_a_damaged_certificate_ends_nothing(guest: GuestFiles, ran: list[str]) -> None:
    guest.put("var/lib/officegrid/profile.json", json.dumps(PROFILE | {"ca_pem": "Zürich"}))
    assert upkeep_of(guest)._ask_time() == ASK_TIME_AGAIN_S


def test_an_absence_renews_the_lease(guest: GuestFiles, ran: list[str]) -> None:
    guest.put("run/systemd/netif/leases/2", "LIFETIME=3600\nNTP=10.77.0.1\n")
    keeper = upkeep_of(guest)
    keeper._round()
    assert ran == ["systemctl start --no-block chrony.service"]
    keeper._after_absence(60)
    keeper._after_absence(7200)
    assert ran[1:] == ["networkctl renew 2", "networkctl reconfigure 2"]


def test_two_absences_that_nobody_has_seen_to_add_up(guest: GuestFiles, ran: list[str]) -> None:
    keeper = upkeep_of(guest)
    keeper.was_away(1000)
    keeper.was_away(900)
    assert keeper._away_s == 1900


def test_each_round_is_told_to_the_watchdog(
    guest: GuestFiles, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(upkeep, "uptime_s", lambda: now_s)
    keeper = upkeep_of(guest)
    assert keeper.moved_s == 1000
    now_s = 1100.0
    keeper._round()
    assert keeper.moved_s == 1100


def test_a_clock_that_runs_slow_is_put_right_without_ado(
    guest: GuestFiles, steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(timekeeping, "drop_connections", lambda: dropped.append("all"))
    keeper = Timekeeper(guest.place)
    assert keeper.step_to(time.time() + 7200) == pytest.approx(7200, abs=1)
    assert dropped == ["all"]
    for late_s in (0.8, 1.6, 2.4):
        assert keeper.step_to(time.time() + late_s) == 0
    assert steps == [pytest.approx(7200, abs=1), pytest.approx(2.4, abs=0.5)]
    assert dropped == ["all"], "the worker's connections are alive"
    assert keeper.step_to(time.time() + 60) == pytest.approx(60, abs=1)
    assert len(dropped) == 2
