"""Which desktops run which worker image: a new one goes out in stages, and back by itself.

    rolling       stage by stage: 1 %, 10 %, all; then current
    paused        an admin holds it; nothing changes by itself
    current       the image of all desktops
    rolled_back   too many failed, or an admin wants it so; all go back to the image before
    replaced      a newer one took its place

Each desktop has a *place* between 0 and 1, made from the image's and its own id. A stage has a
*cutoff*: desktops placed at or below it are its members. Cutoffs only grow, so who belongs to an
early stage belongs to all later ones, and a desktop can tell its membership alone. They are
taken from the real places of the desktops at hand, so that 1 % of 500 are 5 and of 10 are one.

Nobody waits for a desktop that is off or in use: only those that have tried an image count.
Nothing here reads a clock: `now` is seconds since the epoch, as all times here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from officegrid.core.errors import ConflictError
from officegrid.core.quantities import duration_text

Action = Literal["pause", "resume", "finish", "roll_back", "retry"]

ASKED = "asked"
"""State of a use: an admin wants the desktop to try this image again, whatever it said before."""
UNTRIED_S = 24 * 3600.0
"""Desktops that report but have not tried an image for so long get company from one more."""
TRIAL_COUNTS_S = 900.0
"""A trial is waited for at least so long; later its user has probably come back."""
LAST_STAGE_FAILURES = 2
"""In the last stage one desktop alone undoes nothing: it goes back by itself, and its trouble may
be its own (a full disk, a broken hypervisor)."""
_NOBODY = -1.0
_ALL = 1.0


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """`stages`: growing shares of the desktops, the last one 1. `soak_s`: how long a stage lasts at
    least. A stage ends when of those that tried at least `good_share` run the image well; when
    more than `failed_share` have failed, all go back."""

    stages: tuple[float, ...] = (0.01, 0.10, 1.0)
    soak_s: float = 1800.0
    good_share: float = 0.8
    failed_share: float = 0.2


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far one image is. `state` is a wire.images.RolloutState."""

    state: str
    share: float = 0.0
    """Of the stage it is in."""
    cutoff: float = _NOBODY
    earlier_cutoff: float = _NOBODY
    """Of the stage before: desktops placed above it are this stage's newcomers."""
    since: float = 0.0
    """When the stage, or the state, began."""
    widened_at: float = 0.0
    before: str | None = None
    """Of an image that is or was current: the one it took the place of."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Desk:
    """A desktop that can use the image, and what it last said about it: `use` is a
    wire.images.UseState, ASKED or empty, `at` since when."""

    machine: str
    place: float
    reachable: bool = True
    use: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Tally:
    """Members of a stage by what they do. `good + failed + trying` have tried."""

    desks: int = 0
    members: int = 0
    good: int = 0
    failed: int = 0
    trying: int = 0
    fetching: int = 0
    waiting: int = 0
    """On, but not idle since."""
    off: int = 0
    newcomers: int = 0
    newcomers_good: int = 0
    newcomers_failed: int = 0


def place(image: str, machine: str) -> float:
    """Where a desktop stands in the queue for an image: 0 to below 1, another one per image."""
    digest = hashlib.sha256(f"{image} {machine}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def is_member(rollout: Rollout, where: float) -> bool:
    return where <= rollout.cutoff


def begin(policy: RolloutPolicy, desks: Sequence[Desk], now: float, *, has_base: bool) -> Rollout:
    """Start at the first stage, or, where there is no image to go back to, with all at once:
    desktops without an image have nothing to lose."""
    return _entered(Rollout("rolling"), policy.stages[0] if has_base else _ALL, desks, now)


def _entered(rollout: Rollout, share: float, desks: Sequence[Desk], now: float) -> Rollout:
    """The stage of `share`: at least one desktop, and among its newcomers one that is on."""
    cutoff = rollout.cutoff
    if share >= _ALL:
        cutoff = _ALL
    elif desks:
        places = sorted(desk.place for desk in desks)
        wanted = max(1, math.ceil(share * len(places) - 1e-9))
        cutoff = max(cutoff, places[wanted - 1])
    entered = replace(
        rollout, state="rolling", share=share, cutoff=cutoff, earlier_cutoff=rollout.cutoff,
        since=now, widened_at=now, why="",
    )  # fmt: skip
    newcomers = _newcomers(entered, desks)
    if newcomers and not any(desk.reachable for desk in newcomers):
        return _with_one_more(entered, desks, now)
    return entered


def _newcomers(rollout: Rollout, desks: Sequence[Desk]) -> list[Desk]:
    return [one for one in desks if rollout.earlier_cutoff < one.place <= rollout.cutoff]


def _with_one_more(rollout: Rollout, desks: Sequence[Desk], now: float) -> Rollout:
    beyond = [one.place for one in desks if one.reachable and one.place > rollout.cutoff]
    return replace(rollout, cutoff=min(beyond), widened_at=now) if beyond else rollout


def tally(rollout: Rollout, policy: RolloutPolicy, desks: Sequence[Desk], now: float) -> Tally:
    """Count what the members do. A trial counts for a while only, see TRIAL_COUNTS_S."""
    counts = dict.fromkeys(("good", "failed", "trying", "fetching", "waiting", "off"), 0)
    members = [desk for desk in desks if is_member(rollout, desk.place)]
    for desk in members:
        counts[_doing(desk, policy, now)] += 1
    newcomers = _newcomers(rollout, desks)
    return Tally(
        desks=len(desks), members=len(members), newcomers=len(newcomers),
        newcomers_good=sum(desk.use == "good" for desk in newcomers),
        newcomers_failed=sum(desk.use == "failed" for desk in newcomers), **counts,
    )  # fmt: skip


def _doing(desk: Desk, policy: RolloutPolicy, now: float) -> str:
    if desk.use in ("good", "failed"):
        return desk.use
    if desk.use == "trial" and now - desk.at <= max(policy.soak_s, TRIAL_COUNTS_S):
        return "trying"
    if not desk.reachable:
        return "off"
    return "fetching" if desk.use == "fetching" else "waiting"


def fails(rollout: Rollout, policy: RolloutPolicy, found: Tally) -> bool:
    """Have too many of those that tried failed?"""
    least = min(LAST_STAGE_FAILURES, found.members) if rollout.share >= _ALL else 1
    tried = found.good + found.failed
    return found.failed >= max(1, least) and found.failed > policy.failed_share * tried


def advance(
    rollout: Rollout, policy: RolloutPolicy, desks: Sequence[Desk], now: float, *, has_before: bool
) -> Rollout:
    """One step, if one is due: the next stage, current, or rolled back. Call it every minute.

    A paused rollout stands still. `has_before`: there is an image that everybody would go back to;
    without one a current image stays, whatever happens.
    """
    if rollout.state not in ("rolling", "current"):
        return rollout
    if rollout.since > now:  # the clock was set back: wait anew rather than for years
        rollout = replace(rollout, since=now, widened_at=now)
    found = tally(rollout, policy, desks, now)
    if fails(rollout, policy, found) and (has_before or rollout.state == "rolling"):
        words = f"{found.failed} of {found.good + found.failed} desktops that tried it failed"
        return replace(rollout, state="rolled_back", since=now, why=words)
    if rollout.state == "current":
        return rollout
    if not found.members:
        return _recut(rollout, desks, now)
    if not _has_ended(rollout, policy, found, now):
        return _widened(rollout, policy, desks, now)
    if rollout.share >= _ALL:
        return replace(rollout, state="current", since=now, why="")
    share = next((one for one in policy.stages if one > rollout.share), _ALL)
    return _entered(rollout, share, desks, now)


def _has_ended(rollout: Rollout, policy: RolloutPolicy, found: Tally, now: float) -> bool:
    if now - rollout.since < policy.soak_s or not found.good:
        return False
    return not _learns(rollout, found) and _is_good(rollout, policy, found)


def _learns(rollout: Rollout, found: Tally) -> bool:
    """Is there a newcomer to wait for, because none has shown yet that it runs the image well?"""
    tried_in_vain = _forgiven(rollout, found, found.newcomers_failed)
    return found.newcomers > tried_in_vain and not found.newcomers_good


def _is_good(rollout: Rollout, policy: RolloutPolicy, found: Tally) -> bool:
    """Do enough of those that tried run it well?"""
    failed = found.failed - _forgiven(rollout, found, found.failed)
    return found.good >= policy.good_share * (found.good + failed + found.trying)


def _forgiven(rollout: Rollout, found: Tally, failed: int) -> int:
    """How many of `failed` do not hold the last stage up: the one that undoes nothing, or of four
    PCs with one broken never 80 % would run it well."""
    return failed if rollout.share >= _ALL and found.failed < LAST_STAGE_FAILURES else 0


def _recut(rollout: Rollout, desks: Sequence[Desk], now: float) -> Rollout:
    """The stage lost all its desktops, or began before there were any."""
    if not desks:
        return rollout
    return replace(_entered(rollout, rollout.share, desks, now), earlier_cutoff=_NOBODY)


def _widened(rollout: Rollout, policy: RolloutPolicy, desks: Sequence[Desk], now: float) -> Rollout:
    """One more desktop where the stage's own do not get to try: soon when all are off, after a
    day when they are in use. Not sooner, or all of an office would be members by the evening of a
    busy day, and would start with an image that nobody has tried."""
    waited_for = _newcomers(rollout, desks)
    doing = {_doing(desk, policy, now) for desk in waited_for}
    if not waited_for or doing & {"good", "failed", "trying"}:
        return rollout
    patience_s = UNTRIED_S if any(desk.reachable for desk in waited_for) else policy.soak_s
    if now - rollout.widened_at < patience_s:
        return rollout
    return _with_one_more(rollout, desks, now)


def restarts(rollout: Rollout, action: Action) -> bool:
    """Does this bring back an image that is out of use? What desktops said of it is then void."""
    return action in ("resume", "finish") and rollout.state in ("rolled_back", "replaced")


def changed(
    rollout: Rollout, action: Action, policy: RolloutPolicy, desks: Sequence[Desk], now: float,
    *, has_base: bool, by: str = "an admin",
) -> Rollout:  # fmt: skip
    """What an admin wants. `retry` changes nothing here; the desktops' words are taken back.

    Raises ConflictError where the state does not allow it.
    """
    state = rollout.state
    if restarts(rollout, action):
        again = begin(policy, desks, now, has_base=has_base and action == "resume")
        return replace(again, before=rollout.before)
    if action == "pause" and state == "rolling":
        return replace(rollout, state="paused", why=f"paused by {by}")
    if action == "resume" and state == "paused":
        return replace(rollout, state="rolling", why="")
    if action == "finish" and state in ("rolling", "paused"):
        if rollout.share < _ALL:
            return _entered(rollout, _ALL, desks, now)
        return replace(rollout, state="current", since=now, why="")
    if action == "roll_back" and state in ("rolling", "paused", "current"):
        return replace(rollout, state="rolled_back", since=now, why=f"rolled back by {by}")
    if action == "retry" and state in ("rolling", "paused", "current"):
        return rollout
    words = state.replace("_", " ")
    raise ConflictError(
        f"This image is {words}: '{action.replace('_', ' ')}' does not fit that.",
        "Images that are rolling out can be paused, finished and rolled back, paused ones "
        "resumed, a current one rolled back; one out of use starts anew with --resume or --finish.",
        "See `officegrid image list`.",
    )


# --- what one desktop is told -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer:
    """An image that desktops may be told to run."""

    id: str
    version: int
    name: str
    formats: Collection[str]
    rollout: Rollout


def chosen(
    offers: Sequence[Offer], *, machine: str, file_format: str, tried: Mapping[str, str],
    running: str | None,
) -> Offer | None:  # fmt: skip
    """The first image in `offers` (newest rollout, then the current one, then those before it)
    that this desktop is to run; None when there is none.

    `tried`: its uses by image id. One that failed here is never chosen again, until ASKED.
    """
    for offer in offers:
        use = tried.get(offer.id, "")
        if file_format not in offer.formats or use == "failed":
            continue
        if offer.rollout.state == "paused":
            if offer.id == running or use in ("trial", "good"):
                return offer
        elif offer.rollout.state != "rolling" or is_member(offer.rollout, place(offer.id, machine)):
            return offer
    return None


# --- for people and for storage -----------------------------------------------------------------


def words(rollout: Rollout, policy: RolloutPolicy, found: Tally, now: float) -> str:
    """What happens with an image and what it waits for, in sentences."""
    if rollout.state == "rolled_back":
        return f"Out of use: {rollout.why}."
    if rollout.state == "replaced":
        return f"Out of use: {rollout.why or 'a newer image took its place'}."
    counted = _counted(rollout, found)
    if rollout.state == "paused":
        return f"{_sentence(rollout.why)} Desktops that started with it keep it. {counted}"
    if rollout.state == "current":
        return f"For all desktops. {counted}"
    if not found.members:
        return "No desktop that could use it reports. It waits for one."
    return f"{counted[:-1]}; {_waits_for(rollout, policy, found, now)}."


def _counted(rollout: Rollout, found: Tally) -> str:
    whose = "desktops" if rollout.share >= _ALL else "desktops of this stage"
    if found.members == 1:
        whose = whose.replace("desktops", "desktop")
    parts = [f"{found.good} of {found.members} {whose} {_verb(found.good, 'run')} it well"]
    if found.failed:
        parts.append(f"{found.failed} failed")
    if found.trying:
        parts.append(f"{found.trying} {_verb(found.trying, 'try')} it")
    if found.fetching:
        parts.append(f"{found.fetching} {_verb(found.fetching, 'fetch')} it")
    if found.waiting:
        has = "has" if found.waiting == 1 else "have"
        parts.append(f"{found.waiting} {has} not been idle yet")
    if found.off:
        parts.append(f"{found.off} {'is' if found.off == 1 else 'are'} off or drained")
    return "; ".join(parts) + "."


def _verb(count: int, verb: str) -> str:
    if count != 1:
        return verb
    return {"run": "runs", "try": "tries", "fetch": "fetches"}[verb]


def _waits_for(rollout: Rollout, policy: RolloutPolicy, found: Tally, now: float) -> str:
    last = rollout.share >= _ALL
    left_s = rollout.since + policy.soak_s - now
    if left_s > 0:
        what = "it is accepted" if last else "next stage"
        return f"{what} in {duration_text(left_s)} at the earliest"
    what = "to be accepted" if last else "for the next stage"
    if _learns(rollout, found):
        return f"it waits {what} until one more desktop runs it well"
    if not _is_good(rollout, policy, found):
        share = f"{100 * policy.good_share:g} %"
        return f"it waits {what} until {share} of those that tried it run it well"
    return "the next step follows within a minute"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else "Paused."


def to_plain(rollout: Rollout) -> dict[str, Any]:
    """For storage as JSON, without the state, which has a column of its own."""
    plain = asdict(rollout)
    del plain["state"]
    return plain


def from_plain(state: str, plain: Mapping[str, Any]) -> Rollout:
    """The inverse of `to_plain`; unknown keys are left out, so that releases can overlap."""
    known = {one.name: plain[one.name] for one in fields(Rollout) if one.name in plain}
    return Rollout(**{**known, "state": state})
