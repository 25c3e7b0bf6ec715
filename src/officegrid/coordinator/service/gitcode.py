"""What the database knows of code in git: which address a name stands for, and how it fares.

Kept in the setting `git:NAME`. The address may hold a password, so it is never shown as it is.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from officegrid.coordinator.service import pins, versions
from officegrid.coordinator.service.context import Grid, story
from officegrid.coordinator.service.keeping import ACTIVE, ALL
from officegrid.coordinator.service.units import spec_of
from officegrid.core.errors import ConflictError
from officegrid.core.quantities import duration_text
from officegrid.storage.api import Job, Tx, Version
from officegrid.wire.gitref import GitAddress


@dataclass(frozen=True, slots=True)
class GitState:
    """`commit`: what the newest version was made of. `trouble`: why it cannot be fetched now,
    since the time `since`; empty: it can."""

    url: str = field(repr=False)
    ref: str
    folder: str
    commit: str = ""
    trouble: str = ""
    since: float = 0.0

    @property
    def address(self) -> GitAddress:
        return GitAddress(url=self.url, ref=self.ref, folder=self.folder)


def state_of(tx: Tx, name: str) -> GitState | None:
    text = tx.setting(_key(name))
    return None if text is None else GitState(**json.loads(text))


def _key(name: str) -> str:
    return f"git:{name}"


def _put(tx: Tx, name: str, state: GitState) -> None:
    tx.put_setting(_key(name), json.dumps(asdict(state)))


def live(tx: Tx) -> dict[str, GitState]:
    """By name, what jobs and schedules that have not ended get at its newest."""
    found = {}
    for job in tx.jobs(states=ACTIVE, limit=ALL):
        code = spec_of(job).code
        if code is not None and code.n is None and code.name not in found:
            state = state_of(tx, code.name)
            if state is not None:
                found[code.name] = state
    return found


def is_newest(tx: Tx, state: GitState | None, name: str, commit: str) -> Version | None:
    """The newest version of the name, if it was made of this commit and is still there."""
    if state is None or state.commit != commit:
        return None
    newest = tx.version("code", name)
    # Going back by hand stays until the branch moves; a folder that somebody pushed under the name
    # before it was one of git does not.
    kept = newest is not None and newest.origin.startswith(("commit ", "back to version "))
    return newest if kept else None


def took(
    grid: Grid, tx: Tx, address: GitAddress, commit: str, digest: str | None, by: str, now: float
) -> tuple[Version, bool, list[str]]:
    """The repository was reached. Of a new commit, `digest` is its bundle, else None.

    Returns the newest version, whether that is a new one, and the jobs that switched to it."""
    before = state_of(tx, address.name)
    new = False
    if digest is None:
        version = versions.find(tx, "code", address.name)
    else:
        ref = f"@{address.ref}" if address.ref else ""
        origin = f"commit {commit[:12]} of {address.bare_url}{ref}"
        if address.folder:
            origin += f", folder {address.folder}"
        version, new = versions.push(
            tx, "code", address.name, digest, by=by, origin=origin, now=now
        )
    _put(tx, address.name, GitState(address.url, address.ref, address.folder, commit))
    if before is not None and before.trouble:
        _tell(tx, address.name, f"code from {address.shown} can be fetched again", now)
    switched = pins.switch_followers(grid, tx, "code", address.name, now) if new else []
    return version, new, switched


def check_free(tx: Tx, name: str) -> None:
    """Raises ConflictError for a name whose versions come from git only."""
    state = state_of(tx, name)
    if state is not None:
        raise ConflictError(
            f"The versions of {name} come from git.",
            f"They are what is at {state.address.shown}.",
            "Commit there, or push under another name.",
        )


def failed(tx: Tx, name: str, trouble: str, now: float) -> bool:
    """The repository was not reached, or has nothing to give. Told once; was it told now?"""
    state = state_of(tx, name)
    if state is None or state.trouble:
        return False
    _put(tx, name, GitState(state.url, state.ref, state.folder, state.commit, trouble, now))
    newest = tx.version("code", name)
    kept = f"version {newest.n} stays in use" if newest is not None else "there is no version of it"
    text = f"code from {state.address.shown} cannot be fetched: {trouble}; {kept}"
    _tell(tx, name, text, now)
    return True


def _tell(tx: Tx, name: str, text: str, now: float) -> None:
    tx.add_event(now, name, "git", text)
    for job in tx.jobs(states=ACTIVE, limit=ALL):
        code = spec_of(job).code
        if code is not None and code.n is None and code.name == name:
            story(tx, now, job, "git", text)


def trouble_of(tx: Tx, job: Job, now: float) -> list[str]:
    """Of a job that has not ended: the sentence that its code cannot be fetched, if so."""
    code = spec_of(job).code
    if job.state not in ACTIVE or code is None or code.n is not None:
        return []
    state = state_of(tx, code.name)
    if state is None or not state.trouble:
        return []
    since = duration_text(max(0.0, now - state.since))
    return [
        f"Its code, {state.address.shown}, could not be fetched for {since}: {state.trouble}. "
        "The last version that was fetched is used meanwhile."
    ]
