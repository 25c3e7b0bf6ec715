"""Which image a desktop's worker VM is made from: the order, the trial, and the way back. Pure.

`step(life, event)` gives the next `Life` and what is to be done about it. The caller makes the new
life durable before it does anything else, so that a crash at any moment leaves a life from which
the next run goes on. What has to be done to the VM is itself part of the life (`remake`), as it
may take longer than the agent lives.

    ordered -> (fetched) -> candidate -> (VM free) -> trial -> (worker heard) -> current
                                                        |                          `-> previous
                                                        `-> (2 boots in vain) -> failed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from officegrid.core.imageevents import (
    BootEnded,
    BootFailed,
    Booting,
    Deleted,
    Event,
    Fetched,
    FormatIs,
    Free,
    Heard,
    Held,
    Lost,
    Making,
    Order,
    Ordered,
    Outgrown,
    Refused,
)

MOST_BOOTS = 2
"""So often an image on trial may boot without its worker being heard."""
MOST_FAILED = 20
"""So many failed images are remembered; the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Life:
    """What is known about images on one PC; kept across restarts."""

    ordered: Order | None = None
    current: Held | None = None
    """Its worker has been heard on this PC."""
    previous: Held | None = None
    """What `current` was before: the way back needs no network."""
    candidate: Held | None = None
    """The ordered image, ready; the VM is made from it as soon as nothing of it is in memory."""
    trial: Held | None = None
    """The VM is made from it; its worker has not been heard yet."""
    boots_in_vain: int = 0
    """Of the trial."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Image id -> why it did not work on this PC."""
    remake: str = ""
    """Why the VM is to be deleted before anything else is done with it; empty: it is not."""
    made_of: Held | None = None
    """What the VM is made from, or was being made from; None: from none of these."""
    booting: bool = False
    """The trial boots, and nothing has been heard yet: if the next run of the agent finds this,
    the boot has taken the PC or the agent down."""
    unsure: bool = False
    """What was known before was lost: the VM may rest on any file."""

    @property
    def wanted(self) -> Held | None:
        """What a new VM is made from now."""
        return self.trial or self.current

    def kept(self) -> frozenset[str]:
        """Digests of the files that are needed."""
        slots = (self.current, self.previous, self.candidate, self.trial, self.made_of)
        return frozenset(held.sha256 for held in slots if held is not None)

    def to_fetch(self) -> Order | None:
        """The order, if its image is to be brought to this PC and is not there."""
        order = self.ordered
        if order is None or order.id in self.failed:
            return None
        there = {held.id for held in (self.wanted, self.candidate) if held is not None}
        return None if order.id in there else order


# --- effects


class Do(StrEnum):
    TELL = "tell"
    """The text is trouble that the admin should know of."""
    SWEEP = "sweep"
    """Files may have become unnecessary."""
    CHECK = "check"
    """Is the wanted image's file still what it was? Answer with Lost if it is not; if it is and
    there is a text, with Refused for this reason."""


@dataclass(frozen=True, slots=True)
class Effect:
    do: Do
    text: str = ""


SWEEP = Effect(Do.SWEEP)
Outcome = tuple[Life, tuple[Effect, ...]]


def step(life: Life, event: Event) -> Outcome:
    """The life after the event, and what to do once it is durable. The same life: nothing to do
    beyond the effects."""
    for row in TABLE[type(event)]:
        if row.guard(life, event):
            after, effects = row.then(life, event)
            if after.booting and not _tried(after, event):
                after = replace(after, booting=False)
            return after, effects
    return life, ()


# --- guards: named after what they find


def _always(_: Life, __: Event) -> bool:
    return True


def _tried(life: Life, _: Event) -> bool:
    """Is the VM made from the image on trial?"""
    return life.trial is not None and life.made_of == life.trial and not life.remake


def _may_fall_back(life: Life, event: Event) -> bool:
    return _tried(life, event) and life.current is not None


def _nobody_looked(_: Life, event: Event) -> bool:
    return isinstance(event, Refused) and not event.whole


def _is_unfit(life: Life, event: Event) -> bool:
    """Is the file of the trial whole, and not taken all the same?"""
    trial = life.trial
    whole = isinstance(event, Refused) and trial is not None and event.whole == trial.sha256
    return whole and _tried(life, event)


def _is_unfit_but_not_alone(life: Life, event: Event) -> bool:
    return _is_unfit(life, event) and life.current is not None


def _last_boot(life: Life, event: Event) -> bool:
    return _may_fall_back(life, event) and life.boots_in_vain + 1 >= MOST_BOOTS


def _last_boot_alone(life: Life, event: Event) -> bool:
    return _tried(life, event) and not life.current and life.boots_in_vain + 1 == MOST_BOOTS


def _is_news(life: Life, event: Event) -> bool:
    return isinstance(event, Ordered) and event.order != life.ordered


def _is_welcome(life: Life, event: Event) -> bool:
    order = life.to_fetch()
    return isinstance(event, Fetched) and order is not None and order.id == event.held.id


def _has_candidate(life: Life, _: Event) -> bool:
    return life.candidate is not None


def _is_held(life: Life, event: Event) -> bool:
    return isinstance(event, Lost) and event.sha256 in life.kept()


def _is_other_format(life: Life, event: Event) -> bool:
    slots = (life.current, life.previous, life.candidate, life.trial)
    return isinstance(event, FormatIs) and any(
        held is not None and held.ext != event.ext for held in slots
    )


# --- what follows


def _obey(life: Life, event: Event) -> Outcome:
    assert isinstance(event, Ordered)
    order, before = event.order, life.ordered
    life = replace(life, ordered=order)
    if order is None or (life.candidate is not None and life.candidate.id != order.id):
        life = replace(life, candidate=None)
    if order is None:
        return life, (SWEEP,)
    # `retry` stays set until the coordinator has heard of it: only its coming counts.
    asked_before = before is not None and before.id == order.id and before.retry
    if order.retry and not asked_before and order.id in life.failed:
        life = replace(life, failed=_without(life.failed, order.id), boots_in_vain=0)
    current, trial = life.current, life.trial
    if trial is not None and current is not None and order.id == current.id:
        why = f"The coordinator took {trial.name} back; {current.name} is used again."
        life = replace(life, trial=None, boots_in_vain=0, remake=why)
    return life, (SWEEP,)


def _take(life: Life, event: Event) -> Outcome:
    assert isinstance(event, Fetched)
    return replace(life, candidate=event.held), (SWEEP,)


def _try(life: Life, _: Event) -> Outcome:
    candidate = life.candidate
    assert candidate is not None
    why = f"Image {candidate.name} has come."
    return replace(life, trial=candidate, candidate=None, boots_in_vain=0, remake=why), ()


def _deleted(life: Life, event: Event) -> Outcome:
    """Where another image is wanted by now than was when the deletion began, the next VM would be
    made from the wrong one: it stays to be made anew."""
    assert isinstance(event, Deleted)
    wanted = "" if life.wanted is None else life.wanted.sha256
    remake = "" if event.following in (None, wanted) else life.remake
    return replace(life, remake=remake, made_of=None, unsure=False), (SWEEP,)


def _making(life: Life, event: Event) -> Outcome:
    assert isinstance(event, Making)
    return replace(life, made_of=None if event.pinned else life.wanted, unsure=False), ()


def _boot(life: Life, _: Event) -> Outcome:
    return replace(life, booting=True), ()


def _booted(life: Life, _: Event) -> Outcome:
    return replace(life, booting=False), ()


def _good(life: Life, _: Event) -> Outcome:
    trial = life.trial
    assert trial is not None
    return replace(
        life, current=trial, previous=life.current or life.previous, trial=None, boots_in_vain=0,
        failed=_without(life.failed, trial.id),
    ), (SWEEP,)  # fmt: skip


def _count(life: Life, event: Event) -> Outcome:
    assert isinstance(event, BootFailed)
    boots = min(life.boots_in_vain + 1, MOST_BOOTS)
    return replace(life, boots_in_vain=boots, booting=False), ()


def _fall_back(life: Life, event: Event) -> Outcome:
    assert isinstance(event, BootFailed | Refused)
    trial, current = life.trial, life.current
    assert trial is not None
    assert current is not None
    why = f"Image {trial.name} does not work on this PC; it goes back to {current.name}."
    life = replace(
        life, trial=None, boots_in_vain=0, failed=_with(life.failed, trial.id, event.reason),
        remake=why,
    )  # fmt: skip
    return life, (Effect(Do.TELL, f"{why} {event.reason}".strip()),)


def _fail_alone(life: Life, event: Event) -> Outcome:
    """There is nothing to go back to: it is kept, and the VM's own repair goes on."""
    assert isinstance(event, BootFailed | Refused)
    trial = life.trial
    assert trial is not None
    life = replace(life, booting=False)
    if trial.id in life.failed:
        return life, ()
    told = f"Image {trial.name} does not work on this PC, and there is no other. {event.reason}"
    life = replace(
        life, boots_in_vain=MOST_BOOTS, failed=_with(life.failed, trial.id, event.reason)
    )
    return life, (Effect(Do.TELL, told.strip()), Effect(Do.CHECK))


def _check(life: Life, event: Event) -> Outcome:
    """A file that is gone or damaged says nothing about the image."""
    assert isinstance(event, Refused)
    return life, (Effect(Do.CHECK, event.reason),) if life.wanted is not None else ()


def _outgrown(life: Life, event: Event) -> Outcome:
    assert isinstance(event, Outgrown)
    return replace(life, remake=life.remake or event.reason), ()


def _lost(life: Life, event: Event) -> Outcome:
    assert isinstance(event, Lost)
    return _drop(life, lambda held: held.sha256 == event.sha256, "Its image's file was damaged.")


def _other_format(life: Life, event: Event) -> Outcome:
    assert isinstance(event, FormatIs)
    why = f"The hypervisor of this PC now takes {event.ext} files."
    return _drop(life, lambda held: held.ext != event.ext, why)


def _drop(life: Life, gone: Callable[[Held], bool], why: str) -> Outcome:
    """Without the images that are gone; the one before steps in for the current one."""

    def left(held: Held | None) -> Held | None:
        return None if held is None or gone(held) else held

    before = life
    current, previous = left(life.current), left(life.previous)
    if current is None:
        current, previous = previous, None
    lost = tuple(
        Effect(Do.TELL, f"Image {held.name} is not used any more. {why}")
        for held in (life.wanted,)
        if held is not None and gone(held)
    )
    trial = left(life.trial)
    if trial is not None and trial == current:
        trial = None
    life = replace(
        life, current=current, previous=previous, candidate=left(life.candidate), trial=trial,
        boots_in_vain=life.boots_in_vain if trial else 0,
    )  # fmt: skip
    if life.candidate is not None and life.candidate == life.wanted:
        life = replace(life, candidate=None)
    if life.wanted != before.wanted or life.made_of not in (None, life.wanted):
        life = replace(life, remake=life.remake or why)
    return life, (*lost, SWEEP)


def _with(failed: Mapping[str, str], key: str, reason: str) -> dict[str, str]:
    kept = {**_without(failed, key), key: reason}
    return dict(list(kept.items())[-MOST_FAILED:])


def _without(failed: Mapping[str, str], key: str) -> dict[str, str]:
    return {each: reason for each, reason in failed.items() if each != key}


# --- the table


@dataclass(frozen=True, slots=True)
class Row:
    guard: Callable[[Life, Event], bool]
    then: Callable[[Life, Event], Outcome]


TABLE: Mapping[type[Event], tuple[Row, ...]] = {
    Ordered: (Row(_is_news, _obey),),
    Fetched: (Row(_is_welcome, _take),),
    Free: (Row(_has_candidate, _try),),
    Deleted: (Row(_always, _deleted),),
    Making: (Row(_always, _making),),
    Booting: (Row(_tried, _boot),),
    BootEnded: (Row(_always, _booted),),
    BootFailed: (
        Row(_last_boot, _fall_back),
        Row(_last_boot_alone, _fail_alone),
        Row(_tried, _count),
    ),
    Refused: (
        Row(_nobody_looked, _check),
        Row(_is_unfit_but_not_alone, _fall_back),
        Row(_is_unfit, _fail_alone),
    ),
    Heard: (Row(_tried, _good),),
    Outgrown: (Row(_always, _outgrown),),
    Lost: (Row(_is_held, _lost),),
    FormatIs: (Row(_is_other_format, _other_format),),
}
"""For each event, the first row whose guard holds; none: nothing happens."""
