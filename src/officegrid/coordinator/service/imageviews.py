"""Worker images as people see them: the state in words, who runs what, counts for metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast, get_args

from officegrid.coordinator.service import images
from officegrid.coordinator.service.context import Grid
from officegrid.core import rollout as rules
from officegrid.core.rollout import Desk, Rollout, RolloutPolicy, Tally
from officegrid.storage.api import Image, Machine, Tx
from officegrid.wire.images import (
    ImageList,
    ImageSpec,
    ImageUseView,
    ImageView,
    RolloutState,
    UseState,
)

USE_STATES: tuple[UseState, ...] = get_args(UseState)
OUT_OF_USE = ("rolled_back", "replaced")
UNSAID = "Its VM is made from this image; how it does is not told."


def image_list(tx: Tx, now: float) -> ImageList:
    """All images, newest first, and what the desktops without one of them do."""
    machines = tx.machines()
    said = [one.status["image"] for one in machines if _says_something(one)]
    return ImageList(
        images=[_view(tx, image, machines, now) for image in tx.images()],
        elsewhere=sum(bool(one["pinned"]) for one in said),
        without=sum(one["running"] is None and not one["pinned"] for one in said),
    )


def image_view(tx: Tx, image: Image, now: float) -> ImageView:
    """One image with the desktops that have said something about it, or run it, by name."""
    machines = tx.machines()
    names = {one.id: one.name for one in machines if not one.revoked}
    on_it = runs_on(machines, image.id)
    uses = [
        ImageUseView(
            machine=use.machine, machine_name=names[use.machine], state=use.state,
            text=use.text, at=use.at, done_bytes=use.done_bytes, total_bytes=use.total_bytes,
            running=use.machine in on_it,
        )
        for use in tx.image_uses(image.id)
        if use.machine in names and use.state in USE_STATES
    ]  # fmt: skip
    silent = on_it - {use.machine for use in uses}  # its word was taken back, or is too old
    uses += [
        ImageUseView(
            machine=one.id, machine_name=one.name, state="trial", text=UNSAID, at=one.last_seen,
            running=True,
        )
        for one in machines if one.id in silent
    ]  # fmt: skip
    view = _view(tx, image, machines, now)
    return view.model_copy(update={"uses": sorted(uses, key=lambda use: use.machine_name)})


def _says_something(agent: Machine) -> bool:
    """Has this agent a VM that is made from an image, or is to be?"""
    said: dict[str, Any] = agent.status.get("image", {})
    return not agent.revoked and bool(said.get("format") or said.get("pinned"))


def _view(tx: Tx, image: Image, machines: Sequence[Machine], now: float) -> ImageView:
    spec = ImageSpec.model_validate(image.spec)
    known, in_force = images.rollout_of(image), images.policy(tx)
    desks = images.fleet(tx, image.id, spec.files, now, machines)
    found = rules.tally(known, in_force, desks, now)
    on_it = runs_on(machines, image.id)
    # What a desktop once said of an image that it has left since is its story, not what it runs.
    past = image.state in OUT_OF_USE
    uses = Counter(
        desk.use for desk in desks if not past or desk.use != "good" or desk.machine in on_it
    )
    return ImageView(
        id=image.id, version=image.version, name=image.name, pushed_by=image.pushed_by,
        worker_version=spec.worker_version, created_at=image.created_at,
        state=cast(RolloutState, image.state), share=_share(known, found),
        words=rules.words(known, in_force, found, now),
        sizes={name: file.size for name, file in spec.files.items()},
        counts={state: uses[state] for state in USE_STATES if uses[state]},
        running=len(on_it), about=spec.about,
    )  # fmt: skip


def runs_on(machines: Sequence[Machine], image_id: str) -> set[str]:
    """Ids of the desktops whose VM is made from this image."""
    said = ((one.id, one.status.get("image", {})) for one in machines if not one.revoked)
    return {machine for machine, image in said if image.get("running") == image_id}


def _share(known: Rollout, found: Tally) -> float:
    """Of the desktops that are to run it: of ten PCs the 1 % stage is one, which is 10 %."""
    if known.state == "current":
        return 1.0
    if known.state not in ("rolling", "paused"):
        return 0.0
    return found.members / found.desks if found.desks else known.share


def measured(
    grid: Grid, tx: Tx, agents: Sequence[Machine], now: float
) -> list[tuple[int, float, Counter[str]]]:
    """For metrics: (version, share, desktops by use state) of the image that rolls out and of the
    current one."""
    rows = []
    for offer in images.offers(grid, tx):
        if offer.rollout.state not in ("rolling", "paused", "current"):
            continue
        desks: list[Desk] = images.fleet(tx, offer.id, offer.formats, now, agents)
        found = rules.tally(offer.rollout, RolloutPolicy(), desks, now)
        uses = Counter[str](desk.use for desk in desks if desk.use in USE_STATES)
        rows.append((offer.version, _share(offer.rollout, found), uses))
    return rows


def newest_was_rolled_back(tx: Tx) -> bool:
    return any(image.state == "rolled_back" for image in tx.images(limit=1))


def spec_of(image: Image) -> ImageSpec:
    """What was pushed, for agents that fetch it."""
    return ImageSpec.model_validate(image.spec)
