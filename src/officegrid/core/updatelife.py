"""Which release a worker runs: the trial, and the way back. Pure.

`step(life, event)` gives the next `Life`. The caller makes it durable before it acts on it, so that
a crash at any moment leaves a life from which the next start goes on.

    (fetched) -> trial -> (heard by the coordinator) -> current
                   |                                      `-> previous
                   `-> (ended, or started twice in vain) -> failed; back to current

`None` as `current` means the program that is installed on the machine: it is always there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from officegrid.core.versions import is_older

MOST_STARTS = 2
"""So often a release on trial may start without being heard."""
MOST_FAILED = 10
"""So many failed releases are remembered; the oldest are forgotten."""
NEVER_HEARD = (
    f"It was started {MOST_STARTS} times and was killed, or crashed, before the coordinator "
    "answered it."
)


@dataclass(frozen=True, slots=True)
class Held:
    """A release that lies unpacked on this machine. `number`: of the order that brought it.
    `installed`: the version of the installed program at that time."""

    digest: str
    version: str
    number: int
    installed: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a release is not used here; `number`: of the order it was tried for."""

    version: str
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Life:
    """What is known about releases on one machine; kept across restarts."""

    current: Held | None = None
    """The coordinator has answered it. None: the installed program."""
    previous: Held | None = None
    """What `current` was before."""
    trial: Held | None = None
    starts: int = 0
    """Of the trial, none of which the coordinator has answered yet."""
    failed: Mapping[str, Failure] = field(default_factory=dict)
    """By digest, the oldest first."""

    @property
    def wanted(self) -> Held | None:
        """What is to run now; None: the installed program."""
        return self.trial or self.current

    def kept(self) -> frozenset[str]:
        """Digests of the releases whose files are needed."""
        slots = (self.current, self.previous, self.trial)
        return frozenset(held.digest for held in slots if held is not None)

    def is_outgrown(self, installed: str) -> bool:
        """Has somebody since installed a program that is newer than what is wanted? A release that
        was older from the start was ordered all the same."""
        wanted = self.wanted
        if wanted is None or wanted.installed == installed:
            return False
        return is_older(wanted.version, installed)

    def may_try(self, digest: str, number: int) -> bool:
        """Has it not failed here since this order was given?"""
        failure = self.failed.get(digest)
        return failure is None or failure.number < number


# --- events


@dataclass(frozen=True, slots=True)
class Fetched:
    """A release lies complete on the disk, and is to be run."""

    held: Held


@dataclass(frozen=True, slots=True)
class GoHome:
    """Run the installed program again: the release was withdrawn, or is older than that by now."""


@dataclass(frozen=True, slots=True)
class Starting:
    """What is wanted is started now."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The coordinator has answered a claim of the release with this digest."""

    digest: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The release with this digest has ended as it must not, or does not get anywhere."""

    digest: str
    why: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The release with this digest was told to stop, and did."""

    digest: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The files of this release are gone or damaged; that is not the release's fault."""

    digest: str


Event = Fetched | GoHome | Starting | Heard | Ended | Stopped | Lost


def step(life: Life, event: Event) -> Life:
    """The life after the event; the same life: nothing has changed."""
    for row in TABLE[type(event)]:
        if row.guard(life, event):
            return row.then(life, event)
    return life


# --- guards: named after what they find


def _always(_: Life, __: Event) -> bool:
    return True


def _is_trial(life: Life, event: Event) -> bool:
    assert isinstance(event, Heard | Ended | Stopped | Lost)
    return life.trial is not None and life.trial.digest == event.digest


def _is_current(life: Life, event: Event) -> bool:
    assert isinstance(event, Ended | Lost)
    return life.current is not None and life.current.digest == event.digest


def _is_previous(life: Life, event: Event) -> bool:
    assert isinstance(event, Lost)
    return life.previous is not None and life.previous.digest == event.digest


def _is_new(life: Life, event: Event) -> bool:
    assert isinstance(event, Fetched)
    held = event.held
    known = life.wanted is not None and life.wanted.digest == held.digest
    return not known and life.may_try(held.digest, held.number)


def _has_trial(life: Life, _: Event) -> bool:
    return life.trial is not None


def _was_started_enough(life: Life, _: Event) -> bool:
    return life.trial is not None and life.starts >= MOST_STARTS


# --- what follows


def _try(life: Life, event: Event) -> Life:
    assert isinstance(event, Fetched)
    if life.current is not None and life.current.digest == event.held.digest:
        return replace(life, trial=None, starts=0)  # another one was on trial
    return replace(life, trial=event.held, starts=0)


def _go_home(life: Life, _: Event) -> Life:
    return replace(life, current=None, trial=None, starts=0, previous=life.current)


def _count(life: Life, _: Event) -> Life:
    return replace(life, starts=life.starts + 1)


def _give_up(life: Life, _: Event) -> Life:
    assert life.trial is not None
    return _fail_trial(life, Ended(life.trial.digest, NEVER_HEARD))


def _good(life: Life, _: Event) -> Life:
    trial = life.trial
    assert trial is not None
    return replace(
        life, current=trial, previous=life.current, trial=None, starts=0,
        failed=_without(life.failed, trial.digest),
    )  # fmt: skip


def _fail_trial(life: Life, event: Event) -> Life:
    assert isinstance(event, Ended)
    assert life.trial is not None
    failed = _with(life.failed, life.trial, event.why)
    return replace(life, trial=None, starts=0, failed=failed)


def _fail_current(life: Life, event: Event) -> Life:
    assert isinstance(event, Ended)
    assert life.current is not None
    failed = _with(life.failed, life.current, event.why)
    return replace(_lose_current(life, event), failed=failed)


def _uncount(life: Life, _: Event) -> Life:
    return replace(life, starts=max(0, life.starts - 1))


def _lose_trial(life: Life, _: Event) -> Life:
    return replace(life, trial=None, starts=0)


def _lose_current(life: Life, _: Event) -> Life:
    return replace(life, current=life.previous, previous=None)


def _lose_previous(life: Life, _: Event) -> Life:
    return replace(life, previous=None)


def _with(failed: Mapping[str, Failure], held: Held, why: str) -> dict[str, Failure]:
    kept = {**_without(failed, held.digest), held.digest: Failure(held.version, held.number, why)}
    return dict(list(kept.items())[-MOST_FAILED:])


def _without(failed: Mapping[str, Failure], digest: str) -> dict[str, Failure]:
    return {each: failure for each, failure in failed.items() if each != digest}


# --- the table


@dataclass(frozen=True, slots=True)
class Row:
    guard: Callable[[Life, Event], bool]
    then: Callable[[Life, Event], Life]


TABLE: Mapping[type[Event], tuple[Row, ...]] = {
    Fetched: (Row(_is_new, _try),),
    GoHome: (Row(_always, _go_home),),
    Starting: (Row(_was_started_enough, _give_up), Row(_has_trial, _count)),
    Heard: (Row(_is_trial, _good),),
    Ended: (Row(_is_trial, _fail_trial), Row(_is_current, _fail_current)),
    Stopped: (Row(_is_trial, _uncount),),
    Lost: (
        Row(_is_trial, _lose_trial),
        Row(_is_current, _lose_current),
        Row(_is_previous, _lose_previous),
    ),
}
"""For each event, the first row whose guard holds; none: nothing happens."""
