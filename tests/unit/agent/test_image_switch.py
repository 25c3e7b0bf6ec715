"""The VM is made anew from what was ordered, comes back where that does not work, and no crash of
the agent in between leaves a PC that cannot go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from officegrid.agent.config import AgentConfig, ImagesConfig, VmConfig
from officegrid.agent.files import Folders
from officegrid.agent.images import hygiene as hygiene_module
from officegrid.agent.images import switch as switch_module
from officegrid.agent.images.fetch import CHUNK_BYTES
from officegrid.agent.images.store import GB, Store
from officegrid.agent.images.switch import NO_IMAGE, Images
from officegrid.agent.operator import Finished
from officegrid.core.errors import UnavailableError
from officegrid.core.imageevents import Held, Order
from officegrid.core.vm import Capabilities, DriverError, RepairStep, Trouble, VmState, VmStatus
from officegrid.core.vmlife import Action, Verb, Want
from officegrid.wire.images import ImageOrder
from unit.agent.desk_kit import Desk, quicken, wait_for
from unit.agent.image_kit import Shelf, line_to, open_shelf

S = VmState
SIZE = CHUNK_BYTES + 1000
STEPS = 2 * 9
"""To try a new image, give up on it and go back: nine durable steps, before and after each."""


class CrashError(BaseException):
    """The agent is killed here."""


class Hypervisor:
    """What of a driver matters here: it knows from which file its VM was made. It outlives the
    agent."""

    name = "qemu"

    def __init__(self) -> None:
        self.now = S.ABSENT
        self.made_from: Path | None = None
        self.refuses: set[str] = set()
        """Digests of files that it does not take."""
        self.fails: Exception | None = None
        self.format = "qcow2"
        self.made = 0

    def capabilities(self) -> Capabilities:
        return Capabilities(saves=True, imports=True, image_format=self.format)

    def state(self) -> VmStatus:
        return VmStatus(self.now)

    def delete(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.now, self.made_from = S.ABSENT, None

    def make(self, image: Path | None) -> None:
        if image is None or image.name.partition(".")[0] in self.refuses:
            raise DriverError(Trouble.IMAGE, f"The image {image} cannot be used.", "It is none.")
        self.now, self.made_from, self.made = S.OFF, image, self.made + 1


class Pc:
    """An agent as far as images go: its main thread's turns and its operator's verbs, by hand."""

    def __init__(self, folder: Path, shelf: Shelf, config: AgentConfig | None = None) -> None:
        self.folder, self.shelf = folder, shelf
        self.config = config or AgentConfig()
        self.vm = Hypervisor()
        self.told: list[str] = []
        self.crash_in = -1
        """So many durable steps from now the agent is killed; negative: it is not."""
        self.crash_after = False
        self.boot()

    def boot(self) -> None:
        """A new life of the agent."""
        line, pace = line_to(self.shelf)
        self.images = Images(
            Folders(self.folder), line, pace, tell=self._tell, hurry=lambda: None
        )  # fmt: skip
        keep = self.images.store.save

        def save(life: Any) -> None:
            self._may_crash()
            keep(life)
            self._may_crash()

        self.images.store.save = save  # type: ignore[method-assign]
        self.use()
        self.images.start()

    def use(self) -> None:
        driver: Any = self.vm
        self.images.use(self.config, driver, lambda: self.vm.now)

    def _tell(self, text: str, *, once: bool = False) -> None:
        self.told.append(text)

    def _may_crash(self) -> None:
        self.crash_in -= 1
        if self.crash_in == -1:
            raise CrashError

    def kill(self) -> None:
        self.images.close()
        # A process that was killed sweeps no more: its threads must not go on beside the next life.
        for thread in threading.enumerate():
            if thread.name in ("sweep", "sweep-files", "heard", "check"):
                thread.join(20)
        self.crash_in = -1

    # --- what happens

    def order(self, order: Order, *, retry: bool = False) -> None:
        self.images.obey(
            ImageOrder(id=order.id, version=order.version, name=order.name, retry=retry)
        )

    def wait_ready(self) -> None:
        wait_for(lambda: self.images.life.candidate is not None, "a candidate is ready")

    def turn(self) -> None:
        """The main thread, once."""
        if self.images.due(up=self.vm.now is S.RUNNING) and self.images.choose():
            driver: Any = self.vm
            self.images.make_anew(driver, self.images.path())
            self.use()

    def start(self) -> None:
        """The loop while nobody is here, until the VM runs, is held back, or does not work."""
        if self.vm.now is S.ABSENT and not self.images.hold():
            self._do(Verb.IMPORT_IMAGE, lambda: self.vm.make(self.images.path()))
        if self.vm.now in (S.OFF, S.SAVED) and not self.images.hold():
            self._do(Verb.START, lambda: setattr(self.vm, "now", S.RUNNING))

    def run(self) -> None:
        self.turn()
        self.start()

    def hear(self) -> None:
        """The coordinator has heard the worker on trial."""
        self.images.heard()
        wait_for(lambda: self.images.life.trial is None, "that it was heard is kept")

    def leave(self) -> None:
        """Somebody came back: the VM is saved."""
        self.vm.now = S.SAVED

    def boot_in_vain(self, reason: str = "The worker has not reported in.") -> None:
        self.run()
        self.vm.now = S.OFF
        self._do(Verb.REPAIR, lambda: None, RepairStep.RETRY, reason)

    def _do(
        self, verb: Verb, work: Callable[[], object], step: RepairStep | None = None,
        reason: str = "",
    ) -> None:  # fmt: skip
        action, error = Action(verb, reason, Want.RUN, step), None
        self.images.prepared(action, self.vm.now)
        try:
            work()
        except DriverError as found:
            error = found.trouble, str(found)
        self.images.ended(Finished(action, 0.0, 1.0, error))

    def adopt(self, order: Order, held: Held) -> None:
        """Ordered, fetched, tried, heard."""
        self.order(order)
        self.wait_ready()
        self.run()
        assert self.vm.made_from == self.images.store.path(held)
        self.hear()
        self.leave()

    def sound(self) -> bool:
        """The VM's image is there, or there is no VM."""
        return self.vm.made_from is None or self.vm.made_from.exists()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with open_shelf(tmp_path_factory.mktemp("pki")) as opened:
        yield opened


@pytest.fixture
def pc(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pc]:
    monkeypatch.setattr(hygiene_module, "OVERLAY_BYTES", 0)
    made = Pc(tmp_path, shelf)
    yield made
    made.kill()


def test_a_fresh_pc_says_what_it_waits_for(pc: Pc, shelf: Shelf) -> None:
    assert pc.images.hold() == NO_IMAGE
    assert "officegrid image push" in pc.images.waits()
    assert pc.images.report().state is None
    order, held = shelf.put(1, SIZE)
    shelf.away = True
    pc.order(order)
    wait_for(lambda: "is being fetched: 0 %" in pc.images.waits(), "it is fetched")
    assert pc.images.hold() == NO_IMAGE
    assert pc.images.report().state == "fetching"
    shelf.away = False
    pc.images.close()
    pc.boot()
    pc.wait_ready()
    report = pc.images.report()
    assert (report.state, report.image, report.running) == ("ready", order.id, None)
    pc.run()
    assert pc.vm.now is S.RUNNING
    report = pc.images.report()
    assert (report.state, report.running, report.format) == ("trial", order.id, "qcow2")
    pc.hear()
    assert pc.images.report().state == "good"
    assert pc.images.waits() == ""
    assert pc.vm.made_from == pc.images.store.path(held)


def test_a_new_version_waits_for_a_free_vm_and_leaves_the_way_back(pc: Pc, shelf: Shelf) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    pc.run()
    order, held = shelf.put(2, SIZE)
    pc.order(order)
    pc.wait_ready()
    pc.run()
    assert pc.vm.now is S.RUNNING, "it is left alone while it runs"
    assert pc.vm.made_from != pc.images.store.path(held)
    pc.leave()
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(held)
    pc.hear()
    wait_for(lambda: len(list(pc.images.store.folder.iterdir())) == 2, "the way back is kept")
    pc.leave()
    pc.adopt(*shelf.put(3, SIZE))
    kept = {shelf.put(2, SIZE)[1].sha256, shelf.put(3, SIZE)[1].sha256}
    folder = pc.images.store.folder
    wait_for(lambda: {path.stem for path in folder.iterdir()} == kept, "the first one goes")


def test_a_pc_that_nobody_ever_uses_gives_its_vm_back_after_hours(
    pc: Pc, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    assert not pc.images.due(up=True)
    monkeypatch.setattr(switch_module, "SWITCH_WITHIN_S", 0.0)
    assert pc.images.due(up=True)


def test_a_broken_image_costs_two_boots(pc: Pc, shelf: Shelf) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    order, held = shelf.put(2, SIZE)
    pc.order(order)
    pc.wait_ready()
    pc.boot_in_vain()
    assert pc.images.report().state == "trial"
    # A repair that no boot has preceded says nothing about the image.
    pc._do(Verb.REPAIR, lambda: None, RepairStep.DISCARD, "The hypervisor did not answer.")
    assert pc.images.report().state == "trial"
    pc.boot_in_vain("It is silent.")
    report = pc.images.report()
    assert (report.state, report.text) == ("failed", "It is silent.")
    assert pc.images.hold(), "nothing starts until the VM is made anew"
    assert pc.sound()
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(good)
    assert pc.vm.now is S.RUNNING
    wait_for(lambda: not pc.images.store.holds(held), "its file goes")
    assert any("goes back to grid-1" in text for text in pc.told)
    # It is not fetched again, by any number of orders, but by one that asks for it.
    pc.order(good_order)
    pc.order(order)
    assert pc.images.life.to_fetch() is None
    pc.leave()
    pc.order(order, retry=True)
    pc.wait_ready()
    pc.run()
    pc.hear()
    assert pc.images.report().state == "good"


def test_a_saved_boot_is_not_counted_twice(pc: Pc, shelf: Shelf) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    for _ in range(5):  # somebody comes back in the middle of the boot, again and again
        pc.run()
        pc.leave()
    assert pc.images.life.boots_in_vain == 0
    assert pc.images.report().state == "trial"


def test_a_refused_image_goes_back_at_once(pc: Pc, shelf: Shelf) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    order, held = shelf.put(2, SIZE)
    pc.vm.refuses.add(held.sha256)
    pc.order(order)
    pc.wait_ready()
    pc.run()
    wait_for(lambda: pc.images.report().state == "failed", "its file was found to be whole")
    assert "cannot be used" in pc.images.report().text
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(good)
    assert pc.vm.now is S.RUNNING


def test_a_trial_whose_file_is_gone_is_fetched_again(pc: Pc, shelf: Shelf) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    order, held = shelf.put(2, SIZE)
    pc.order(order)
    pc.wait_ready()
    pc.turn()
    pc.images.store.path(held).unlink()  # by a virus scanner, say
    pc.vm.refuses.add(held.sha256)
    pc.start()
    pc.wait_ready()
    assert pc.images.life.failed == {}, "nobody may take the image for a bad one"
    pc.vm.refuses.clear()
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(held)


def test_a_broken_vm_is_deleted_and_the_way_back_taken(pc: Pc, shelf: Shelf) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    for _ in range(2):
        pc.run()
        pc.vm.now = S.BROKEN
        pc._do(Verb.REPAIR, lambda: None, RepairStep.RETRY, "It crashed.")
        if pc.images.report().state == "trial":
            pc.vm.now = S.OFF
    assert pc.images.report().state == "failed"
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(good)
    assert pc.vm.now is S.RUNNING


def test_a_vm_of_which_nothing_is_known_is_left_to_the_repairs_for_a_while(
    pc: Pc, shelf: Shelf
) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    pc.vm.now = S.UNKNOWN
    pc.turn()
    assert pc.vm.made_from is not None
    assert pc.images.life.remake
    assert not pc.images.due(up=False), "not at once again"
    assert pc.images.hold() == "", "the loop may repair it"
    for action in (
        Action(Verb.START, "", Want.RUN),
        Action(Verb.REPAIR, "", Want.RUN, RepairStep.REIMPORT),
    ):
        with pytest.raises(UnavailableError, match="made anew first"):
            pc.images.prepared(action, S.UNKNOWN)
    pc.vm.now = S.SAVED
    assert pc.images.hold()


def test_a_boot_that_takes_the_pc_down_is_counted(pc: Pc, shelf: Shelf) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    order, _ = shelf.put(2, SIZE)
    pc.order(order)
    pc.wait_ready()
    pc.run()
    # In order: the agent is stopped, and the PC shut down.
    pc.images.leaving()
    pc.vm.now = S.OFF
    pc.kill()
    pc.boot()
    assert pc.images.life.boots_in_vain == 0
    # The agent is killed, its VM lives on: what becomes of it is still to be seen.
    pc.run()
    pc.kill()
    pc.boot()
    assert pc.images.life.boots_in_vain == 0
    for _ in range(2):  # not in order
        assert pc.images.report().state == "trial"
        pc.run()
        pc.vm.now = S.OFF
        pc.kill()
        pc.boot()
    assert pc.images.report().state == "failed"
    assert "went down" in pc.images.report().text
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(good)


def test_an_image_taken_back_while_it_boots_does_not_run_for_ever(
    pc: Pc, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    order, _ = shelf.put(2, SIZE)
    pc.order(order)
    pc.wait_ready()
    pc.run()
    pc.order(good_order)
    pc.images.heard()
    assert pc.vm.now is S.RUNNING
    assert pc.images.report().state == "ready", "what runs is another one"
    assert pc.images.report().running == order.id
    assert not pc.images.due(up=True)
    monkeypatch.setattr(switch_module, "LEAVE_WITHIN_S", 0.0)
    assert pc.images.due(up=True)
    pc.leave()
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(good)
    assert pc.images.report().state == "good"


def test_an_order_during_the_deletion_makes_the_vm_once_more(pc: Pc, shelf: Shelf) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    assert pc.images.choose()
    built_for = pc.images.path()
    pc.order(good_order)
    driver: Any = pc.vm
    assert pc.images.make_anew(driver, built_for)
    assert pc.images.due(up=False), "at once: nothing is in the way"
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(good)


@pytest.mark.parametrize("why", ["no hypervisor", "pinned"])
def test_who_can_use_no_image_just_now_keeps_what_has_come(pc: Pc, shelf: Shelf, why: str) -> None:
    order, held = shelf.put(1, SIZE)
    pc.order(order)
    pc.wait_ready()
    if why == "pinned":
        pc.config = AgentConfig(vm=VmConfig(image=Path("/opt/own.qcow2")))
    else:
        pc.vm.format = ""
    pc.use()
    pc.images.obey(None)  # what the coordinator answers to a PC without a format
    pc.config, pc.vm.format = AgentConfig(), "qcow2"
    pc.use()
    assert pc.images.life.candidate == held
    assert pc.images.store.holds(held)
    # From a PC that can, it counts.
    pc.images.obey(None)
    assert pc.images.life.candidate is None


@pytest.mark.parametrize("state", list(S))
def test_vms_are_swept_only_while_ours_is_surely_not_in_memory(pc: Pc, state: S) -> None:
    swept = threading.Event()

    def sweep(keep_name: str) -> list[str]:
        swept.set()
        return []

    pc.vm.sweep = sweep  # type: ignore[attr-defined]
    pc.vm.now = state
    pc.images.housekeep(1.0)
    if state in (S.ABSENT, S.OFF, S.SAVED):
        assert swept.wait(10.0)
    else:
        assert pc.images._hygiene._swept_s == float("-inf"), "it is still due"


def test_the_loop_waits_for_no_disk(pc: Pc, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    pc.order(shelf.put(1, SIZE)[0])
    pc.wait_ready()
    pc.run()
    by: set[str] = set()
    keep, sweep = pc.images.store.save, pc.images.store.sweep

    def save(life: Any) -> None:
        by.add(threading.current_thread().name)
        keep(life)

    def slow_sweep(kept: Any, *, parts: bool = True) -> list[str]:
        by.add(threading.current_thread().name)
        return sweep(kept, parts=parts)

    monkeypatch.setattr(pc.images.store, "save", save)
    monkeypatch.setattr(pc.images.store, "sweep", slow_sweep)
    pc.hear()
    wait_for(lambda: len(by) == 2, "it is kept, and swept")
    assert threading.current_thread().name not in by


def test_a_lost_record_protects_the_vm_until_it_is_made_anew(pc: Pc, shelf: Shelf) -> None:
    order, held = shelf.put(1, SIZE)
    pc.adopt(order, held)
    pc.kill()
    pc.images.store._record.write_text("{")
    pc.boot()
    new_order, new = shelf.put(2, SIZE)
    shelf.away = True
    pc.order(new_order)
    pc.images._hygiene.sweep_files()
    assert pc.sound(), "it may rest on any file"
    shelf.away = False
    pc.kill()
    pc.boot()
    pc.images._hygiene.sweep_files()
    assert pc.sound()
    pc.wait_ready()
    pc.run()
    assert pc.vm.made_from == pc.images.store.path(new)
    wait_for(lambda: not pc.images.store.holds(held), "now it is known that nothing needs it")


def test_a_good_image_whose_file_was_damaged_is_fetched_again(pc: Pc, shelf: Shelf) -> None:
    order, held = shelf.put(1, SIZE)
    pc.adopt(order, held)
    path = pc.images.store.path(held)
    path.chmod(0o600)
    path.write_bytes(b"\0" * SIZE)
    driver_error = DriverError(Trouble.IMAGE, "The image is not a disk.")

    def refuse() -> None:
        raise driver_error

    pc._do(Verb.START, refuse)
    pc.wait_ready()
    assert pc.images.store.is_whole(held)
    pc.run()
    assert pc.vm.now is S.RUNNING


def test_a_file_deleted_by_hand_is_missed_at_the_next_start(pc: Pc, shelf: Shelf) -> None:
    order, held = shelf.put(1, SIZE)
    pc.adopt(order, held)
    pc.kill()
    pc.images.store.path(held).unlink()
    pc.boot()
    pc.wait_ready()
    pc.run()
    assert pc.sound()
    assert pc.vm.now is S.RUNNING


@pytest.mark.parametrize("crash_in", range(STEPS + 1))
def test_a_crash_at_any_moment_of_a_switch_and_of_the_way_back(
    pc: Pc, shelf: Shelf, crash_in: int
) -> None:
    good_order, good = shelf.put(1, SIZE)
    pc.adopt(good_order, good)
    order, _ = shelf.put(2, SIZE)
    pc.order(order)
    pc.wait_ready()
    pc.crash_in, crashed = crash_in, False

    def survive(what: Callable[[], None]) -> None:
        nonlocal crashed
        try:
            what()
        except CrashError:
            crashed = True
            pc.kill()
            if pc.vm.now is S.RUNNING:
                pc.leave()
            pc.boot()
        assert pc.sound(), "the VM has lost its image"

    for _ in range(4):
        survive(pc.boot_in_vain)
    assert crashed == (crash_in < STEPS), "this many durable steps there are"
    for _ in range(2):
        survive(pc.run)
    assert pc.images.report().state == "failed"
    assert pc.vm.made_from == pc.images.store.path(good)
    assert pc.vm.now is S.RUNNING


@pytest.mark.parametrize(
    "error",
    [
        DriverError(Trouble.PERMISSION, "The VM cannot be deleted.", "Not allowed."),
        OSError(30, "Read-only: it cannot be deleted."),  # a driver's own fault
    ],
)
def test_a_vm_that_cannot_be_deleted_is_told_and_not_started(
    pc: Pc, shelf: Shelf, error: Exception
) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    pc.vm.fails = error
    pc.run()
    assert pc.vm.now is S.SAVED
    assert any("cannot be deleted" in text for text in pc.told)
    assert not pc.images.due(up=False), "not at once again"


def test_what_cannot_be_kept_has_no_effect(
    pc: Pc, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switch_module, "AGAIN_S", 0.0)
    pc.adopt(*shelf.put(1, SIZE))
    pc.order(shelf.put(2, SIZE)[0])
    pc.wait_ready()
    before = pc.images.life

    def full(life: object) -> None:
        raise UnavailableError("The agent cannot keep what it knows about images.", "Full.")

    keep = pc.images.store.save
    pc.images.store.save = full  # type: ignore[method-assign]
    pc.turn()
    assert pc.images.life == before
    assert pc.vm.now is S.SAVED
    pc.images.store.save = keep  # type: ignore[method-assign]
    pc.turn()
    assert pc.vm.now is S.ABSENT
    pc.images.store.save = full  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        pc.images.prepared(Action(Verb.IMPORT_IMAGE, "", Want.RUN), S.ABSENT)


def test_a_vm_above_its_quota_is_made_anew_when_it_is_free(pc: Pc, shelf: Shelf) -> None:
    pc.config = AgentConfig(vm=VmConfig(disk_quota_gb=1))
    pc.use()
    pc.adopt(*shelf.put(1, SIZE))
    vm_folder = Folders(pc.folder).vm
    vm_folder.mkdir(parents=True)
    sizes = [2.5 * GB]
    pc.vm.disk_bytes = lambda: sizes[0]  # type: ignore[attr-defined]
    pc.run()
    pc.images.housekeep(1000.0)
    assert not pc.images.life.remake, "not while it runs"
    pc.leave()
    pc.images.housekeep(2000.0)
    assert any("2.5 GB" in text and "1 GB" in text for text in pc.told)
    made = pc.vm.made
    pc.run()
    assert pc.vm.made == made + 1
    assert pc.images.life.made_of is not None
    assert pc.images.report().state == "good"


def test_an_image_of_the_admins_own_is_left_in_charge(pc: Pc, shelf: Shelf) -> None:
    pc.config = AgentConfig(vm=VmConfig(image=Path("/opt/own.qcow2")))
    pc.use()
    pc.order(shelf.put(1, SIZE)[0])
    assert pc.images.hold() == ""
    assert pc.images.waits() == ""
    report = pc.images.report()
    assert (report.pinned, report.state) == (True, None)
    assert not pc.images.due(up=False)
    pc._do(Verb.IMPORT_IMAGE, lambda: pc.vm.make(pc.config.vm.image))
    # And when it is given up again, its VM goes once there is another.
    pc.config = AgentConfig()
    pc.use()
    pc.wait_ready()
    pc.run()
    assert pc.vm.made_from == pc.images.path()


def test_another_hypervisor_gets_files_of_its_own(pc: Pc, shelf: Shelf) -> None:
    pc.adopt(*shelf.put(1, SIZE))
    pc.vm.format = "ova"
    pc.use()
    assert pc.images.path() is None
    wait_for(lambda: pc.images.report().state == "failed", "there is no such file")
    assert "takes ova" in pc.images.report().text


def test_a_driver_without_images_is_none_of_our_business(pc: Pc, shelf: Shelf) -> None:
    pc.vm.format = ""
    pc.use()
    pc.order(shelf.put(1, SIZE)[0])
    assert pc.images.hold() == ""
    assert pc.images.report().format == ""
    assert not pc.images.store.folder.exists()


def test_the_orders_survive_a_restart(pc: Pc, shelf: Shelf) -> None:
    order, held = shelf.put(1, SIZE)
    shelf.away = True
    pc.order(order)
    pc.kill()
    shelf.away = False
    pc.boot()  # and the coordinator has not said anything yet
    pc.wait_ready()
    assert pc.images.life.candidate == held
    assert Store(pc.images.store.folder, Folders(pc.folder).images_record).load().ordered == order


def test_what_has_come_survives_a_restart_and_its_sweep(pc: Pc, shelf: Shelf) -> None:
    old_order, old = shelf.put(1, SIZE)
    pc.adopt(old_order, old)
    order, held = shelf.put(2, SIZE)
    shelf.away = True
    pc.order(order)
    pc.kill()
    part = pc.images.store.part(held.sha256)
    part.write_bytes(shelf.files[order.id][:CHUNK_BYTES])
    stray = pc.images.store.part("a" * 64)
    stray.write_bytes(b"of an image that nobody wants")
    pc.boot()
    wait_for(lambda: pc.images.waits() or pc.images.report().text, "it tries to go on")
    pc.images.housekeep(1.0)
    wait_for(lambda: pc.images._hygiene._swept_s == 1.0, "the sweep of the day")
    shelf.asked.clear()
    shelf.away = False
    pc.kill()
    pc.boot()
    pc.wait_ready()
    assert shelf.asked == shelf.specs[order.id].files["qcow2"].chunks[1:]
    wait_for(lambda: not stray.exists(), "what belongs to nothing is swept")
    assert pc.images.store.holds(old)


def test_who_waits_for_an_image_is_not_in_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken(monkeypatch)
    waits = threading.Event()
    desk = Desk(tmp_path, waits=lambda: "" if waits.is_set() else NO_IMAGE)
    try:
        desk.wait_told("idle")
        wait_for(lambda: desk.watch.loop.view().trouble == NO_IMAGE, "it says what it waits for")
        assert desk.verbs() == []
        assert "trouble" not in desk.told.kinds()
        waits.set()
        desk.wait_state(S.RUNNING)
    finally:
        desk.close()


def test_the_rate_while_the_pc_is_in_use_is_never_the_higher_one() -> None:
    rates = ImagesConfig(rate_mb_s=2.0, rate_in_use_mb_s=5.0)
    assert rates.rate_now_mb_s(in_use=True) == 2.0
    assert ImagesConfig().rate_now_mb_s(in_use=True) == 1.0
    assert ImagesConfig().rate_now_mb_s(in_use=False) == 10.0
