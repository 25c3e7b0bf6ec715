"""The VM follows its agent: a guest of another identity or computer joins again, no other does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent import host_id
from officegrid.agent.files import Folders
from officegrid.agent.joining import Joining
from officegrid.agent.orders import KeptOrders
from officegrid.core.errors import UnavailableError
from officegrid.core.vm import DriverError, Trouble, VmState
from officegrid.core.vmlife import Action, Memory, Verb, Want
from officegrid.transport.profile import Profile
from officegrid.wire.agent import WorkerCodeReply
from unit.agent.desk_kit import Desk, Person, quicken, wait_for

OLD = Profile("https://grid:8443", "", "token", "m1", "agent", "desk")
NEW = replace(OLD, machine_id="m2", token="token-2")
IMPORT = Action(Verb.IMPORT_IMAGE, "no VM", Want.RUN)
START = Action(Verb.START, "boot", Want.RUN)
S = VmState


class Coordinator:
    """Gives numbered codes, unless it is away."""

    def __init__(self) -> None:
        self.codes = 0
        self.away = False

    def call(self, method: str, path: str, **_: Any) -> WorkerCodeReply:
        assert (method, path) == ("POST", "/v1/machine/worker-code")
        if self.away:
            raise UnavailableError("away")
        self.codes += 1
        return WorkerCodeReply(code=f"code-{self.codes}", expires_at=0.0)


class Home:
    """The agent's files on one PC, and the agents that live there one after another."""

    def __init__(self, folder: Path) -> None:
        self.folders = Folders(folder)
        self.folders.agent.mkdir(parents=True)
        self.coordinator = Coordinator()

    def agent(self, profile: Profile = OLD, vm_name: str = "Grid") -> Joining:
        return Joining(
            self.folders, profile, self.coordinator, KeptOrders(self.folders.orders),
            vm_name=vm_name, in_touch_since_s=lambda: None,
        )  # fmt: skip

    def seed(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folders.seed / "officegrid.json").read_text())
        return told

    def guest(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(self.folders.guest.read_text())
        return kept


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a VM whose worker has joined for OLD."""
    made = Home(tmp_path / "home")
    agent = made.agent()
    agent.prepare(IMPORT, S.ABSENT)
    agent.prepare(START, S.OFF)
    agent.has_joined()
    return made


def other_pc(monkeypatch: pytest.MonkeyPatch, home: Home) -> Joining:
    monkeypatch.setattr(host_id, "system_id", lambda: "0123456789abcdef" * 2)
    return home.agent()


CHANGES: list[Callable[[pytest.MonkeyPatch, Home], Joining]] = [
    lambda _, home: home.agent(NEW),
    lambda _, home: home.agent(vm_name="Other"),
    other_pc,
]


@pytest.mark.parametrize("changed", CHANGES, ids=["joined anew", "vm renamed", "other pc"])
def test_a_guest_of_another_is_not_restored_and_joins_again_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, changed: Callable[..., Joining]
) -> None:
    before = home.seed()["instance_id"]
    agent = changed(monkeypatch, home)
    begins = agent.memory(None)
    assert begins is not None
    assert begins.must_stop
    with pytest.raises(DriverError) as refused:
        agent.prepare(START, S.SAVED)
    assert refused.value.trouble is Trouble.SAVED_STATE
    agent.prepare(START, S.OFF)
    told = home.seed()
    assert told["instance_id"] != before
    assert told["code"] == "code-2"
    agent.has_joined()

    # From now on it is ours.
    later = changed(monkeypatch, home)
    assert later.memory(None) is None
    later.prepare(START, S.SAVED)
    later.prepare(START, S.OFF)
    assert home.seed()["instance_id"] == told["instance_id"]
    assert home.coordinator.codes == 2


def test_an_ordinary_restart_or_upgrade_joins_nothing_again(home: Home) -> None:
    kept = home.guest()
    # As a release wrote it that did not keep whose the guest is.
    old_file = {"instance_id": kept["instance_id"], "joined": True}
    for content in (kept, old_file):
        home.folders.guest.write_text(json.dumps(content))
        agent, memory = home.agent(), Memory()
        assert agent.memory(memory) is memory
        agent.prepare(START, S.SAVED)
        agent.prepare(START, S.OFF)
        assert home.seed()["instance_id"] == kept["instance_id"]
        assert "code" not in home.seed()
        assert home.guest() == kept, "an old file adopts what is so today, at once"
    assert home.coordinator.codes == 1


def test_without_a_code_the_new_identity_is_not_forgotten(home: Home) -> None:
    home.coordinator.away = True
    with pytest.raises(UnavailableError):
        home.agent(NEW).prepare(START, S.OFF)
    home.coordinator.away = False
    home.agent(NEW).prepare(START, S.OFF)
    assert home.seed()["code"] == "code-2"
    assert home.seed()["instance_id"] == home.guest()["instance_id"]


def test_to_hear_a_worker_does_not_make_another_s_guest_ours(home: Home) -> None:
    home.folders.guest.write_text(json.dumps({**home.guest(), "joined": False}))
    home.agent(NEW).has_joined()
    assert home.guest()["joined"] is True
    assert home.agent(NEW).memory(None) is not None


# --- the same with the agent's loop and the shipped fake driver


class Life:
    """One life of an agent: its loop over the VM that the one before left."""

    def __init__(self, folder: Path, home: Home, profile: Profile, person: Person) -> None:
        joining = home.agent(profile)
        self.desk: Desk | None = None

        def prepare(action: Action) -> None:
            desk = wait_for(lambda: self.desk, "the desk is made")
            joining.prepare(action, desk.watch.loop.view().vm.state)

        self.desk = Desk(
            folder, prepare=prepare, person=person, memory=joining.memory(None),
            heard=lambda since_s: None,
        )  # fmt: skip


@pytest.fixture
def live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Profile], tuple[Desk, Person]]]:
    quicken(monkeypatch)
    home, made = Home(tmp_path / "home"), []

    def begin(profile: Profile) -> tuple[Desk, Person]:
        if made:
            made[-1].close()
        person = Person()
        desk = Life(tmp_path / "pc", home, profile, person).desk
        assert desk is not None
        made.append(desk)
        return desk, person

    yield begin
    for desk in made[-1:]:
        desk.close()


def test_the_saved_vm_of_the_old_identity_boots_cold(
    live: Callable[[Profile], tuple[Desk, Person]],
) -> None:
    desk, person = live(OLD)
    desk.wait_state(S.RUNNING)
    person.types()
    desk.wait_state(S.SAVED)
    desk, _ = live(OLD)
    desk.wait_state(S.RUNNING)
    assert desk.verbs() == ["start"], "its own saved state is gone on with"
    desk, person = live(OLD)
    person.types()
    desk.wait_state(S.SAVED)
    desk, _ = live(NEW)
    desk.wait_state(S.RUNNING)
    assert desk.verbs() == ["discard", "start"]


def test_the_running_vm_of_the_old_identity_is_stopped_and_boots_cold(
    live: Callable[[Profile], tuple[Desk, Person]],
) -> None:
    desk, _ = live(OLD)
    desk.wait_state(S.RUNNING)
    desk, _ = live(NEW)
    desk.wait_told("stopped")
    desk.wait_state(S.RUNNING)
    assert desk.verbs() == ["stop", "start"]
