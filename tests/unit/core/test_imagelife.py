"""The life of images on one PC: the order, the trial, the way back; and what always holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from officegrid.core import imageevents as life
from officegrid.core.imageevents import Event, Held, Order
from officegrid.core.imagelife import MOST_BOOTS, TABLE, Do, Effect, Life, step


def held(number: int, ext: str = "qcow2") -> Held:
    return Held(f"id{number}", number, f"grid-{number}", f"{number:064x}", ext, 1000 + number)


def order(number: int, *, retry: bool = False) -> Order:
    return Order(f"id{number}", number, f"grid-{number}", retry)


def after(known: Life, *happened: Event) -> Life:
    for event in happened:
        known, _ = step(known, event)
    return known


def settled(number: int) -> Life:
    """A PC that runs this image, as it comes about."""
    return after(Life(), *_tried(number), life.Heard())


def _tried(number: int) -> tuple[Event, ...]:
    return (
        life.Ordered(order(number)), life.Fetched(held(number)), life.Free(), life.Deleted(),
        life.Making(),
    )  # fmt: skip


def test_every_event_has_its_rows() -> None:
    assert set(TABLE) == set(Event.__args__)


def test_the_first_image_goes_on_trial_and_is_good_once_heard() -> None:
    known = after(Life(), life.Ordered(order(1)))
    assert known.to_fetch() == order(1)
    known = after(known, life.Fetched(held(1)))
    assert (known.candidate, known.wanted, known.to_fetch()) == (held(1), None, None)
    known = after(known, life.Free())
    assert known.trial == known.wanted == held(1)
    assert known.remake
    # Not heard: the VM that runs is still made of something else.
    assert after(known, life.Heard()).trial == held(1)
    known = after(known, life.Deleted(), life.Making(), life.Heard())
    assert (known.current, known.trial, known.remake) == (held(1), None, "")
    assert known.made_of == held(1)


def test_a_better_one_leaves_the_way_back() -> None:
    known = after(settled(1), *_tried(2))
    assert (known.current, known.trial) == (held(1), held(2))
    known = after(known, life.Heard())
    assert (known.current, known.previous) == (held(2), held(1))
    known = after(known, *_tried(3), life.Heard())
    assert known.kept() == {held(3).sha256, held(2).sha256}
    # The order goes back: nothing has to be fetched but what is there already is verified.
    known = after(known, life.Ordered(order(2)))
    assert known.to_fetch() == order(2)
    known = after(known, life.Fetched(held(2)), life.Free(), life.Deleted(), life.Making())
    assert after(known, life.Heard()).previous == held(3)


def test_two_boots_in_vain_and_it_goes_back_at_once() -> None:
    known, effects = step(after(settled(1), *_tried(2)), life.BootFailed("silent"))
    assert (known.trial, known.boots_in_vain, effects) == (held(2), 1, ())
    known, effects = step(known, life.BootFailed("silent again"))
    assert (known.trial, known.wanted) == (None, held(1))
    assert known.remake
    assert known.failed == {"id2": "silent again"}
    assert [effect.do for effect in effects] == [Do.TELL]
    assert "grid-1" in effects[0].text
    assert "silent again" in effects[0].text
    # The VM still rests on the file of the failed one until it is deleted.
    assert held(2).sha256 in known.kept()
    known = after(known, life.Deleted(), life.Making())
    assert known.made_of == held(1)
    assert held(2).sha256 not in known.kept()
    # Never again here, unless it is asked for, and then once per asking.
    assert after(known, life.Ordered(order(2)), life.Fetched(held(2))).candidate is None
    asked = after(known, life.Ordered(order(2, retry=True)))
    assert asked.to_fetch() == order(2, retry=True)
    failed_again = after(
        asked, life.Fetched(held(2)), life.Free(), life.Deleted(), life.Making(),
        life.BootFailed("a"), life.BootFailed("b"), life.Ordered(order(2, retry=True)),
    )  # fmt: skip
    assert failed_again.to_fetch() is None
    asked_anew = after(
        failed_again, life.Ordered(order(2)), life.Ordered(order(2, retry=True))
    )  # fmt: skip
    assert asked_anew.to_fetch() is not None


def test_a_refused_image_goes_back_at_once() -> None:
    known, effects = step(
        after(settled(1), *_tried(2)), life.Refused("not a disk", held(2).sha256)
    )  # fmt: skip
    assert known.wanted == held(1)
    assert known.failed == {"id2": "not a disk"}
    assert effects[0].do is Do.TELL


def test_an_image_without_a_way_back_is_kept_and_called_failed_once() -> None:
    known = after(Life(), *_tried(1), life.BootFailed("x"))
    known, effects = step(known, life.BootFailed("silent"))
    assert known.wanted == held(1)
    assert known.failed == {"id1": "silent"}
    assert [effect.do for effect in effects] == [Do.TELL, Do.CHECK]
    known, effects = step(known, life.BootFailed("silent"))
    assert effects == ()
    known = after(known, life.Heard())
    assert (known.current, known.failed) == (held(1), {})


def test_a_rollout_that_is_taken_back_ends_the_trial() -> None:
    known = after(settled(1), *_tried(2), life.Ordered(order(1)))
    assert (known.trial, known.wanted, known.failed) == (None, held(1), {})
    assert known.remake


def test_a_candidate_nobody_wants_any_more_is_dropped() -> None:
    known = after(settled(1), life.Ordered(order(2)), life.Fetched(held(2)))
    for news in (order(1), order(3), None):
        assert after(known, life.Ordered(news)).candidate is None
    assert after(known, life.Ordered(order(1)), life.Free()) == after(known, life.Ordered(order(1)))


def test_an_image_that_comes_too_late_is_not_taken() -> None:
    known = after(settled(1), life.Ordered(order(2)), life.Ordered(order(3)))
    assert after(known, life.Fetched(held(2))) == known


def test_trouble_with_a_good_image_has_its_file_looked_at() -> None:
    known = settled(1)
    same, effects = step(known, life.Refused("cannot be read"))
    assert same == known
    assert effects == (Effect(Do.CHECK, "cannot be read"),)
    assert step(known, life.Refused("cannot be read", held(1).sha256)) == (known, ())
    assert after(known, life.BootFailed("x")) == known


def test_a_trial_whose_file_is_gone_is_fetched_again_and_not_called_failed() -> None:
    known = after(settled(1), *_tried(2))
    same, effects = step(known, life.Refused("there is no file"))
    assert (same, effects) == (known, (Effect(Do.CHECK, "there is no file"),))
    known = after(known, life.Lost(held(2).sha256))
    assert (known.wanted, known.failed, known.to_fetch()) == (held(1), {}, order(2))
    # What was found out about one image says nothing about another.
    other = after(settled(1), *_tried(3))
    assert after(other, life.Refused("no disk", held(2).sha256)) == other


def test_an_order_during_the_deletion_makes_the_vm_once_more() -> None:
    known = after(settled(1), life.Ordered(order(2)), life.Fetched(held(2)), life.Free())
    known = after(known, life.Ordered(order(1)), life.Deleted(held(2).sha256))
    assert (known.wanted, known.made_of) == (held(1), None)
    assert known.remake, "what comes next would be made from the wrong file"
    assert not after(known, life.Deleted(held(1).sha256)).remake
    assert not after(known, life.Deleted()).remake


def test_a_boot_that_took_the_agent_down_counts_and_an_ended_one_does_not() -> None:
    known = after(settled(1), *_tried(2), life.Booting())
    assert known.booting
    for end in (life.BootEnded(), life.Heard(), life.BootFailed("silent"), life.Ordered(order(1))):
        assert not after(known, end).booting
    assert after(known, life.BootFailed("down")).boots_in_vain == 1
    # Only a trial can fail by it.
    assert not after(settled(1), life.Booting()).booting


def test_a_life_that_was_lost_is_known_again_once_a_vm_was_made_or_deleted() -> None:
    lost = Life(unsure=True)
    known = after(lost, life.Ordered(order(1)), life.Fetched(held(1)), life.Free())
    assert known.unsure
    assert not after(known, life.Deleted(held(1).sha256)).unsure
    assert not after(lost, life.Making(pinned=True)).unsure


def test_a_lost_file_is_fetched_again_and_the_one_before_helps_out() -> None:
    known = after(settled(1), *_tried(2), life.Heard(), life.Lost(held(2).sha256))
    assert (known.current, known.to_fetch()) == (held(1), order(2))
    assert known.remake
    alone = after(settled(1), life.Lost(held(1).sha256))
    assert (alone.wanted, alone.to_fetch()) == (None, order(1))


def test_another_hypervisor_needs_other_files() -> None:
    known = after(settled(1), life.FormatIs("qcow2"))
    assert known == settled(1)
    known = after(known, life.FormatIs("ova"))
    assert (known.wanted, known.to_fetch()) == (None, order(1))
    assert known.remake


def test_a_pinned_vm_is_made_of_none_of_these() -> None:
    assert after(settled(1), life.Making(pinned=True)).made_of is None


@pytest.mark.parametrize("reason", ["full", "stranger"])
def test_a_vm_can_be_made_anew_from_the_same_image(reason: str) -> None:
    known = after(settled(1), life.Outgrown(reason))
    assert known.remake == reason
    assert after(known, life.Deleted(), life.Making()) == settled(1)


NUMBERS = st.integers(1, 4)


class Machine(RuleBasedStateMachine):
    """A PC to which everything happens in any order, with crashes in between: since the life is
    all there is to remember, a crash is no event of its own. `heard` is the model's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life()
        self.heard: set[str] = set()
        self.retries: set[str] = set()

    def happens(self, event: Event) -> None:
        before = self.life
        self.life, _ = step(before, event)
        for gone in set(before.failed) - set(self.life.failed):
            assert gone in self.heard | self.retries, "forgave a failure by itself"
        for new in set(self.life.failed) - set(before.failed):
            self.heard.discard(new)
            self.retries.discard(new)

    @rule(number=NUMBERS, retry=st.booleans())
    def is_ordered(self, number: int, retry: bool) -> None:
        if retry:
            self.retries.add(f"id{number}")
        self.happens(life.Ordered(order(number, retry=retry)))

    @rule()
    def nothing_is_ordered(self) -> None:
        self.happens(life.Ordered(None))

    @rule(number=NUMBERS)
    def comes(self, number: int) -> None:
        self.happens(life.Fetched(held(number)))

    @rule()
    def vm_is_free(self) -> None:
        self.happens(life.Free())

    @rule(number=NUMBERS)
    def vm_is_deleted(self, number: int) -> None:
        if self.life.remake:
            self.happens(life.Deleted(held(number).sha256))

    @rule()
    def vm_is_deleted_and_the_next_is_right(self) -> None:
        wanted = self.life.wanted
        if self.life.remake:
            self.happens(life.Deleted(wanted.sha256 if wanted else ""))
            assert not self.life.remake

    @rule(pinned=st.booleans())
    def vm_is_made(self, pinned: bool) -> None:
        if not self.life.remake and self.life.made_of is None and self.life.wanted:
            self.happens(life.Making(pinned))

    @rule()
    def boot_fails(self) -> None:
        self.happens(life.BootFailed("silent"))

    @rule(number=NUMBERS)
    def is_refused(self, number: int) -> None:
        self.happens(life.Refused("no disk", held(number).sha256))

    @rule(ended=st.booleans())
    def boots(self, ended: bool) -> None:
        self.happens(life.BootEnded() if ended else life.Booting())

    @rule()
    def is_heard(self) -> None:
        if self.life.made_of is not None:
            self.heard.add(self.life.made_of.id)
        self.happens(life.Heard())

    @rule(number=NUMBERS)
    def file_is_lost(self, number: int) -> None:
        self.happens(life.Lost(held(number).sha256))

    @rule()
    def outgrows(self) -> None:
        self.happens(life.Outgrown("too large"))

    @invariant()
    def the_candidate_is_the_ordered_one_and_new(self) -> None:
        known = self.life
        if known.candidate is not None:
            assert known.ordered is not None
            assert known.candidate.id == known.ordered.id
            assert known.candidate.id not in known.failed
            assert known.wanted is None or known.wanted.id != known.candidate.id

    @invariant()
    def no_vm_of_another_image_is_started(self) -> None:
        known = self.life
        assert known.made_of is None or known.made_of == known.wanted or known.remake

    @invariant()
    def a_failed_image_is_used_only_where_there_is_no_other(self) -> None:
        known = self.life
        if known.trial is not None and known.trial.id in known.failed:
            assert known.current is None

    @invariant()
    def what_is_used_is_kept(self) -> None:
        known = self.life
        for one in (known.wanted, known.made_of, known.candidate):
            assert one is None or one.sha256 in known.kept()
        assert len(known.kept()) <= 4

    @invariant()
    def a_trial_is_bounded(self) -> None:
        assert 0 <= self.life.boots_in_vain <= MOST_BOOTS
        if self.life.trial is not None:
            assert self.life.trial != self.life.current
            if self.life.current is not None:
                assert self.life.boots_in_vain < MOST_BOOTS

    @invariant()
    def only_a_trial_boots(self) -> None:
        if self.life.booting:
            assert self.life.trial is not None
            assert self.life.made_of == self.life.trial
            assert not self.life.remake

    @invariant()
    def good_means_heard(self) -> None:
        if self.life.current is not None:
            assert self.life.current.id in self.heard | set(self.life.failed)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = Machine.TestCase


def test_the_life_of_a_pc_never_depends_on_names() -> None:
    """Two images of one name are two."""
    twin = replace(held(2), name="grid-1")
    known = after(settled(1), life.Ordered(replace(order(2), name="grid-1")), life.Fetched(twin))
    assert known.candidate == twin
