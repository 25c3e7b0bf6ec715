"""Program folders as bundles: one deterministic tar, zstd-compressed, named by its SHA-256.

The same files give the same bytes on every machine: names are sorted, times, owners and all
permissions but the executable bit are left out.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from backports import zstd

from officegrid.bundles.ignore_file import IGNORE_FILE, MOST_COUNTED, IgnoreRules, LeftOut
from officegrid.bundles.unpack import unpack_bundle
from officegrid.core.errors import InputError, LimitError

__all__ = [
    "Entry",
    "PackedBundle",
    "pack_folder",
    "packed_count",
    "scan_folder",
    "unpack_bundle",
    "write_tar",
]

MIB = 1024 * 1024
_ZSTD_LEVEL = 9
_ADVICE = f"Remove it, or name it in {IGNORE_FILE}."


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """A bundle ready for the store. `files` counts files and links, `raw_bytes` their contents."""

    sha256: str
    payload: bytes
    files: int
    raw_bytes: int
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a folder that is packed."""

    name: str  # relative, with forward slashes
    path: Path
    kind: str  # "file", "folder", "link"
    size: int
    executable: bool
    link_target: str = ""


def pack_folder(
    folder: Path, *, exclude: Iterable[Path] = (), max_bytes: int = 512 * MIB
) -> PackedBundle:
    """Pack a program folder; equal contents give equal bytes.

    Left out are version control, caches and virtual environments (`ALWAYS_IGNORED`), what
    `.officegridignore` names, and `exclude` (paths, absolute or relative to `folder`, with all
    below them). Links are kept if they lead to something that is packed too.
    Raises InputError for a missing folder, links leading out, sockets and devices, and files
    that change meanwhile; LimitError if the contents exceed `max_bytes`.
    """
    left_out = LeftOut()
    entries = scan_folder(folder, exclude=exclude, max_bytes=max_bytes, left_out=left_out)
    out = io.BytesIO()
    with zstd.ZstdFile(out, "wb", level=_ZSTD_LEVEL) as compressed:
        write_tar(entries, cast("IO[bytes]", compressed))
    payload = out.getvalue()
    raw_bytes = sum(entry.size for entry in entries)
    digest = hashlib.sha256(payload).hexdigest()
    return PackedBundle(digest, payload, packed_count(entries), raw_bytes, left_out)


def scan_folder(
    folder: Path,
    *,
    exclude: Iterable[Path] = (),
    max_bytes: int,
    everything: bool = False,
    what: str = "program folder",
    left_out: LeftOut | None = None,
) -> list[Entry]:
    """What of `folder` is packed, sorted by name. `everything`: no rule leaves anything out.

    `exclude` and errors as for `pack_folder`; `what` is what errors call the folder. `left_out`
    takes what rules leave out.
    """
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"The {what} {folder} {state}.",
            "A bundle is made of a folder.",
            'Set code = "." or the path of the folder that holds the program.',
        )
    root = folder.resolve()
    rules = None if everything else IgnoreRules.read(root / IGNORE_FILE)
    left_out = LeftOut() if left_out is None else left_out
    left_out.ignore_file = str(root / IGNORE_FILE)
    walk = _Walk(root, rules, {_absolute(root, path) for path in exclude}, left_out)
    entries = sorted(walk.entries(), key=lambda entry: entry.name)
    _check_links(root, entries)
    raw_bytes = sum(entry.size for entry in entries)
    if raw_bytes > max_bytes:
        raise _too_large(what, folder, entries, raw_bytes, max_bytes)
    return entries


def packed_count(entries: Iterable[Entry]) -> int:
    """How many of `entries` are files and links."""
    return sum(entry.kind != "folder" for entry in entries)


def _absolute(root: Path, path: Path) -> Path:
    # The folder is resolved but not the last name: an excluded link is excluded, not its target.
    path = root / path
    return path.parent.resolve() / path.name


@dataclass(frozen=True, slots=True)
class _Walk:
    root: Path
    rules: IgnoreRules | None
    exclude: set[Path]
    left_out: LeftOut

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        here = self.root / prefix
        try:
            found = list(os.scandir(here))
        except OSError as error:
            raise _unreadable(here, error) from None
        for item in found:
            name = prefix + item.name
            path = here / item.name
            is_folder = item.is_dir(follow_symlinks=False)
            if path in self.exclude or self._is_ignored(name, path, is_folder=is_folder):
                continue
            if is_folder:
                yield Entry(name, path, "folder", 0, True)
                yield from self.entries(name + "/")
            elif item.is_symlink():
                yield Entry(name, path, "link", 0, False, _link_target(self.root, path, name))
            else:
                yield _file(name, path, item.stat(follow_symlinks=False))

    def _is_ignored(self, name: str, path: Path, *, is_folder: bool) -> bool:
        rule = None if self.rules is None else self.rules.rule(name, is_folder=is_folder)
        if rule is None:
            return False
        if rule:
            self.left_out.always.add(rule)
        else:
            self.left_out.count(_inside(path) if is_folder else 1)
        return True


def _inside(folder: Path) -> int:
    """How many files and links are in a folder, as far as counting goes. What cannot be looked into
    is left out all the same."""
    count = 0
    for root, folders, files in os.walk(folder):
        links = sum(os.path.islink(os.path.join(root, one)) for one in folders)
        count += len(files) + links
        if count > MOST_COUNTED:
            break
    return count


def _file(name: str, path: Path, status: os.stat_result) -> Entry:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            f"{path} cannot be part of a bundle.",
            f"It is {_kind_text(status.st_mode)}, not a file with contents.",
            _ADVICE,
        )
    return Entry(name, path, "file", status.st_size, bool(status.st_mode & stat.S_IXUSR))


def _kind_text(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a device"


def _link_target(root: Path, path: Path, name: str) -> str:
    """The link as a path relative to its own folder; refuses to lead out or nowhere."""
    target = os.readlink(path)
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise InputError(
            f"The link {name} leads nowhere: {target}.",
            "Its target does not exist, or the links form a circle.",
            _ADVICE,
        ) from None
    if not real.is_relative_to(root):
        raise InputError(
            f"The link {name} leads out of the program folder: {target}.",
            "Workers get the folder only, so the link would lead nowhere there.",
            f"Copy what it points to into the folder, or name the link in {IGNORE_FILE}.",
        )
    return Path(os.path.relpath(real, path.parent)).as_posix()


def _check_links(root: Path, entries: list[Entry]) -> None:
    packed = {entry.path for entry in entries} | {root}
    for entry in entries:
        if entry.kind == "link" and entry.path.resolve() not in packed:
            raise InputError(
                f"The link {entry.name} leads to {entry.link_target}, which is left out.",
                f"That path is ignored by default, by {IGNORE_FILE}, or as data of the job.",
                f"Name the link in {IGNORE_FILE} as well, or keep what it points to.",
            )


def _too_large(
    what: str, folder: Path, entries: list[Entry], raw_bytes: int, max_bytes: int
) -> LimitError:
    files = [entry for entry in entries if entry.kind == "file"]
    largest = sorted(files, key=lambda entry: (-entry.size, entry.name))[:5]
    listed = ", ".join(f"{entry.name} ({entry.size / MIB:.1f} MB)" for entry in largest)
    return LimitError(
        f"The {what} {folder} is too large: {raw_bytes / MIB:.1f} MB; "
        f"the limit is {max_bytes / MIB:.1f} MB.",
        f"The largest files are {listed}.",
        f"Name what the program does not need in {IGNORE_FILE}; reference data belongs in [data].",
    )


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be read.",
        f"The system says: {error.strerror or error}.",
        f"Check its permissions, or name it in {IGNORE_FILE}.",
    )


def write_tar(entries: Iterable[Entry], out: IO[bytes]) -> None:
    """Write the deterministic tar of `entries` to `out`; only its `write` is used.

    Raises InputError for files that cannot be read or have changed since the scan.
    """
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            _add(tar, entry)


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mode = 0o755 if entry.executable else 0o644
    if entry.kind == "folder":
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif entry.kind == "link":
        info.type = tarfile.SYMTYPE
        info.linkname = entry.link_target
        tar.addfile(info)
    else:
        try:
            with entry.path.open("rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                tar.addfile(info, file)
                grown = info.size != entry.size or bool(file.read(1))
        except OSError as error:  # tarfile says "unexpected end of data" if the file has shrunk
            raise _unreadable(entry.path, error) from None
        if grown:
            raise InputError(
                f"{entry.path} changed while it was being packed.",
                "A bundle must be one consistent version.",
                "Stop what writes it, or name it in the ignore file, and submit again.",
            )
