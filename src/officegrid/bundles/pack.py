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
from dataclasses import dataclass
from pathlib import Path

from backports import zstd

from officegrid.bundles.ignore_file import IGNORE_FILE, IgnoreRules
from officegrid.bundles.unpack import unpack_bundle
from officegrid.core.errors import InputError, LimitError

__all__ = ["PackedBundle", "pack_folder", "unpack_bundle"]

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


@dataclass(frozen=True, slots=True)
class _Entry:
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
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"The program folder {folder} {state}.",
            "A bundle is made of a folder.",
            'Set code = "." or the path of the folder that holds the program.',
        )
    root = folder.resolve()
    rules = IgnoreRules.read(root / IGNORE_FILE)
    left_out = {_absolute(root, path) for path in exclude}
    entries = sorted(_walk(root, "", rules, left_out), key=lambda entry: entry.name)
    _check_links(root, entries)
    files = [entry for entry in entries if entry.kind == "file"]
    raw_bytes = sum(entry.size for entry in files)
    if raw_bytes > max_bytes:
        raise _too_large(folder, files, raw_bytes, max_bytes)
    payload = _compressed_tar(entries)
    packed = sum(entry.kind != "folder" for entry in entries)
    return PackedBundle(hashlib.sha256(payload).hexdigest(), payload, packed, raw_bytes)


def _absolute(root: Path, path: Path) -> Path:
    # The folder is resolved but not the last name: an excluded link is excluded, not its target.
    path = root / path
    return path.parent.resolve() / path.name


def _walk(root: Path, prefix: str, rules: IgnoreRules, left_out: set[Path]) -> Iterator[_Entry]:
    here = root / prefix
    try:
        found = list(os.scandir(here))
    except OSError as error:
        raise _unreadable(here, error) from None
    for item in found:
        name = prefix + item.name
        path = here / item.name
        is_folder = item.is_dir(follow_symlinks=False)
        if path in left_out or rules.ignore(name, is_folder=is_folder):
            continue
        status = item.stat(follow_symlinks=False)
        if is_folder:
            yield _Entry(name, path, "folder", 0, True)
            yield from _walk(root, name + "/", rules, left_out)
        elif item.is_symlink():
            yield _Entry(name, path, "link", 0, False, _link_target(root, path, name))
        elif stat.S_ISREG(status.st_mode):
            executable = bool(status.st_mode & stat.S_IXUSR)
            yield _Entry(name, path, "file", status.st_size, executable)
        else:
            raise InputError(
                f"{path} cannot be part of a bundle.",
                f"It is {_kind_text(status.st_mode)}, not a file with contents.",
                _ADVICE,
            )


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


def _check_links(root: Path, entries: list[_Entry]) -> None:
    packed = {entry.path for entry in entries} | {root}
    for entry in entries:
        if entry.kind == "link" and entry.path.resolve() not in packed:
            raise InputError(
                f"The link {entry.name} leads to {entry.link_target}, which is left out.",
                f"That path is ignored by default, by {IGNORE_FILE}, or as data of the job.",
                f"Name the link in {IGNORE_FILE} as well, or keep what it points to.",
            )


def _too_large(folder: Path, files: list[_Entry], raw_bytes: int, max_bytes: int) -> LimitError:
    largest = sorted(files, key=lambda entry: (-entry.size, entry.name))[:5]
    listed = ", ".join(f"{entry.name} ({entry.size / MIB:.1f} MB)" for entry in largest)
    return LimitError(
        f"The program folder {folder} is too large: {raw_bytes / MIB:.1f} MB; "
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


def _compressed_tar(entries: list[_Entry]) -> bytes:
    out = io.BytesIO()
    with (
        zstd.ZstdFile(out, "wb", level=_ZSTD_LEVEL) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in entries:
            _add(tar, entry)
    return out.getvalue()


def _add(tar: tarfile.TarFile, entry: _Entry) -> None:
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
