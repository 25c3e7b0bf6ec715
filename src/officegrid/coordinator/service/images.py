"""Worker images: taking them in, rolling them out, telling each desktop which one to run.

An agent's `status` column holds, under "image",

    {"format", "running", "pinned",   what its agent said last, see wire.images.ImageReport
     "uses": {image id: {"state", "at", "text", "done_bytes", "total_bytes", "told_at"?}}}

The uses are those of the table `image_uses`, kept here a second time so that a report, of which
there are many, needs no further row; both are written in the same transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from officegrid.coordinator.service.context import Grid, next_number
from officegrid.core import rollout as rules
from officegrid.core.errors import ConflictError, NotFoundError
from officegrid.core.rollout import ASKED, Action, Desk, Offer, Rollout, RolloutPolicy
from officegrid.storage.api import Image, ImageUse, Machine, Tx
from officegrid.wire.images import ImageOrder, ImageReport, ImageSpec, RolloutSettings

SETTINGS = "image_rollout"  # the setting that holds the policy
CHANGED = "images_changed"  # the setting that gets another value with each change to an image
HEARD_S = 600.0
"""A desktop heard of within this time counts as on."""
USES_KEPT = 20
"""Of each desktop, the newest ones, in its agent's row."""
RETRY_TOLD_S = 300.0
"""So long after it was told to try again, a desktop may still say that the image has failed."""
NEWS_LOOKS = 3
_CHAIN = 5
_PREFIX_CHARS = 6


# --- policy ------------------------------------------------------------------------------------


def settings(tx: Tx) -> RolloutSettings:
    """How images go out, as the admin set it; what was not set is at its default."""
    text = tx.setting(SETTINGS)
    return RolloutSettings() if text is None else RolloutSettings.model_validate_json(text)


def set_settings(tx: Tx, new: RolloutSettings) -> None:
    """Replace them. They count from the next step of any rollout on."""
    tx.put_setting(SETTINGS, new.model_dump_json())


def policy(tx: Tx) -> RolloutPolicy:
    known = settings(tx)
    return RolloutPolicy(
        tuple(known.stages), known.soak_s, known.good_share, known.failed_share
    )  # fmt: skip


# --- images ------------------------------------------------------------------------------------


def id_of(spec: ImageSpec) -> str:
    """SHA-256 of the spec's canonical JSON: sorted keys, no spaces."""
    plain = spec.model_dump(mode="json")
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def push(grid: Grid, tx: Tx, spec: ImageSpec, by: str, now: float) -> Image:
    """Take an image in and begin to roll it out; one that is known already is left as it is.

    All its chunks must be in the store. A rollout under way ends: the newer image takes over.
    """
    image_id = id_of(spec)
    known = tx.image(image_id)
    if known is not None:
        return known
    version = next_number(tx, "image_counter")
    _supersede(grid, tx, f"version {version} was pushed while it rolled out", now)
    desks = fleet(tx, image_id, spec.files, now)
    base = current(tx) is not None
    begun = rules.begin(policy(tx), desks, now, has_base=base)
    image = Image(
        id=image_id, version=version, name=spec.name, state=begun.state,
        spec=spec.model_dump(mode="json"), created_at=now, pushed_by=by,
        rollout=rules.to_plain(begun),
    )  # fmt: skip
    tx.put_image(image, {chunk for file in spec.files.values() for chunk in file.chunks})
    _note_change(grid, tx, image, f"{by} pushed it", now)
    return image


def find(tx: Tx, text: str) -> Image:
    """An image by id, version ("3" or "v3"), name (the newest of that name), or by the beginning
    of its id, in this order: a name that looks like a version hides none. Raises NotFoundError."""
    image = tx.image(text)
    if image is not None:
        return image
    known = tx.images()
    number = text.removeprefix("v")
    version = int(number[:9]) if number.isdecimal() else None
    numbered = [one for one in known if one.version == version]
    if found := numbered or [one for one in known if one.name == text]:
        return found[0]
    starts = [one for one in known if len(text) >= _PREFIX_CHARS and one.id.startswith(text)]
    if len(starts) != 1:
        raise NotFoundError(f"There is no image {text!r}.", fix="See `officegrid image list`.")
    return starts[0]


def rollout_of(image: Image) -> Rollout:
    return rules.from_plain(image.state, image.rollout)


def current(tx: Tx) -> Image | None:
    """The image of all desktops that are in no rollout."""
    return next((one for one in tx.images() if one.state == "current"), None)


def _supersede(grid: Grid, tx: Tx, why: str, now: float, besides: str = "") -> None:
    """End the rollout under way. If there is no image before it, and it has reached all desktops
    and runs well, then it is the image that desktops can go back to."""
    for image in tx.images():
        if image.state not in ("rolling", "paused") or image.id == besides:
            continue
        known = rollout_of(image)
        desks = fleet(tx, image.id, image.spec["files"], now)
        found = rules.tally(known, policy(tx), desks, now)
        proven = found.good > 0 and not rules.fails(known, policy(tx), found)
        if proven and known.share >= 1 and current(tx) is None:
            _save(grid, tx, image, replace(known, state="current", since=now), now)
        else:
            _save(grid, tx, image, replace(known, state="replaced", since=now, why=why), now)


def _save(grid: Grid, tx: Tx, image: Image, new: Rollout, now: float) -> None:
    """Write down a changed rollout, and what follows from it for other images."""
    old = rollout_of(image)
    if new.state == "current" and old.state != "current":
        before = current(tx)
        if before is not None:
            left = replace(rollout_of(before), state="replaced", since=now)
            why = f"version {image.version} took its place"
            _put(grid, tx, before, replace(left, why=why), now)
            new = replace(new, before=before.id)
    _put(grid, tx, image, new, now)
    if old.state == "current" and new.state == "rolled_back":
        fallback = _before(tx, image.id, new)
        if fallback is not None:
            back = replace(rollout_of(fallback), state="current", since=now, why="")
            _put(grid, tx, fallback, back, now)


def _put(grid: Grid, tx: Tx, image: Image, new: Rollout, now: float) -> None:
    tx.put_image(replace(image, state=new.state, rollout=rules.to_plain(new)))
    words = new.state.replace("_", " ")
    text = f"{words} at {100 * new.share:g} %" if new.state == "rolling" else words
    _note_change(grid, tx, image, f"{text}: {new.why}" if new.why else text, now)


def _before(tx: Tx, image_id: str, rollout: Rollout) -> Image | None:
    """The image to go back to: the nearest one before that was not rolled back itself."""
    seen = {image_id}
    while rollout.before is not None and rollout.before not in seen:
        seen.add(rollout.before)
        image = tx.image(rollout.before)
        if image is None:
            return None
        if image.state != "rolled_back":
            return image
        rollout = rollout_of(image)
    return None


def _note_change(grid: Grid, tx: Tx, image: Image, text: str, now: float) -> None:
    tx.put_setting(CHANGED, grid.new_id())
    grid.image_news = NEWS_LOOKS
    tx.add_event(now, image.id, "image", f"Image {image.name}, version {image.version}: {text}.")


# --- rollouts ----------------------------------------------------------------------------------


def fleet(
    tx: Tx, image_id: str, formats: Iterable[str], now: float,
    machines: Sequence[Machine] | None = None,
) -> list[Desk]:  # fmt: skip
    """The desktops that could run an image, and what they last said about it. Those whose agent
    does not say which format it takes, and those with an image of their own, do not count."""
    wanted, desks = set(formats), []
    for agent in tx.machines() if machines is None else machines:
        said: dict[str, Any] = agent.status.get("image", {})
        if agent.revoked or said.get("pinned") or said.get("format") not in wanted:
            continue
        use = said["uses"].get(image_id, {})
        desks.append(
            Desk(
                agent.id, rules.place(image_id, agent.id),
                reachable=now - agent.last_seen < HEARD_S and not agent.drain,
                use=use.get("state", ""), at=use.get("at", 0.0),
            )
        )  # fmt: skip
    return desks


def change(grid: Grid, tx: Tx, image: Image, action: Action, by: str, now: float) -> Image:
    """What an admin wants with an image. Raises ConflictError where it does not fit."""
    known = rollout_of(image)
    base = current(tx)
    has_base = base is not None and base.id != image.id
    if rules.restarts(known, action):
        _forget(tx, image, now, only_failed=False)
    desks = fleet(tx, image.id, image.spec["files"], now)
    new = rules.changed(known, action, policy(tx), desks, now, has_base=has_base, by=by)
    if action == "roll_back" and known.state == "current" and _before(tx, image.id, new) is None:
        raise ConflictError(
            "There is no image to go back to.",
            f"Version {image.version} is the only one that was ever accepted.",
            "Push another image: `officegrid image push DIR`.",
        )
    if rules.restarts(known, action):
        _supersede(grid, tx, f"version {image.version} rolls out again", now, besides=image.id)
    if action == "retry":
        _forget(tx, image, now, only_failed=True)
        _note_change(grid, tx, image, "desktops on which it failed are to try again", now)
    elif new != known:
        _save(grid, tx, image, new, now)
    return find(tx, image.id)


def _forget(tx: Tx, image: Image, now: float, *, only_failed: bool) -> None:
    """Ask desktops to say anew what they think of an image."""
    for use in tx.image_uses(image.id):
        agent = tx.machine(use.machine)
        if agent is None or (only_failed and use.state != "failed"):
            continue
        asked = ImageUse(image.id, use.machine, ASKED, now)
        tx.put_image_use(asked)
        said: dict[str, Any] = agent.status.get("image", {"uses": {}})
        uses = {**said["uses"], image.id: _plain(asked)}
        status = {**agent.status, "image": {**said, "uses": uses}}
        tx.touch_machine(agent.id, status=status)


def steps(tx: Tx, now: float) -> list[tuple[Image, Rollout]]:
    """Which rollouts move on now, and where to. Reads every desktop, so once a minute is enough."""
    if tx.setting(CHANGED) is None:
        return []
    found = []
    machines, images, in_force = tx.machines(), tx.images(), policy(tx)
    base = next((one for one in images if one.state == "current"), None)
    for image in images:
        if image.state not in ("rolling", "current"):
            continue
        known = rollout_of(image)
        is_base = base is not None and base.id == image.id
        has_before = _before(tx, image.id, known) is not None if is_base else base is not None
        desks = fleet(tx, image.id, image.spec["files"], now, machines)
        new = rules.advance(known, in_force, desks, now, has_before=has_before)
        if new.state == "rolled_back":
            new = replace(new, why=new.why + _first_failure(tx, image.id, desks))
        if new != known:
            found.append((image, new))
    return found


def _first_failure(tx: Tx, image_id: str, desks: Sequence[Desk]) -> str:
    failed = {desk.machine for desk in desks if desk.use == "failed"}
    uses = [use for use in tx.image_uses(image_id) if use.machine in failed]
    if not uses:
        return ""
    first = min(uses, key=lambda use: use.at)
    agent = tx.machine(first.machine)
    name = agent.name if agent is not None else first.machine
    return f", first {name}: {first.text.rstrip('.') or 'no reason given'}"


def advance(grid: Grid, tx: Tx, now: float) -> list[str]:
    """Let rollouts move on; a line for the log about each that did.

    One step may change other images too (`_save`). Those wait for the next call: what was found
    out about them is about a state that they have left.
    """
    lines = []
    for image, new in steps(tx, now):
        if tx.image(image.id) != image:
            continue
        _save(grid, tx, image, new, now)
        lines.append(f"version {image.version} {new.state} {100 * new.share:g} % {new.why}".strip())
    return lines


# --- what desktops say and are told ------------------------------------------------------------


def offers(grid: Grid, tx: Tx) -> tuple[Offer, ...]:
    """The images in use: the one that rolls out, the current one, those before it. Read again only
    after a change to any image."""
    mark = tx.setting(CHANGED) or ""
    if grid.image_offers[0] != mark:
        grid.image_offers = (mark, _read_offers(tx))
    return grid.image_offers[1]


def _read_offers(tx: Tx) -> tuple[Offer, ...]:
    images = tx.images()
    found = [one for one in images if one.state in ("rolling", "paused")]
    last = next((one for one in images if one.state == "current"), None)
    while last is not None and last not in found and len(found) < _CHAIN:
        found.append(last)
        last = _before(tx, last.id, rollout_of(last))
    return tuple(
        Offer(one.id, one.version, one.name, frozenset(one.spec["files"]), rollout_of(one))
        for one in found
    )


def reported(
    grid: Grid, tx: Tx, agent: Machine, said: ImageReport | None, now: float
) -> tuple[dict[str, Any], ImageOrder | None]:
    """Take in what an agent says about images: (what its status is to hold, its order).

    The caller writes the status. Rows are written here only when something changed.
    """
    known: dict[str, Any] = agent.status.get("image", {})
    if said is None:
        return known, None
    uses: dict[str, Any] = known.get("uses", {})
    use = None if said.image is None else _news(grid, tx, uses.get(said.image), agent, said, now)
    if use is not None:
        uses = {**uses, use.image: _plain(use)}
        for oldest in sorted(uses, key=lambda one: float(uses[one]["at"]))[:-USES_KEPT]:
            del uses[oldest]
    order = None
    if said.format and not said.pinned:
        states = {image: one["state"] for image, one in uses.items()}
        offer = rules.chosen(
            offers(grid, tx), machine=agent.id, file_format=said.format, tried=states,
            running=said.running,
        )  # fmt: skip
        if offer is not None:
            retry = states.get(offer.id) == ASKED
            if retry and "told_at" not in uses[offer.id]:
                uses = {**uses, offer.id: {**uses[offer.id], "told_at": now}}
            order = ImageOrder(
                id=offer.id, version=offer.version, name=offer.name, retry=retry
            )  # fmt: skip
    memory = {"format": said.format, "running": said.running, "pinned": said.pinned, "uses": uses}
    return memory, order


def _news(
    grid: Grid, tx: Tx, known: dict[str, Any] | None, agent: Machine, said: ImageReport, now: float
) -> ImageUse | None:
    """Write down what changed about the image that the agent speaks of; None: nothing did."""
    if said.image is None or said.state is None:
        return None
    use = ImageUse(
        said.image, agent.id, said.state, now, said.text, said.done_bytes, said.total_bytes
    )
    if known is not None:
        if known["state"] == ASKED and use.state == "failed":
            told_at = known.get("told_at")
            if told_at is None or 0 <= now - told_at < RETRY_TOLD_S:
                return None  # it has not heard yet that it is to try again
        if known["state"] == use.state:
            use = replace(use, at=known["at"])  # since when it is in that state
        if known == _plain(use):
            return None
    elif tx.image(use.image) is None:
        return None
    tx.put_image_use(use)
    if known is None or known["state"] != use.state:
        _tell(tx, agent, use, now)
        grid.image_news = NEWS_LOOKS
    return use


def _plain(use: ImageUse) -> dict[str, Any]:
    return {
        "state": use.state, "at": use.at, "text": use.text,
        "done_bytes": use.done_bytes, "total_bytes": use.total_bytes,
    }  # fmt: skip


_TOLD = {"good": "runs well here", "failed": "failed here"}


def _tell(tx: Tx, agent: Machine, use: ImageUse, now: float) -> None:
    """The desktop's story has how an image ended there, not each step on the way."""
    image = tx.image(use.image) if use.state in _TOLD else None
    if image is not None:
        words = f"Image {image.name}, version {image.version}, {_TOLD[use.state]}"
        text = f"{words}: {use.text}" if use.text else f"{words}."
        tx.add_event(now, agent.id, f"image_{use.state}", text)
