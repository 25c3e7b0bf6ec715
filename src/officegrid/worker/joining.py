"""How a worker gets its identity by itself: from a seed, or as a copy of another worker.

Whoever starts the worker in a VM (`officegrid.guest`) writes what it has to do into the file that
OFFICEGRID_SEED names:

    {"kind": "join" | "clone", "instance_id", "name", "url", "code" (join only), "hardware_id"}

What the worker leaves in its home: `profile.json` (`transport.profile`) and `identity.json`,
{"instance_id", "hardware_id"}: for which seed and on which computer it got the profile. Both are
first written into one file, `joined.json`: a crash at any moment leaves the old identity, or the
new one whole. The seed file is removed at the very end.

A join code and a token are secrets: no log line and no error quotes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from officegrid.core.backoff import delay_s
from officegrid.core.errors import (
    AuthError,
    OfficeGridError,
    UnavailableError,
    UsageError,
)
from officegrid.transport.facts import machine_facts
from officegrid.transport.http import Connection
from officegrid.transport.join import join
from officegrid.transport.private_file import write_private
from officegrid.transport.profile import Profile, load_profile, profile_path, save_profile
from officegrid.wire.join import CLONE_PATH, CloneRequest, JoinReply
from officegrid.worker.log import get_logger

log = get_logger("joining")

SEED_VARIABLE = "OFFICEGRID_SEED"
IDENTITY_FILE = "identity.json"
JOURNAL_FILE = "joined.json"
BACKOFF_BASE_S = 1.0
BACKOFF_CAP_S = 60.0
LOOK_EVERY_S = 1.0
"""How often a worker whose seed is no good looks for another one."""
REFUSED_AGAIN_S = 3600.0
"""Who was refused tries again after this long: the grid admin may have mended it."""
_FINAL = frozenset({
    "join_code", "usage", "forbidden", "invalid_request", "too_many_copies", "not_found",
})  # fmt: skip
"""Codes of errors that the same request meets again. Not `auth`: a wrong clock, or a server that is
not the right one yet, may all be right in a moment."""
_SEED_FIX = "Waiting for another seed: the agent writes one when it boots the VM again."
_FIELDS = ("kind", "instance_id", "name", "url")


@dataclass(frozen=True, slots=True)
class Seed:
    """The content of the seed file."""

    kind: Literal["join", "clone"]
    instance_id: str
    name: str
    url: str
    code: str = field(default="", repr=False)
    hardware_id: str = ""


class Stopped(Exception):  # noqa: N818
    """The worker was told to stop while it waited."""


def seed_path() -> Path | None:
    """The file that OFFICEGRID_SEED names, whether or not it exists."""
    named = os.environ.get(SEED_VARIABLE, "")
    return Path(named) if named else None


def read_seed(path: Path) -> Seed | None:
    """None when there is no file. Raises UsageError for one that is damaged."""
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _bad_seed(path, getattr(error, "strerror", None) or "It is not JSON.") from None
    if not isinstance(told, dict) or any(not isinstance(told.get(n), str) for n in _FIELDS):
        raise _bad_seed(path, f"It lacks one of {', '.join(_FIELDS)}.")
    kind, code = told["kind"], told.get("code", "")
    if kind not in ("join", "clone") or (kind == "join" and not (code and isinstance(code, str))):
        raise _bad_seed(path, "Its kind is not join with a code, nor clone.")
    return Seed(
        kind, told["instance_id"], told["name"], told["url"],
        code if kind == "join" else "", str(told.get("hardware_id", "")),
    )  # fmt: skip


def _bad_seed(path: Path, why: str) -> UsageError:
    return UsageError(
        "What this worker was told for joining cannot be used.",
        f"{path}: {why}",
        "Restart the VM: the agent tells it anew.",
    )


class Joining:
    """Gets a profile into `home`, however long it takes. Used by one thread, under the worker's
    lock. `stopping` ends every wait with Stopped."""

    def __init__(self, home: Path, stopping: threading.Event) -> None:
        self._home = home
        self._stopping = stopping
        self._random = random.SystemRandom()

    def from_seed(self, path: Path) -> None:
        """Do what the seed file says, if there is one; then it is gone and the profile is there.

        While the coordinator is away this tries for hours. A seed that is refused or damaged is
        waited out too: whoever writes it may replace it, at the latest at the next boot.
        Raises Stopped, and UnavailableError when an identity cannot be put into its place.
        """
        self._finish()
        attempt, said = 0, ""
        while True:
            seen = _look(path)
            try:
                seed = read_seed(path)
                if seed is not None and not self._is_done(seed):
                    self._carry_out(seed)
                if seed is not None or not said:
                    _drop(path)
                    return
                wait_s = REFUSED_AGAIN_S  # it was taken away: another one will come
            except OfficeGridError as error:
                said = _tell(error, said, _SEED_FIX)
                wait_s = self._pause_s(error, attempt)
                attempt += 1
            if self._wait(wait_s, path, seen):
                log.info("another_seed")
                attempt, said = 0, "another seed"

    def as_copy(self, hardware_id: str) -> None:
        """This worker was told that it is a copy: get an identity of its own, however long that
        takes.

        A copy that is refused waits as well. To end would not help: whoever supervises the worker
        starts it again at once, and each start asks for work under an identity that is not its
        own, which is an alarm. It goes on when somebody joins it by hand: another profile is
        there then. Raises Stopped; AuthError when there is no profile.
        """
        path = profile_path(self._home)
        seen = _look(path)
        old = load_profile(self._home)
        instance_id = str(_read_json(self._home / IDENTITY_FILE).get("instance_id", ""))
        seed = Seed("clone", instance_id, old.name, old.url, "", hardware_id)
        attempt, said = 0, ""
        while True:
            try:
                self._clone(seed)
                return
            except OfficeGridError as error:
                said = _tell(error, said, error.fix)
                wait_s = self._pause_s(error, attempt)
                attempt += 1
            if self._wait(wait_s, path, seen):
                log.info("another_identity")
                return

    # --- one try

    def _carry_out(self, seed: Seed) -> None:
        if seed.kind == "clone":
            self._clone(seed)
            return
        # A full disk must show before the code is used up.
        _write_private(self._home / JOURNAL_FILE, {})
        facts: dict[str, Any] = machine_facts()
        if seed.hardware_id:
            facts["hardware_id"] = seed.hardware_id
        self._keep(seed, join(seed.url, seed.code, name=seed.name or "worker", facts=facts))

    def _clone(self, seed: Seed) -> None:
        old = load_profile(self._home)
        url = seed.url or old.url
        request = CloneRequest(
            hardware_id=seed.hardware_id, name=(seed.name or old.name)[:255],
            facts={**machine_facts(), "hardware_id": seed.hardware_id},
        )  # fmt: skip
        try:
            with Connection(url, old.ca_pem, old.token, retry_s=0.0) as connection:
                # May be repeated: the same hardware is the same machine each time.
                reply = connection.call("POST", CLONE_PATH, body=request, reply=JoinReply)
        except OfficeGridError as error:
            if error.code != "not_a_copy":
                raise
            self._keep(seed, old)
            return
        mark = "".join(c for c in seed.hardware_id if c.isalnum())[:6]
        name = f"{old.name}-{mark or 'copy'}"
        new = Profile(url, old.ca_pem, reply.token, reply.machine_id, reply.role, name)
        self._keep(seed, new)

    # --- keeping it

    def _is_done(self, seed: Seed) -> bool:
        """Has this very seed been carried out, and only the file is left?"""
        kept = _read_json(self._home / IDENTITY_FILE)
        same = kept.get("instance_id") == seed.instance_id
        same = same and kept.get("hardware_id", "") == seed.hardware_id
        if not same:
            return False
        try:
            load_profile(self._home)
        except AuthError:
            return False
        return True

    def _keep(self, seed: Seed, profile: Profile) -> None:
        identity = {"instance_id": seed.instance_id, "hardware_id": seed.hardware_id}
        journal = {"profile": asdict(profile), "identity": identity}
        _write_private(self._home / JOURNAL_FILE, journal)
        self._finish()
        log.info(
            "GRID-JOINED", machine=profile.machine_id, name=profile.name, url=profile.url,
            kind=seed.kind, instance=seed.instance_id,
        )  # fmt: skip

    def _finish(self) -> None:
        """Put the identity of the journal, if there is one, in its place."""
        path = self._home / JOURNAL_FILE
        journal = _read_json(path)
        profile, identity = journal.get("profile"), journal.get("identity")
        if isinstance(profile, dict) and isinstance(identity, dict):
            with contextlib.suppress(TypeError):  # of another release, with other fields
                save_profile(Profile(**profile), self._home)
                _write_private(self._home / IDENTITY_FILE, identity)
        _drop(path)

    # --- waiting

    def _pause_s(self, error: OfficeGridError, attempt: int) -> float:
        """How long to wait after this error before the next try."""
        if error.code in _FINAL:
            return REFUSED_AGAIN_S
        chance = self._random.random()
        return delay_s(attempt, base_s=BACKOFF_BASE_S, cap_s=BACKOFF_CAP_S, random01=chance)

    def _wait(self, seconds: float, path: Path, seen: object) -> bool:
        """Wait, or until there is another file at `path` than the one seen: then True."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            if self._stopping.wait(min(left_s, LOOK_EVERY_S)):
                raise Stopped
            if _look(path) not in (None, seen):
                return True
        return False


def _tell(error: OfficeGridError, said: str, fix: str) -> str:
    """Log an error once, however often it comes back; returns what was said last. `fix` is what
    helps when the same request would be refused again."""
    words = " ".join(filter(None, (error.what, error.why)))
    if words == said:
        return said
    if error.code in _FINAL:
        if error.code == "join_code":
            fix += " This shows also when the answer to an earlier try was lost."
        log.error("refused", what=error.what, why=error.why, fix=fix)
    else:
        log.warning("not_joined_yet", what=error.what, why=error.why)
    return words


def _look(path: Path) -> tuple[int, int, int] | None:
    """Changes with every new file of that name."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _drop(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # Harmless: a seed that was carried out is known to be.
        log.warning("not_removed", path=path, why=error.strerror or error)


def _read_json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    return {}


def _write_private(path: Path, value: object) -> None:
    """Replace a JSON file, readable by its owner only, so that a crash leaves the old or the new
    one. Raises UnavailableError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, json.dumps(value).encode())
    except OSError as error:
        raise UnavailableError(
            f"This worker's identity cannot be kept in {path.parent}.",
            error.strerror or str(error),
            "Make the folder writable, or free some disk space.",
        ) from None
