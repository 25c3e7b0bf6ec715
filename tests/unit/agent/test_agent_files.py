"""What the agent keeps on disk: the user's pause, the last orders, the guest's seed, status."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.files import Folders, read_json, write_json, write_private
from officegrid.agent.joining import Joining
from officegrid.agent.journal import Journal
from officegrid.agent.orders import KeptOrders
from officegrid.agent.registry import AUTO, MODULES, choose
from officegrid.agent.seed import Guest, Seed, write_seed
from officegrid.agent.userpause import UserPause
from officegrid.core.errors import UnavailableError
from officegrid.core.vm import HealthLevel, RepairStep, VmState
from officegrid.core.vmlife import Action, Verb, Want
from officegrid.transport.profile import Profile
from officegrid.wire.agent import AgentOrders, DeskRules, WorkerCodeReply
from unit.agent.desk_kit import Told

NOT_POSIX = sys.platform == "win32"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the user's pause


def test_a_pause_outlives_the_agent_and_ends_when_it_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "pause.json"
    until_s = time.time() + 3600
    UserPause(path).set(until_s, "anna")
    again = UserPause(path)
    assert again.until_s() == until_s
    UserPause(path).set(None, "anna")
    assert again.until_s() == math.inf
    UserPause(path).clear()
    assert again.until_s() is None
    UserPause(path).clear()


def test_a_pause_that_cannot_be_understood_lasts_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "pause.json"
    path.write_text("{ not json")
    assert UserPause(path).until_s() == math.inf


def test_a_pause_into_the_past_ends_one(tmp_path: Path) -> None:
    pause = UserPause(tmp_path / "pause.json")
    pause.set(None, "anna")
    pause.set(time.time() - 1, "anna")
    assert pause.until_s() is None


def test_a_pause_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("a file in the way")
    with pytest.raises(UnavailableError) as caught:
        UserPause(tmp_path / "agent" / "pause.json").set(None, "anna")
    assert caught.value.fix


# --- the last orders


def test_rules_are_kept_for_a_life_without_coordinator(tmp_path: Path) -> None:
    path = tmp_path / "orders.json"
    orders = KeptOrders(path)
    assert orders.received_s is None
    told = AgentOrders(rules=DeskRules(idle_s=900, never=True), drain=True, worker_joined=True)
    assert orders.take(told)
    assert not orders.take(told)
    assert orders.received_s is not None
    again = KeptOrders(path)
    assert again.latest.rules == told.rules
    assert again.latest.drain
    assert again.received_s is None
    if not NOT_POSIX:
        assert mode(path) == 0o600


def test_damaged_orders_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "orders.json"
    path.write_text('{"rules": {"idle_s": -5}}')
    assert KeptOrders(path).latest == AgentOrders()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(OSError, match="No such file"):
        write_private(tmp_path / "missing" / "a", b"x")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


# --- the guest's seed


def read_iso(path: Path, name: str, kind: str) -> bytes:
    disk: Any = pycdlib.PyCdlib()
    disk.open(str(path))
    try:
        found = io.BytesIO()
        disk.get_file_from_iso_fp(found, **{kind: f"/{name}"})
        return found.getvalue()
    finally:
        disk.close()


def test_the_seed_is_a_private_folder_and_a_disk_named_cidata(tmp_path: Path) -> None:
    folder, iso = tmp_path / "seed", tmp_path / "seed.iso"
    seed = Seed("officegrid-1", "Desk 17 vm", "https://grid:8443", "secret-code")
    write_seed(folder, iso, seed)
    if not NOT_POSIX:
        assert mode(folder) == 0o700
        assert mode(iso) == 0o600
        assert {mode(path) for path in folder.iterdir()} == {0o600}
    told = json.loads((folder / "officegrid.json").read_text())
    assert told == {
        "instance_id": "officegrid-1", "name": "Desk 17 vm", "url": "https://grid:8443",
        "code": "secret-code",
    }  # fmt: skip
    assert json.loads((folder / "meta-data").read_text()) == {
        "instance-id": "officegrid-1", "local-hostname": "desk-17-vm",
    }  # fmt: skip
    assert (folder / "user-data").read_text().startswith("#cloud-config\n")
    # Primary volume descriptor, ECMA-119 8.4: sector 16, volume identifier at byte 41.
    data = iso.read_bytes()
    assert data[16 * 2048 + 1 : 16 * 2048 + 6] == b"CD001"
    assert data[16 * 2048 + 40 : 16 * 2048 + 72].rstrip() == b"CIDATA"
    for name in ("meta-data", "user-data", "officegrid.json"):
        wanted = (folder / name).read_bytes()
        assert read_iso(iso, name, "rr_path") == wanted
        assert read_iso(iso, name, "joliet_path") == wanted


def test_a_seed_never_shows_its_code() -> None:
    assert "secret-code" not in repr(Seed("i", "n", "u", "secret-code"))


def test_a_seed_that_cannot_be_written_is_an_error_without_the_code(tmp_path: Path) -> None:
    (tmp_path / "seed").write_text("a file in the way")
    with pytest.raises(UnavailableError) as caught:
        write_seed(tmp_path / "seed", None, Seed("i", "n", "u", "secret-code"))
    assert "secret-code" not in str(caught.value)


class Line:
    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    def call(self, method: str, path: str, **_: object) -> WorkerCodeReply:
        assert (method, path) == ("POST", "/v1/machine/worker-code")
        if self.away:
            raise UnavailableError("The coordinator cannot be reached.")
        self.asked += 1
        return WorkerCodeReply(code=f"code-{self.asked}", expires_at=0.0)


PROFILE = Profile("https://grid:8443", "pem", "token", "m1", "agent", "desk1")
START = Action(Verb.START, "boot", Want.RUN)
IMPORT = Action(Verb.IMPORT_IMAGE, "none yet", Want.RUN)
REIMPORT = Action(Verb.REPAIR, "broken", Want.RUN, RepairStep.REIMPORT)


def seeded(folders: Folders) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folders.seed / "officegrid.json").read_text())
    return found


def test_a_guest_gets_a_fresh_code_until_it_has_joined_and_after_it_was_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, line = Folders(tmp_path), Line()
    folders.agent.mkdir()
    joining = Joining(
        folders, PROFILE, line, KeptOrders(folders.orders), vm_name="Grid",
        in_touch_since_s=lambda: 0.0,
    )  # fmt: skip
    joining.prepare(IMPORT, VmState.ABSENT)
    first_id = seeded(folders)["instance_id"]
    assert "code" not in seeded(folders)
    joining.prepare(START, VmState.OFF)
    assert seeded(folders)["code"] == "code-1"
    joining.prepare(START, VmState.SAVED)  # goes on from memory: nothing to tell it
    assert seeded(folders)["code"] == "code-1"
    joining.prepare(START, VmState.OFF)
    assert seeded(folders)["code"] == "code-2"
    joining.has_joined()
    again = Joining(
        folders, PROFILE, line, KeptOrders(folders.orders), vm_name="Grid",
        in_touch_since_s=lambda: 0.0,
    )  # fmt: skip
    again.prepare(START, VmState.OFF)
    assert seeded(folders) == {
        "instance_id": first_id, "name": "desk1-vm", "url": "https://grid:8443",
    }  # fmt: skip
    again.prepare(REIMPORT, VmState.OFF)
    assert seeded(folders)["instance_id"] != first_id
    again.prepare(START, VmState.OFF)
    assert seeded(folders)["code"] == "code-3"
    assert "code-" not in capsys.readouterr().err


def test_without_a_code_a_guest_that_must_join_is_not_booted(tmp_path: Path) -> None:
    folders, line = Folders(tmp_path), Line()
    line.away = True
    joining = Joining(
        folders, PROFILE, line, KeptOrders(folders.orders), vm_name="Grid",
        in_touch_since_s=lambda: 0.0,
    )  # fmt: skip
    with pytest.raises(UnavailableError):
        joining.prepare(START, VmState.OFF)


def test_whether_the_worker_was_heard_since_its_start(tmp_path: Path) -> None:
    orders = KeptOrders(tmp_path / "orders.json")
    joining = Joining(
        Folders(tmp_path), PROFILE, Line(), orders, vm_name="Grid", in_touch_since_s=lambda: 0.0
    )
    started_s = time.monotonic() - 10.0
    assert joining.heard(started_s) is None
    orders.take(AgentOrders(worker_joined=True, worker_seen_ago_s=500.0))
    assert joining.heard(started_s) is False
    assert joining.heard(time.monotonic() + 1) is None
    orders.take(AgentOrders(worker_joined=True, worker_seen_ago_s=2.0))
    assert joining.heard(started_s) is True


def test_what_is_known_of_the_guest_survives_damage(tmp_path: Path) -> None:
    path = tmp_path / "guest.json"
    path.write_text('{"instance_id": 7, "joined": "yes"}')
    guest = Guest(path, "m1", "uuid")
    guest.adopt()
    assert not guest.is_anothers
    assert guest.instance_id.startswith("officegrid-")
    assert not guest.joined


# --- which driver


def test_auto_never_picks_a_worker_without_a_vm() -> None:
    assert "process" not in AUTO
    assert set(AUTO) < set(MODULES)


def test_auto_takes_the_first_usable_and_says_why_not_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
from officegrid.core.vm import Health, HealthLevel
class Driver:
    name = {name!r}
    def __init__(self, settings): self.settings = settings
    def detect(self): return Health(HealthLevel({level!r}), "{name} is {level}.")
def make(settings): return Driver(settings)
"""
    for name, level in {"hyperv": "unusable", "qemu": "degraded", "libvirt": "good"}.items():
        (tmp_path / f"made_{name}.py").write_text(script.format(name=name, level=level))
        monkeypatch.setitem(MODULES, name, f"made_{name}")
    monkeypatch.setitem(MODULES, "virtualbox", "officegrid.agent.drivers.no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    settings = VmSettings("GridMachine", tmp_path)
    choice = choose("auto", settings)
    assert choice.driver.name == "qemu"
    assert choice.usable
    assert [why.partition(":")[0] for why in choice.refused] == ["virtualbox", "hyperv"]
    assert "hyperv is unusable." in choice.refused[1]
    named = choose("hyperv", settings)
    assert (named.driver.name, named.usable) == ("hyperv", False)
    nothing = choose("virtualbox", settings)
    assert nothing.driver.name == "none"
    assert nothing.health.level is HealthLevel.UNUSABLE
    assert "no_such_module" in nothing.health.sentence
    assert nothing.driver.state().state is VmState.ABSENT


# --- the journal


def test_hours_are_counted_per_day_and_survive_a_restart() -> None:
    now, day, told = [100.0], ["2026-01-01"], Told()
    journal = Journal(told, clock=lambda: now[0], day=lambda: day[0])
    journal.running("boot", 100.0)
    now[0] = 160.0
    assert journal.today()["ran_s"] == 60.0
    journal.paused(160.0, 80.0)
    journal.running("resume", 170.0)
    now[0] = 200.0
    journal.gone("saved", 200.0, memory_back_ms=900.0)
    assert told.last("saved")["ran_s"] == 90.0
    again = Journal(told, clock=lambda: now[0], day=lambda: day[0], today=journal.today())
    assert again.today()["ran_s"] == 90.0
    assert again.today()["memory_back_ms_worst"] == 900.0
    day[0] = "2026-01-02"
    assert again.today()["ran_s"] == 0.0


def test_the_same_trouble_is_told_once_in_ten_minutes() -> None:
    now, told = [0.0], Told()
    journal = Journal(told, clock=lambda: now[0])
    for at_s in (0.0, 5.0, 599.0, 601.0):
        now[0] = at_s
        journal.trouble("It is not installed.", once=True)
    assert told.kinds() == ["trouble", "trouble"]


def test_a_pause_remembers_who_wanted_it_for_the_next_agent(tmp_path: Path) -> None:
    path = tmp_path / "pause.json"
    assert UserPause(path).by() is None
    UserPause(path).set(time.time() + 60, "1000")
    assert UserPause(path).by() == "1000"
    path.write_text("damaged")
    assert UserPause(path).by() == ""
    path.write_text(json.dumps({"until_s": 1.0, "by": "1000"}))
    assert UserPause(path).by() is None
