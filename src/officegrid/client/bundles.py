"""Versions of program folders: push one, and compare two."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from officegrid.bundles.pack import pack_folder
from officegrid.bundles.unpack import unpack_bundle
from officegrid.client.catalogue import versions_path
from officegrid.client.leftout import PROGRAM, OnLeftOut, silent
from officegrid.client.submit import files_of, load_job_file, upload_bundle
from officegrid.core.errors import UsageError
from officegrid.transport.http import Connection
from officegrid.wire.catalogue import VersionPush, VersionView

TEXT_MOST_BYTES = 1024 * 1024
PUSH_TIMEOUT_S = 3600.0  # the coordinator makes the delta first, after those of others
MAX_BUNDLE_BYTES = 640 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. `lines`: a unified diff of text, empty for anything else."""

    path: str
    kind: Literal["added", "removed", "changed"]
    note: str
    lines: tuple[str, ...]


def push(
    connection: Connection, name: str, folder: Path, on_left_out: OnLeftOut = silent
) -> VersionView:
    """Upload the folder as the newest version of `name`: the same that `submit` makes of it,
    without what job files in it name as input, data and output."""
    bundle = pack_folder(folder, exclude=_files_of_jobs(folder))
    on_left_out(PROGRAM, bundle.left_out)
    upload_bundle(connection, bundle)
    request = VersionPush(digest=bundle.sha256, origin=f"folder {folder.resolve().name}")
    return connection.call(
        "POST", versions_path("code", name), body=request, reply=VersionView,
        timeout_s=PUSH_TIMEOUT_S,
    )  # fmt: skip


def _files_of_jobs(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
        try:
            job = load_job_file(path)
        except UsageError:
            continue  # another kind of file, or a job file that `submit` would complain about
        found += files_of(job, folder.resolve())
    return found


def compare(connection: Connection, old: VersionView, new: VersionView) -> list[Change]:
    """What differs between two versions, by path."""
    with tempfile.TemporaryDirectory(prefix="officegrid-diff-") as folder:
        before = _unpacked(connection, old, Path(folder) / "old")
        after = _unpacked(connection, new, Path(folder) / "new")
        return list(_changes(before, after))


def _unpacked(connection: Connection, version: VersionView, target: Path) -> Path:
    payload = connection.download(f"/v1/objects/{version.digest}", max_bytes=MAX_BUNDLE_BYTES)
    unpack_bundle(payload, target)
    return target


def _changes(before: Path, after: Path) -> Iterator[Change]:
    olds, news = _paths(before), _paths(after)
    for path in sorted(olds | news):
        a, b = before / path, after / path
        if path not in news:
            yield Change(path, "removed", _what(a), _text_diff(path, a, None))
        elif path not in olds:
            yield Change(path, "added", _what(b), _text_diff(path, None, b))
        elif note := _difference(a, b):
            yield Change(path, "changed", note, _text_diff(path, a, b))


def _paths(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _what(path: Path) -> str:
    return f"link to {os.readlink(path)}" if path.is_symlink() else f"{path.stat().st_size:,} bytes"


def _difference(a: Path, b: Path) -> str:
    """What differs between two paths, in words; empty if nothing does."""
    if a.is_symlink() or b.is_symlink():
        return "" if _what(a) == _what(b) else f"{_what(a)} → {_what(b)}"
    notes = []
    if a.read_bytes() != b.read_bytes():
        notes.append(f"{a.stat().st_size:,} → {b.stat().st_size:,} bytes")
    if os.access(a, os.X_OK) != os.access(b, os.X_OK):
        notes.append("now executable" if os.access(b, os.X_OK) else "no longer executable")
    return ", ".join(notes)


def _text_diff(path: str, a: Path | None, b: Path | None) -> tuple[str, ...]:
    old, new = _text(a), _text(b)
    if old is None or new is None or old == new:
        return ()
    sides = ("/dev/null" if a is None else f"a/{path}", "/dev/null" if b is None else f"b/{path}")
    lines = difflib.unified_diff(old, new, *sides)
    return tuple(line.rstrip("\r\n") for line in lines)


def _text(path: Path | None) -> list[str] | None:
    """The lines of a small text file; None for anything else."""
    if path is None:
        return []
    if path.is_symlink() or path.stat().st_size > TEXT_MOST_BYTES:
        return None
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.splitlines(keepends=True)
