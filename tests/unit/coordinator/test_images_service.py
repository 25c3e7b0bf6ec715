"""Images as the coordinator rolls them out, with a clock of the test's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from officegrid.coordinator.service import desks, images, imageviews, machines
from officegrid.coordinator.service.context import Grid
from officegrid.core.errors import ConflictError, InputError, NotFoundError
from officegrid.core.rollout import Action
from officegrid.storage.api import Image, Machine, Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.agent import AgentReport, DeskStatus
from officegrid.wire.images import (
    ImageFile,
    ImageList,
    ImageOrder,
    ImageReport,
    ImageSpec,
    ImageView,
    RolloutSettings,
)

T = TypeVar("T")
SOAK_S = 1800.0
STATUS = DeskStatus(decision="run", rule="away", sentence="Nobody is here.")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def spec(name: str, *formats: str) -> ImageSpec:
    files = {
        one: ImageFile(name=f"{name}.{one}", size=9, sha256=digest(name), chunks=[digest(name)])
        for one in formats or ("qcow2",)
    }
    return ImageSpec.model_validate({"name": name, "files": files})


class Office:
    """A grid with desktops, and what they say about images."""

    def __init__(self, storage: SqliteStorage) -> None:
        self.storage = storage
        self.now = 1000.0
        self._ids = 0
        self.grid = Grid(new_id=self._new_id, read_object=self._no_object)
        self.pcs: list[str] = []

    def _new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    @staticmethod
    def _no_object(_: object) -> bytes:
        raise InputError("no object is read here")

    def do(self, operation: Callable[[Grid, Tx], T]) -> T:
        return self.storage.write(lambda tx: operation(self.grid, tx))

    def add(self, count: int, file_format: str = "qcow2") -> None:
        for _ in range(count):
            name = f"pc-{len(self.pcs)}"
            self.pcs.append(
                self.do(
                    lambda grid, tx, name=name: machines.add_machine(
                        tx, role="agent", name=name, token_hash=name, facts={}, now=self.now
                    )
                ).id
            )
            self.say(len(self.pcs) - 1, format=file_format)

    def machine(self, pc: int) -> Machine:
        found = self.storage.read(lambda tx: tx.machine(self.pcs[pc]))
        assert found is not None
        return found

    def say(self, pc: int, image: Image | None = None, state: str | None = None,
            **more: Any) -> ImageOrder | None:  # fmt: skip
        said = ImageReport.model_validate(
            {"format": "qcow2", "image": image and image.id, "state": state, **more}
        )
        return self.report(pc, said)

    def report(self, pc: int, said: ImageReport | None) -> ImageOrder | None:
        request = AgentReport(run_id="r", status=STATUS, image=said)
        return self.do(
            lambda grid, tx: desks.report(grid, tx, self.machine(pc), request, self.now)
        ).image

    def told(self, pc: int) -> str | None:
        order = self.say(pc)
        return None if order is None else order.name

    def told_to(self, name: str) -> list[int]:
        return [pc for pc in range(len(self.pcs)) if self.told(pc) == name]

    def push(self, name: str, *formats: str) -> Image:
        return self.do(
            lambda grid, tx: images.push(grid, tx, spec(name, *formats), "ann", self.now)
        )

    def act(self, image: Image, action: Action) -> Image:
        return self.do(
            lambda grid, tx: images.change(
                grid, tx, images.find(tx, image.id), action, "ann", self.now
            )
        )

    def tick(self, after_s: float = 60.0) -> list[str]:
        """A minute, or more, later; desktops that are on have reported meanwhile."""
        self.now += after_s
        for pc in range(len(self.pcs)):
            self.say(pc)
        expected = self.storage.read(lambda tx: images.steps(tx, self.now))
        lines = self.do(lambda grid, tx: images.advance(grid, tx, self.now))
        assert len(lines) == len(expected)
        return lines

    def state(self, image: Image) -> str:
        return self.view(image).state

    def view(self, image: Image) -> ImageView:
        return self.storage.read(
            lambda tx: imageviews.image_view(tx, images.find(tx, image.id), self.now)
        )

    def listed(self) -> ImageList:
        return self.storage.read(lambda tx: imageviews.image_list(tx, self.now))

    def accept(self, image: Image) -> None:
        """Let it become the current one, the way it does by itself."""
        for _ in range(3):
            for pc in self.told_to(image.name):
                self.say(pc, image, "good", running=image.id)
            self.tick(SOAK_S)
        assert self.state(image) == "current"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    storage = SqliteStorage(tmp_path / "grid.db")
    yield Office(storage)
    storage.close()


@pytest.fixture
def ten(office: Office) -> Office:
    office.add(10)
    return office


def test_an_image_goes_from_one_desktop_to_all(ten: Office) -> None:
    first = ten.push("v1")
    assert ten.told_to("v1") == list(range(10)), "nothing to lose: all at once"
    ten.accept(first)
    second = ten.push("v2")
    [canary] = ten.told_to("v2")
    assert len(ten.told_to("v1")) == 9
    assert ten.tick(SOAK_S) == [], "nobody has tried"
    ten.say(canary, second, "good", running=second.id)
    assert len(ten.tick()) == 1
    assert ten.told_to("v2") == [canary]
    ten.tick(SOAK_S)
    assert ten.told_to("v2") == list(range(10))
    assert ten.tick(10 * SOAK_S) == [], "no further desktop runs it"
    ten.say((canary + 1) % 10, second, "good", running=second.id)
    ten.tick()
    assert (ten.state(second), ten.state(first)) == ("current", "replaced")
    story = [event.text for event in ten.storage.read(lambda tx: tx.events(second.id))]
    assert story[0] == "Image v2, version 2: ann pushed it."
    assert story[-1] == "Image v2, version 2: current."


def test_a_canary_that_fails_brings_all_back_and_says_who(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    second = ten.push("v2")
    [canary] = ten.told_to("v2")
    ten.say(canary, second, "failed", text="The worker was not heard of after 2 boots.")
    assert ten.told(canary) == "v1", "at once, before anything is decided"
    ten.tick()
    view = ten.view(second)
    assert view.state == "rolled_back"
    assert view.words == (
        f"Out of use: 1 of 1 desktops that tried it failed, first pc-{canary}: "
        "The worker was not heard of after 2 boots."
    )
    assert ten.told_to("v1") == list(range(10))
    story = [e.text for e in ten.storage.read(lambda tx: tx.events(ten.pcs[canary]))]
    assert "Image v2, version 2, failed here: The worker was not heard of after 2 boots." in story


def test_a_retry_asks_once_more_and_believes_the_answer(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    second = ten.push("v2")
    ten.act(second, "finish")
    for pc in range(10):
        ten.say(pc, second, "failed" if pc == 3 else "good")
    assert ten.told(3) == "v1"
    ten.act(second, "retry")
    order = ten.say(3, second, "failed")  # the same report as before: it has not heard yet
    assert order is not None
    assert (order.name, order.retry) == ("v2", True)
    assert ten.say(4) == ImageOrder(id=second.id, version=2, name="v2")
    order = ten.say(3, second, "trial")
    assert order is not None
    assert (order.name, order.retry) == ("v2", False)
    ten.say(3, second, "failed")
    assert ten.told(3) == "v1"
    ten.act(second, "retry")
    assert ten.told(3) == "v2"
    ten.now += images.RETRY_TOLD_S
    ten.say(3, second, "failed")
    assert ten.told(3) == "v1", "it has had the time to try"
    assert ten.view(second).counts == {"good": 9, "failed": 1}


def test_a_desktop_that_was_off_hears_of_the_retry_when_it_is_back(ten: Office) -> None:
    first = ten.push("v1")
    ten.say(0, first, "failed")
    ten.act(first, "retry")
    ten.now += 50 * images.RETRY_TOLD_S
    order = ten.say(0, first, "failed")
    assert order is not None
    assert order.retry


def test_rolling_a_current_image_back_brings_the_one_before(ten: Office) -> None:
    names = ["v1", "v2", "v3"]
    made = []
    for name in names:
        made.append(ten.push(name))
        ten.accept(made[-1])
    one, two, three = made
    ten.act(three, "roll_back")
    assert [ten.state(image) for image in made] == ["replaced", "current", "rolled_back"]
    assert ten.told_to("v2") == list(range(10))
    ten.act(two, "roll_back")
    assert ten.told_to("v1") == list(range(10))
    with pytest.raises(ConflictError, match="no image to go back to"):
        ten.act(one, "roll_back")
    assert ten.state(one) == "current"


def test_an_image_that_was_rolled_back_does_not_come_back_by_itself(ten: Office) -> None:
    first = ten.push("v1")
    ten.accept(first)
    second = ten.push("v2")
    ten.accept(second)
    ten.act(first, "resume")
    ten.accept(first)
    ten.act(first, "roll_back")
    assert (ten.state(first), ten.state(second)) == ("rolled_back", "current")
    with pytest.raises(ConflictError, match="no image to go back to"):
        ten.act(second, "roll_back")
    for pc in (0, 1, 2):
        ten.say(pc, second, "failed")
    assert ten.tick() == []


def test_a_current_image_that_fails_on_many_goes_back_by_itself(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    second = ten.push("v2")
    ten.act(second, "finish")
    ten.act(second, "finish")
    assert ten.state(second) == "current"
    ten.say(0, second, "good")
    for pc in (1, 2):
        ten.say(pc, second, "failed", text="no boot")
    ten.tick()
    assert ten.state(second) == "rolled_back"
    assert ten.told_to("v1") == list(range(10))


def test_a_newer_push_takes_over_and_the_base_stays(ten: Office) -> None:
    first = ten.push("v1")
    ten.accept(first)
    second, third = ten.push("v2"), ten.push("v3")
    assert [ten.state(image) for image in (first, second, third)] == [
        "current", "replaced", "rolling",
    ]  # fmt: skip
    assert "version 3 was pushed" in ten.view(second).words
    assert len(ten.told_to("v3")) == 1
    assert len(ten.told_to("v1")) == 9


def test_a_first_image_that_runs_is_the_base_of_a_hasty_second(ten: Office) -> None:
    first = ten.push("v1")
    ten.say(0, first, "good", running=first.id)
    ten.push("v2")
    assert ten.state(first) == "current"
    assert len(ten.told_to("v1")) == 9


def test_a_first_image_that_nobody_ran_is_no_base(ten: Office) -> None:
    first = ten.push("v1")
    ten.push("v2")
    assert ten.state(first) == "replaced"
    assert ten.told_to("v2") == list(range(10))


def test_pushing_the_same_again_changes_nothing(ten: Office) -> None:
    first = ten.push("v1")
    assert ten.push("v1") == first
    assert len(ten.listed().images) == 1


def test_an_image_out_of_use_starts_anew_and_old_words_about_it_do_not_count(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    second = ten.push("v2")
    [canary] = ten.told_to("v2")
    ten.say(canary, second, "failed")
    ten.tick()
    with pytest.raises(ConflictError, match="rolled back"):
        ten.act(second, "retry")
    ten.act(second, "resume")
    assert ten.tick() == []
    order = ten.say(canary)
    assert order is not None
    assert (order.name, order.retry) == ("v2", True)
    ten.say(canary, second, "good")
    ten.tick(SOAK_S)
    assert ten.state(second) == "rolling"
    third = ten.push("v3")
    ten.act(second, "resume")
    assert (ten.state(second), ten.state(third)) == ("rolling", "replaced")
    assert ten.view(second).counts == {}


def test_a_pause_holds(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    second = ten.push("v2")
    [canary] = ten.told_to("v2")
    ten.act(second, "pause")
    assert ten.told(canary) == "v1"
    ten.say(canary, second, "trial")
    assert ten.told(canary) == "v2"
    ten.say(canary, second, "failed")
    assert ten.tick(10 * SOAK_S) == []
    ten.act(second, "resume")
    ten.tick()
    assert ten.state(second) == "rolled_back"


def test_desktops_get_what_their_driver_takes(office: Office) -> None:
    office.add(2)
    office.add(1, "ova")
    office.push("v1", "qcow2")
    orders = [office.say(pc, format=fmt) for pc, fmt in enumerate(["qcow2", "qcow2", "ova"])]
    assert [order and order.name for order in orders] == ["v1", "v1", None]
    assert office.say(0, format="") is None, "its driver needs no image"
    assert office.say(0, pinned=True) is None
    assert office.report(0, None) is None, "an agent of an older release"
    assert office.say(2, format="ova") is None
    office.push("v2", "qcow2", "ova")
    assert office.say(2, format="ova") is not None


def test_lists_count_who_runs_what(office: Office) -> None:
    office.add(4)
    first = office.push("v1")
    for pc in (0, 1):
        office.say(pc, first, "good", running=first.id)
    office.say(2, pinned=True)
    office.say(3, first, "fetching", done_bytes=3, total_bytes=9)
    listed = office.listed()
    assert (listed.elsewhere, listed.without) == (1, 1)
    [row] = listed.images
    assert (row.running, row.counts, row.share, row.uses) == (
        2,
        {"good": 2, "fetching": 1},
        1,
        None,
    )
    assert row.sizes == {"qcow2": 9}
    assert row.pushed_by == "ann"
    uses = office.view(first).uses
    assert uses is not None
    assert [(use.machine_name, use.state, use.done_bytes) for use in uses] == [
        ("pc-0", "good", 0), ("pc-1", "good", 0), ("pc-3", "fetching", 3),
    ]  # fmt: skip
    office.do(lambda grid, tx: machines.revoke(grid, tx, office.machine(0), office.now))
    assert office.listed().images[0].running == 1


def test_the_share_of_a_stage_is_that_of_the_office(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    second = ten.push("v2")
    assert ten.view(second).share == 0.1
    assert "1 of 1 desktop" not in ten.view(second).words
    assert ten.view(second).words.startswith("0 of 1 desktop of this stage run it well; 1 has not")


def test_images_are_found_by_what_people_type(office: Office) -> None:
    made = [office.push(name) for name in ("grid-a", "grid-b")]
    for text in (made[0].id, "1", "v1", "grid-a", made[0].id[:8]):
        found = office.storage.read(lambda tx, text=text: images.find(tx, text))
        assert found.version == 1, text
    for text in ("3", "grid", made[0].id[:4], ""):
        with pytest.raises(NotFoundError):
            office.storage.read(lambda tx, text=text: images.find(tx, text))


def test_a_name_that_looks_like_a_version_hides_none(office: Office) -> None:
    plain = office.push("grid-a")
    for name in ("1", "v1", "7"):
        office.push(name)

    def found(text: str) -> str:
        return office.storage.read(lambda tx: images.find(tx, text)).name

    assert [found("1"), found("v1"), found(plain.id)] == ["grid-a"] * 3
    assert (found("2"), found("3"), found("7")) == ("1", "v1", "7")


def test_a_list_tells_who_runs_what_after_a_rollout(ten: Office) -> None:
    first = ten.push("v1")
    ten.accept(first)
    second = ten.push("v2")
    ten.accept(second)
    for pc in range(10):
        ten.say(pc, second, "good", running=second.id)
    ten.say(4, second, "good", running=first.id)  # it fell back, or somebody put it back
    old, new = ten.view(first), ten.view(second)
    assert (old.state, old.running, old.counts) == ("replaced", 1, {"good": 1})
    assert (new.state, new.running, new.counts) == ("current", 9, {"good": 10})
    assert old.uses is not None
    assert new.uses is not None
    assert [use.machine_name for use in old.uses if use.running] == ["pc-4"]
    assert [use.machine_name for use in new.uses if not use.running] == ["pc-4"]
    assert len(old.uses) == 10, "what each said of it stays its story"
    ten.act(first, "resume")  # their words are taken back
    [row] = ten.view(first).uses or []
    assert (row.machine_name, row.running, row.state) == ("pc-4", True, "trial")
    assert row.text == imageviews.UNSAID


@pytest.mark.parametrize("again", [False, True])
def test_one_step_never_makes_two_images_current(ten: Office, again: bool) -> None:
    """One image comes to the end of its rollout while the current one is found to be bad."""
    made = []
    for name in ("v1", "v2"):
        made.append(ten.push(name))
        ten.accept(made[-1])
    if again:  # the one before the current one rolls out once more
        rolls = ten.act(made[0], "resume")
    else:
        rolls = ten.push("v3")
        made.append(rolls)
    ten.act(rolls, "finish")
    for pc in range(10):
        ten.say(pc, rolls, "good", running=rolls.id)
    for pc in range(3):
        ten.say(pc, made[1], "failed", text="no boot")
    ten.now += SOAK_S
    for pc in range(10):
        ten.say(pc)
    both = ten.storage.read(lambda tx: images.steps(tx, ten.now))
    assert sorted(new.state for _, new in both) == ["current", "rolled_back"]
    for _ in range(3):
        ten.do(lambda grid, tx: images.advance(grid, tx, ten.now))
        assert [ten.state(image) for image in made].count("current") == 1
        assert ten.state(rolls) == "current"
    assert images.rollout_of(ten.storage.read(lambda tx: images.find(tx, rolls.id))).before != (
        rolls.id
    )


def test_settings_are_obeyed(ten: Office) -> None:
    ten.accept(ten.push("v1"))
    new = RolloutSettings(stages=[0.5, 1], soak_s=10)
    ten.do(lambda grid, tx: images.set_settings(tx, new))
    second = ten.push("v2")
    pioneers = ten.told_to("v2")
    assert len(pioneers) == 5
    ten.say(pioneers[0], second, "good")
    ten.tick(10)
    assert len(ten.told_to("v2")) == 10


def test_words_about_images_of_another_grid_are_not_kept(ten: Office) -> None:
    ten.report(0, ImageReport(format="qcow2", image=digest("x"), state="good"))
    assert ten.machine(0).status["image"]["uses"] == {}


def test_nothing_is_written_about_images_when_nothing_changed(ten: Office) -> None:
    first = ten.push("v1")
    ten.say(0, first, "fetching", done_bytes=1)
    before = ten.storage.read(lambda tx: tx.image_uses(first.id))
    ten.now += 30
    statements: list[str] = []
    ten.storage._writer.set_trace_callback(statements.append)
    ten.say(0, first, "fetching", done_bytes=1)
    ten.storage._writer.set_trace_callback(None)
    assert not [sql for sql in statements if "INTO image" in sql]
    assert not [sql for sql in statements if "FROM images" in sql or "FROM image_uses" in sql]
    assert ten.storage.read(lambda tx: tx.image_uses(first.id)) == before
    ten.say(0, first, "fetching", done_bytes=2)
    [use] = ten.storage.read(lambda tx: tx.image_uses(first.id))
    assert (use.done_bytes, use.at) == (2, before[0].at), "since when it fetches"


def test_a_change_that_was_not_saved_is_not_told(ten: Office) -> None:
    ten.accept(ten.push("v1"))

    def fail(grid: Grid, tx: Tx) -> None:
        images.push(grid, tx, spec("v2"), "ann", ten.now)
        assert [offer.name for offer in images.offers(grid, tx)] == ["v2", "v1"]
        raise InputError("the disk is full")

    with pytest.raises(InputError):
        ten.do(fail)
    assert ten.told_to("v1") == list(range(10))


def test_images_cost_a_report_no_more_than_one_short_look(office: Office) -> None:
    """However many desktops and images there are: one row of the settings."""

    def statements_of_a_report() -> list[str]:
        found: list[str] = []
        office.storage._writer.set_trace_callback(found.append)
        office.say(0)
        office.storage._writer.set_trace_callback(None)
        return [sql for sql in found if "FROM machines" not in sql or "WHERE" in sql]

    office.add(3)
    office.say(0)
    without = statements_of_a_report()
    office.accept(office.push("v1"))
    office.push("v2")
    office.say(0)
    with_images = statements_of_a_report()
    assert len(with_images) == len(without)
    assert sum("FROM settings" in sql for sql in with_images) <= 3
    assert not [sql for sql in with_images if "image" in sql and "settings" not in sql
                and "UPDATE machines" not in sql]  # fmt: skip
