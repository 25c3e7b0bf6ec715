"""The first half of a build: a root with the distribution's packages, kept for the next build.

What the package indexes say decides which packages there are. So the base is kept under a digest
of the indexes and of the commands that made it: while neither changes, the next build begins with
the very same base, downloads nothing but the indexes, and takes a fraction of the time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path

from officegrid.core.errors import UnavailableError
from officegrid.image.family import Command, Family
from officegrid.image.recipe import Recipe
from officegrid.image.run import Runner

_MOST_INDEX_BYTES = 20_000_000
_INDEX_TIMEOUT_S = 60.0
_KEPT_BASES = 2
_KEPT_DAYS = 90
_TAR = ("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sparse")


def fetch_indexes(addresses: tuple[str, ...]) -> dict[str, str]:
    """Address -> text. Raises UnavailableError that names the mirror."""
    return {address: _fetch(address) for address in addresses}


def _fetch(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=_INDEX_TIMEOUT_S) as reply:
            data: bytes = reply.read(_MOST_INDEX_BYTES)
            return data.decode(errors="replace")
    except (OSError, ValueError) as error:
        code = error.code if isinstance(error, urllib.error.HTTPError) else None
        why = f"It answered with status {code}." if code else f"{getattr(error, 'reason', error)}."
        raise UnavailableError(
            f"The package mirror cannot be reached: {address}",
            why,
            "Name another with --mirror and --security-mirror, or set http_proxy and https_proxy.",
        ) from None


def newest_date(indexes: dict[str, str]) -> int:
    """The date of the newest index, in seconds since the epoch: Debian's `Date:` (RFC 1123),
    repomd's `<revision>`; 0 where none has a date."""
    found = [0]
    for text in indexes.values():
        date = re.search(r"^Date: (.+)$", text, re.MULTILINE)
        if date:
            when = parsedate_to_datetime(date.group(1))
            found.append(int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()))
        revision = re.search(r"<revision>(\d{9,10})</revision>", text)
        if revision:
            found.append(int(revision.group(1)))
    return max(found)


def make(
    run: Runner, family: Family, recipe: Recipe, root: Path, cache: Path, scratch: Path
) -> dict[str, str]:
    """Fill `root`; sets `run.epoch_s` from the indexes unless it is set. Gives the indexes' own
    digests by address. Raises UnavailableError, BuildError."""
    downloads = cache / "packages" / f"{family.name}-{recipe.release}"
    downloads.mkdir(parents=True, exist_ok=True)
    before = scratch / "before"
    plan = family.plan(recipe, root, before, downloads)
    indexes = fetch_indexes(plan.indexes)
    run.epoch_s = run.epoch_s or newest_date(indexes)
    digests = {
        address: hashlib.sha256(text.encode()).hexdigest() for address, text in indexes.items()
    }
    kept = cache / f"base-{_key(family, recipe, digests, run.epoch_s)}.tar"
    if kept.exists():
        run.step(f"packages, from {kept}")
        root.mkdir()
        run.run([*_TAR, "-C", str(root), "-xpf", str(kept)], "The kept base cannot be unpacked.",
                f"Delete {kept} and build again.")  # fmt: skip
        os.utime(kept)
        return digests
    run.step(f"packages of {family.name} {recipe.release}")
    for name, text in plan.files.items():
        path = before / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    for command in plan.commands:
        _execute(run, root, command)
    for leaving in family.leavings():
        _remove_all(root, leaving)
    draft = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        run.run([*_TAR, "--sort=name", "-C", str(root), "-cpf", str(draft), "."],
                "The base could not be kept for the next build.")  # fmt: skip
        draft.replace(kept)
    finally:
        draft.unlink(missing_ok=True)
    _forget_old(cache)
    return digests


def _execute(run: Runner, root: Path, command: Command) -> None:
    if command.in_root:
        run.run_in_root(root, list(command.argv), command.what, command.fix)
    else:
        run.run(list(command.argv), command.what, command.fix)


def _remove_all(root: Path, pattern: str) -> None:

    for path in root.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _key(family: Family, recipe: Recipe, digests: dict[str, str], epoch_s: int) -> str:
    """Independent of where this build works: the plan is asked for fixed places."""
    plan = family.plan(recipe, Path("/root"), Path("/before"), Path("/downloads"))
    text = repr((plan.files, plan.commands, sorted(digests.items()), epoch_s))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _forget_old(cache: Path) -> None:
    bases = sorted(cache.glob("base-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    old = time.time() - _KEPT_DAYS * 86_400
    stale = [path for path in (cache / "packages").rglob("*.deb") if path.stat().st_mtime < old]
    for path in [*bases[_KEPT_BASES:], *stale]:
        path.unlink(missing_ok=True)


def check_cache(cache: Path) -> None:
    """Raises UnavailableError where nothing can be kept there."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "wheels").mkdir(exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"The folder for downloads, {cache}, cannot be made.",
            f"{error.strerror or error}.",
            "Name another with --cache.",
        ) from None
