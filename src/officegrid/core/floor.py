"""The floor: how old a program may be and still get work; and what that means, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from officegrid.core.versions import is_older


@dataclass(frozen=True, slots=True)
class Floor:
    """The oldest that still gets work: versions of officegrid, and the number of an image as
    `officegrid image list` has it. "" and 0: any."""

    worker: str = ""
    agent: str = ""
    image: int = 0


Kind = Literal["worker", "agent", "image"]
OWN_IMAGE = -1
"""In place of an image's version: it is none of those that were pushed."""


@dataclass(frozen=True, slots=True)
class Stale:
    """A program below the floor. `has` "": it does not say which version it is."""

    kind: Kind
    has: str
    floor: str


def stale_worker(version: str, floor: Floor) -> list[Stale]:
    """`version` "": it did not tell one. Such a worker is older than all that do."""
    below = bool(floor.worker) and is_older(version, floor.worker)
    return [Stale("worker", version, floor.worker)] if below else []


def stale_desk(agent: str, image: int | None, floor: Floor) -> list[Stale]:
    """`agent`: version of the desktop's agent. `image`: the number of what its VM is made from;
    None where it has no VM, OWN_IMAGE where that was never pushed."""
    found = []
    if floor.agent and is_older(agent, floor.agent):
        found.append(Stale("agent", agent, floor.agent))
    if floor.image and image is not None and image < floor.image:
        has = "" if image == OWN_IMAGE else str(image)
        found.append(Stale("image", has, str(floor.image)))
    return found


def short(stale: Stale) -> str:
    """ "worker 0.1.0 is below the floor 0.2.0"."""
    has = stale.has or ("of unknown version" if stale.kind != "image" else "of its own")
    return f"{stale.kind} {has} is below the floor {stale.floor}"


def told(stale: Stale) -> str:
    """For the program itself: what is wrong and what it means, one sentence."""
    return f"{_is(stale)}, so this machine gets no units until it is updated."


def _is(stale: Stale) -> str:
    match stale.kind:
        case "worker":
            what = f"The worker runs officegrid {stale.has}"
            what = what if stale.has else "The worker does not say which officegrid it runs"
        case "agent":
            what = f"The desktop's agent runs officegrid {stale.has}"
            what = what if stale.has else "The desktop's agent does not say which officegrid it is"
        case _:
            what = f"The VM is made from image version {stale.has}"
            what = what if stale.has else "The VM is made from an image that was never pushed"
    return f"{what}, which is below the floor {stale.floor}"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What happens about an old worker. `order`: the version it is told to update to. `failed`: the
    version that did not work there, and why."""

    order: str = ""
    failed: str = ""
    failed_why: str = ""


def why_stale(name: str, stale: Stale, outlook: Outlook) -> list[str]:
    """Sentences: the rule with its numbers, and what would change it."""
    start = f"{name} gets no units: {_lower(_is(stale))}. `officegrid floor` shows that rule."
    match stale.kind:
        case "worker":
            return [start, *_worker_advice(stale, outlook)]
        case "agent":
            return [
                start,
                f"Install officegrid {stale.floor} or newer on that desktop and start its agent "
                "again (`officegrid agent install`); or lower the floor: "
                "`officegrid floor --agent VERSION`.",
            ]
        case _:
            return [
                start,
                f"It changes when that desktop has image {stale.floor} or a newer one: see "
                "`officegrid image list`; or lower the floor: `officegrid floor --image N`.",
            ]


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _worker_advice(stale: Stale, outlook: Outlook) -> list[str]:
    if outlook.failed:
        return [why_failed(outlook)]
    if outlook.order:
        return [f"It is told to update itself to {outlook.order} and does so at its next claim."]
    return [
        f"Push a release of {stale.floor} or newer (`officegrid update push`), install one there, "
        "or lower the floor: `officegrid floor --worker VERSION`."
    ]


def why_failed(outlook: Outlook) -> str:
    """What became of an update that did not work."""
    return (
        f"Its update to {outlook.failed} did not work there: "
        f"{outlook.failed_why.rstrip('.')}. `officegrid update retry` has it try again."
    )
