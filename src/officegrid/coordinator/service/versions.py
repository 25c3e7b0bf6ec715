"""Versions of program folders ("code") and reference data ("data"): new ones, old ones back.

A version is never changed. Its number counts from 1 under its name; the newest one that is not
gone is what a job gets that starts now.
"""

from __future__ import annotations

from officegrid.core.errors import ConflictError, NotFoundError
from officegrid.storage.api import Tx, Version

WORDS = {"code": "bundle", "data": "data set"}
LISTS = {"code": "officegrid bundles", "data": "officegrid data list"}


def push(
    tx: Tx, kind: str, name: str, digest: str, *, by: str, origin: str, now: float,
    file_name: str = "",
) -> tuple[Version, bool]:  # fmt: skip
    """(the version of this content, is it new). The newest one's content again makes none."""
    newest = tx.version(kind, name)
    if newest is not None and newest.digest == digest:
        return newest, False
    return _add(tx, kind, name, digest, by, origin, now, file_name), True


def _add(
    tx: Tx, kind: str, name: str, digest: str, by: str, origin: str, now: float, file_name: str
) -> Version:
    last = tx.versions(kind, name=name, limit=1)
    version = Version(kind, name, last[0].n + 1 if last else 1, digest, now, by, origin, file_name)
    tx.add_version(version)
    text = f"{WORDS[kind]} {name}: version {version.n} by {by}" + (f", {origin}" if origin else "")
    tx.add_event(now, name, "version", text, {"kind": kind, "n": version.n, "digest": digest})
    return version


def roll_back(tx: Tx, kind: str, name: str, to: int | None, *, by: str, now: float) -> Version:
    """A new version with the content of version `to`, else of the last one with other content.

    Raises NotFoundError, ConflictError (it is the newest already, or its content is gone)."""
    known = tx.versions(kind, name=name)
    newest = tx.version(kind, name)
    if newest is None:
        raise unknown(tx, kind, name)
    if to is None:
        before = [one for one in known if not one.gone and one.digest != newest.digest]
        if not before:
            raise ConflictError(
                f"There is no version of {name} to go back to.",
                f"Version {newest.n} is the only content that is kept.",
                f"Push another one, or see `{LISTS[kind]} {name}`.",
            )
        target = before[0]
    else:
        target = find(tx, kind, name, to)
    if target.digest == newest.digest:
        raise ConflictError(
            f"{name} is at that content already: version {newest.n}.",
            fix=f"See `{LISTS[kind]} {name}`.",
        )
    origin = f"back to version {target.n}"
    return _add(tx, kind, name, target.digest, by, origin, now, target.file_name)


def find(tx: Tx, kind: str, name: str, n: int | None = None) -> Version:
    """Version `n`, else the newest. Raises NotFoundError; ConflictError when it is gone."""
    version = tx.version(kind, name, n)
    if version is None:
        raise unknown(tx, kind, name, n)
    if version.gone:
        raise ConflictError(
            f"Version {n} of {name} is gone.",
            "It was cleaned up: newer ones are kept, and no job needed it.",
            f"Take another one (`{LISTS[kind]} {name}`), or push it again.",
        )
    return version


def unknown(tx: Tx, kind: str, name: str, n: int | None = None) -> NotFoundError:
    """There is no such version: the error that says so."""
    if n is not None and tx.versions(kind, name=name, limit=1):
        return NotFoundError(
            f"There is no version {n} of {name}.", fix=f"See `{LISTS[kind]} {name}`."
        )
    verb = "officegrid push NAME DIR" if kind == "code" else "officegrid data push NAME PATH"
    return NotFoundError(
        f"There is no {WORDS[kind]} named {name!r}.",
        fix=f"Push it: `{verb}`; see `{LISTS[kind]}` for those there are.",
    )
