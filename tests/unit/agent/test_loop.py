"""The agent's loop with its real threads over the shipped fake driver."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent import loop as loop_module
from officegrid.agent.parts import Ending
from officegrid.agent.sampler import Wishes
from officegrid.core.desk import Decision, Rule
from officegrid.core.errors import UnavailableError
from officegrid.core.vm import (
    Capabilities,
    Health,
    HealthLevel,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)
from officegrid.core.vmlife import Action, Limits, Verb
from officegrid.testing.fake_driver import FakeDriver, FakeTimes
from officegrid.testing.fake_plan import Plan
from unit.agent.desk_kit import QUICK, Desk, Person, quicken, wait_for

S = VmState
MakeDesk = Callable[..., Desk]


@pytest.fixture
def make_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDesk]:
    quicken(monkeypatch)
    made: list[Desk] = []

    def make(*arguments: Any, **options: Any) -> Desk:
        made.append(Desk(options.pop("folder", tmp_path), *arguments, **options))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


def running(desk: Desk) -> Desk:
    desk.wait_state(S.RUNNING)
    desk.wait_told("running")
    return desk


# --- the ordinary day


def test_away_imports_and_starts_input_pauses_and_saves_away_restores(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    boots = desk.driver.boots
    desk.person.types()
    desk.wait_state(S.SAVED)
    saved = desk.wait_told("saved")
    paused = desk.told.last("paused")
    assert 0 <= paused["cpu_back_ms"] < 1000
    assert paused["cpu_back_ms"] <= saved["memory_back_ms"] < 5000
    assert saved["cpu_back_ms"] is None  # told once
    assert saved["ran_s"] > 0
    assert desk.person.seen_s is not None
    assert abs(desk.told.last("user_back")["at_s"] - desk.person.seen_s) < 0.05
    desk.person.leaves()
    running(desk)
    assert desk.driver.boots == boots
    kinds = desk.told.kinds()
    assert kinds[:3] == ["idle", "starting", "running"]
    assert kinds[3:8] == ["user_back", "paused", "saved", "idle", "starting"]
    assert desk.verbs() == ["import_image", "start", "pause", "save", "start"]


def test_cpu_is_back_within_a_second_of_the_input(make_desk: MakeDesk) -> None:
    desk = make_desk(times=FakeTimes(pause_s=0.02, save_s=0.05))
    measured = []
    for _ in range(8):
        running(desk)
        desk.told.events.clear()
        desk.person.types()
        measured.append(desk.wait_told("paused")["cpu_back_ms"])
        desk.wait_told("saved")
        desk.told.events.clear()
        desk.person.leaves()
    assert max(measured) < 1000, measured
    assert statistics.median(measured) < 400, measured


def test_a_slow_state_does_not_delay_the_pause(make_desk: MakeDesk) -> None:
    class Slow(FakeDriver):
        slow = False

        def state(self) -> VmStatus:
            if self.slow:
                time.sleep(1.5)
            return super().state()

    desk = make_desk()
    settings = replace(desk.settings, folder=desk.settings.folder / "slow")
    settings.folder.mkdir()
    slow = make_desk(driver=Slow(settings))
    slow.wait_told("running")
    wait_for(lambda: slow.host.pids == (4711,), "the VM's processes are known")
    Slow.slow = True
    slow.watch.observer.ask()
    slow.person.types()
    assert slow.wait_told("paused")["cpu_back_ms"] < 1000


def test_the_vms_own_processes_are_told_to_the_sensor(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    wait_for(lambda: desk.host.pids == (4711,), "the VM's processes are known")
    desk.person.types()
    desk.wait_told("saved")
    wait_for(lambda: desk.host.pids == (), "no processes are ours any more")


def test_the_boot_of_our_own_vm_is_not_taken_for_foreign_work(make_desk: MakeDesk) -> None:
    desk = make_desk(times=FakeTimes(start_s=2.5))
    desk.wait_told("starting")
    desk.host.foreign_cpu = 0.9  # our own guest, which nobody can tell apart yet
    desk.wait_told("running")
    assert "user_back" not in desk.told.kinds()


def test_foreign_work_gives_the_pc_back(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    wait_for(lambda: desk.host.pids == (4711,), "the VM's processes are known")
    desk.host.foreign_cpu = 0.9
    desk.wait_told("saved")
    assert desk.watch.loop.view().verdict.rule is Rule.CPU
    assert desk.told.last("saved")["memory_back_ms"] >= 0


# --- the user comes back in the middle of something


def test_the_user_is_back_during_a_start(make_desk: MakeDesk) -> None:
    desk = make_desk(times=FakeTimes(start_s=60.0))
    desk.wait_told("starting")
    desk.wait_state(S.STARTING)
    desk.person.types()
    stopped = desk.wait_told("stopped", 5.0)
    assert "called off" in stopped["text"]
    assert stopped["memory_back_ms"] < 2000
    desk.wait_state(S.OFF)
    assert "trouble" not in desk.told.kinds()


def test_the_user_leaves_again_during_a_save(make_desk: MakeDesk) -> None:
    desk = running(make_desk(times=FakeTimes(save_s=1.0)))
    desk.person.types()
    desk.wait_state(S.SAVING)
    desk.person.leaves()
    desk.told.events.clear()
    desk.wait_told("saved")
    running(desk)
    assert desk.driver.boots == 1


def test_a_short_absence_resumes_without_a_save(make_desk: MakeDesk) -> None:
    desk = running(make_desk(policy=replace(QUICK, save_delay_s=60.0)))
    desk.person.types()
    desk.wait_state(S.PAUSED)
    desk.person.leaves()
    desk.wait_state(S.RUNNING)
    assert "save" not in desk.verbs()
    assert desk.verbs()[-2:] == ["pause", "resume"]


def test_a_sensor_that_hangs_means_busy(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "SAMPLE_TIMEOUT_S", 0.5)
    desk = running(make_desk())
    desk.person.hang.set()
    desk.wait_told("saved")
    assert desk.watch.loop.view().verdict.rule is Rule.SILENT


def test_a_sensor_that_cannot_tell_means_busy(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.person.silent = True
    desk.wait_told("saved")
    assert desk.watch.loop.view().verdict.rule is Rule.SILENT


def test_drain_and_pause_are_obeyed(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.wishes = Wishes(pause_until_s=time.time() + 3600)
    desk.wait_told("user_back")
    wait_for(lambda: desk.state in (S.SAVED, S.OFF), "the VM is gone")
    assert desk.watch.loop.view().verdict.rule is Rule.USER_PAUSE
    desk.wishes = Wishes()
    desk.told.events.clear()
    running(desk)
    desk.wishes = Wishes(drain=True)
    wait_for(lambda: desk.watch.loop.view().verdict.rule is Rule.DRAIN, "drain")
    wait_for(lambda: desk.state in (S.SAVED, S.OFF), "the VM is gone")


# --- bad weather


def test_only_a_persons_return_is_told_as_one(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.wishes = Wishes(drain=True)
    desk.wait_state(S.OFF)
    desk.wait_told("stopped")
    assert "paused" in desk.told.kinds()
    assert "user_back" not in desk.told.kinds()


def test_a_full_disk_stops_the_vm_so_that_its_memory_is_free(make_desk: MakeDesk) -> None:
    desk = running(make_desk(Plan().fail("save", Trouble.DISK_FULL)))
    desk.person.types()
    stopped = desk.wait_told("stopped")
    assert desk.state is S.OFF
    assert stopped["memory_back_ms"] < 5000
    assert "disk_full" in desk.told.texts()
    desk.person.leaves()
    wait_for(lambda: desk.watch.loop.view().verdict.decision is Decision.RUN, "nobody is here")
    wait_for(lambda: "next look" in desk.watch.loop.view().trouble, "it says when it looks again")
    assert desk.state is S.OFF


def test_a_damaged_saved_state_is_discarded_and_booted_cold(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.person.types()
    desk.wait_told("saved")
    desk.driver.corrupt_saved_state()
    desk.told.events.clear()
    desk.person.leaves()
    running(desk)
    assert desk.driver.boots == 2
    assert "saved_state" in desk.told.texts()
    assert desk.verbs()[-3:] == ["start", "discard", "start"]


def test_a_vm_that_is_killed_is_started_again(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.told.events.clear()
    desk.driver.power_cut()
    desk.watch.observer.ask()
    desk.wait_told("stopped")
    running(desk)
    assert desk.driver.boots == 2
    assert "ended by itself" in desk.told.texts()


def test_a_vm_that_is_deleted_by_hand_is_imported_anew(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.told.events.clear()
    desk.driver.delete_by_hand()
    desk.watch.observer.ask()
    running(desk)
    assert desk.verbs().count("import_image") == 2
    assert "deleted" in desk.told.texts()


def test_a_stop_that_only_the_helper_process_undoes(make_desk: MakeDesk) -> None:
    plan = Plan().fail("pause", Trouble.STUCK, times=9).fail("save", Trouble.STUCK, times=9)
    plan.fail("stop", Trouble.STUCK, times=9, leaves=S.STOPPING,
              cured_by=RepairStep.RESTART_SERVICE)  # fmt: skip
    desk = running(make_desk(plan))
    desk.person.types()
    wait_for(lambda: "repair:restart_service" in desk.verbs(), "the ladder is climbed", 30.0)
    wait_for(lambda: desk.state is S.OFF, "the memory is free")
    texts = desk.told.texts()
    assert "emergency_stop" in texts
    assert "restart_service" in texts


@pytest.mark.parametrize("lying", [("stop",), ("save", "stop"), ("pause", "save", "stop")])
def test_a_driver_that_only_says_it_worked_is_found_out(
    make_desk: MakeDesk, lying: tuple[str, ...]
) -> None:
    plan = Plan()
    for verb in lying:
        plan.no_effect(verb, times=99)
    if lying == ("stop",):
        plan.fail("save", Trouble.DISK_FULL, times=99)
    desk = running(make_desk(plan))
    desk.person.types()
    wait_for(lambda: desk.state is S.OFF, "the memory is free")
    assert "repair:emergency_stop" in desk.verbs()
    assert "had worked, but the VM is" in desk.told.texts()


def test_a_stop_of_the_agent_does_not_believe_a_liar_either(make_desk: MakeDesk) -> None:
    desk = running(make_desk(Plan().no_effect("save", times=99).no_effect("stop", times=99)))
    assert desk.watch.end(Ending.RELEASE, 10.0)
    assert desk.state is S.OFF


def test_a_save_that_never_ends_is_ended_by_force(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "MOST_SAVING_S", 0.3)
    desk = running(make_desk(Plan().hang("save")))
    desk.person.types()
    wait_for(lambda: desk.state is S.OFF, "the memory is free")
    assert desk.verbs().count("repair:emergency_stop") == 1
    assert "by force" in desk.told.texts()


def test_a_power_off_beside_a_save_that_never_ends(make_desk: MakeDesk) -> None:
    desk = running(make_desk(Plan().hang("save")))
    desk.person.types()
    wait_for(lambda: desk.state is S.SAVING, "the save is under way")
    assert not desk.watch.end(Ending.RELEASE, 0.3)
    assert desk.watch.power_off(5.0)
    assert desk.state is S.OFF


def test_a_pc_whose_identity_another_uses_starts_nothing(make_desk: MakeDesk) -> None:
    said = ["Another PC uses this PC's identity."]
    desk = make_desk(hold=lambda: said[0])
    assert desk.wait_told("trouble")["text"] == said[0]
    assert desk.watch.loop.view().trouble == said[0]
    assert desk.verbs() == []
    said[0] = ""
    running(desk)


def test_a_worker_that_died_is_restarted(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "Limits", partial(Limits, unheard_s=0.5))
    desk = make_desk(heard=lambda since_s: True, unheard_s=lambda: 5000.0)
    wait_for(lambda: desk.driver.boots >= 2, "a second boot", 20.0)
    assert "has not heard the worker" in desk.told.texts()


def test_the_coordinators_word_beats_the_guests_own(make_desk: MakeDesk) -> None:
    # The guest says that it is up, but its worker is dead.
    desk = make_desk(heard=lambda since_s: False, boot_deadline_s=0.5)
    wait_for(lambda: desk.driver.boots >= 2, "a second boot", 20.0)
    assert "has not reported in" in desk.told.texts()


def test_no_hypervisor_starts_nothing_and_says_so(make_desk: MakeDesk, tmp_path: Path) -> None:
    class Broken(FakeDriver):
        def detect(self) -> Health:
            return Health(HealthLevel.UNUSABLE, "It is not installed.", "Install it.")

    other = make_desk()
    desk = make_desk(driver=Broken(replace(other.settings, folder=tmp_path / "b")))
    desk.wait_told("trouble")
    assert desk.verbs() == []
    assert desk.watch.loop.view().trouble == "It is not installed. Install it."


@pytest.mark.parametrize("trouble", [Trouble.IMAGE, Trouble.NAME_TAKEN, Trouble.PERMISSION])
def test_what_only_a_person_can_mend_waits_with_a_sentence(
    make_desk: MakeDesk, trouble: Trouble
) -> None:
    desk = make_desk(Plan().fail("import_image", trouble, times=99))
    assert trouble in desk.wait_told("trouble")["text"]
    wait_for(lambda: "next look" in desk.watch.loop.view().trouble, "it rests")
    assert desk.verbs() == ["import_image"]


def test_what_the_guest_needs_is_made_before_it_boots_and_its_lack_puts_the_start_off(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "HELD_S", 0.3)
    asked: list[Verb] = []

    def prepare(action: Action) -> None:
        asked.append(action.verb)
        if action.verb is Verb.START and asked.count(Verb.START) < 3:
            raise UnavailableError("The coordinator is away.")

    desk = make_desk(prepare=prepare)
    assert desk.wait_told("trouble")["text"] == "The coordinator is away."
    running(desk)
    assert desk.verbs().count("start") == 1
    assert desk.told.kinds().count("trouble") == 1
    assert asked[0] is Verb.IMPORT_IMAGE
    assert desk.told.kinds().count("starting") == 1
    assert desk.told.kinds().index("starting") > desk.told.kinds().index("trouble")


def test_a_guest_that_never_reports_in_is_restarted(make_desk: MakeDesk) -> None:
    desk = make_desk(heard=lambda since_s: False, boot_deadline_s=0.5,
                     times=FakeTimes(ready_s=1e9))  # fmt: skip
    wait_for(lambda: desk.driver.boots >= 2, "a second boot", 20.0)
    assert "has not reported in" in desk.told.texts()


def test_a_guest_that_the_coordinator_hears_has_joined(make_desk: MakeDesk) -> None:
    desk = make_desk(heard=lambda since_s: True, boot_deadline_s=0.5)
    running(desk)
    assert desk.joined.wait(10)


def test_a_driver_that_makes_mistakes_is_trouble_not_the_end(make_desk: MakeDesk) -> None:
    class Faulty(FakeDriver):
        faults = 1

        def start(self, cancel: threading.Event) -> None:
            if self.faults:
                Faulty.faults -= 1
                raise KeyError("a bug")
            super().start(cancel)

    other = make_desk()
    folder = other.settings.folder / "f"
    folder.mkdir()
    desk = make_desk(driver=Faulty(replace(other.settings, folder=folder)))
    desk.wait_told("running", 30.0)
    assert "KeyError" in desk.told.texts()


def test_without_saving_the_vm_is_paused_then_stopped(make_desk: MakeDesk) -> None:
    can = Capabilities(saves=False, imports=True, repairs=frozenset(RepairStep))
    desk = running(make_desk(capabilities=can))
    desk.person.types()
    desk.wait_told("stopped")
    assert desk.verbs() == ["import_image", "start", "pause", "stop"]


# --- beginning and end


def test_a_second_life_finds_the_vm_running_and_leaves_it_so(
    make_desk: MakeDesk, tmp_path: Path
) -> None:
    policy = replace(QUICK, settle_s=60.0, cpu_idle_s=60.0)
    first = running(make_desk())
    assert first.watch.end(Ending.LEAVE, 5.0)
    first.watch.close()
    assert first.state is S.RUNNING
    progress = first.driver.progress()
    second = make_desk(policy=policy, driver=FakeDriver(first.settings), reads_in_vain=2)
    assert "found running" in second.wait_told("running")["text"]
    wait_for(lambda: second.watch.loop.view().verdict.decision is Decision.RUN, "it goes on")
    assert second.verbs() == []
    assert second.driver.boots == 1
    assert second.driver.progress() >= progress
    second.person.types()
    second.wait_told("saved")


def test_a_second_life_with_somebody_there_gives_the_pc_back(make_desk: MakeDesk) -> None:
    first = running(make_desk())
    first.watch.close()
    person = Person()
    person.types()
    second = make_desk(
        policy=replace(QUICK, idle_s=60.0), person=person, driver=FakeDriver(first.settings)
    )
    second.wait_state(S.SAVED)


def test_a_stop_saves_and_a_shutdown_powers_off_within_two_seconds(make_desk: MakeDesk) -> None:
    desk = running(make_desk(times=FakeTimes(save_s=0.3)))
    assert desk.watch.end(Ending.RELEASE, 10.0)
    assert desk.state is S.SAVED
    again = running(make_desk(driver=FakeDriver(desk.settings, times=FakeTimes(save_s=60.0))))
    began_s = time.monotonic()
    assert again.watch.end(Ending.SHUTDOWN, 2.0)
    assert time.monotonic() - began_s < 2.0
    assert again.state is S.OFF


def test_a_loop_that_keeps_failing_ends_and_the_vm_is_powered_off(
    make_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = running(make_desk())

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(loop_module, "decide", broken)
    wait_for(lambda: desk.watch.over, "the loop has ended")
    assert "ZeroDivisionError" in str(desk.watch.fault)
    desk.watch.power_off()
    assert desk.state is S.OFF


def test_today_counts_hours_and_visits(make_desk: MakeDesk) -> None:
    desk = running(make_desk())
    desk.person.types()
    desk.wait_told("saved")
    today = desk.journal.today()
    assert today["interruptions"] == 1
    assert today["saves"] == 1
    assert today["ran_s"] >= 0
    assert today["cpu_back_ms_worst"] > 0
