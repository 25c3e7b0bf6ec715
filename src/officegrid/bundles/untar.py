"""Tar streams back to folders, trusting nothing that a stream says."""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Protocol, cast

from backports import zstd

from officegrid.bundles.durable import make_durable
from officegrid.core.errors import ConflictError, InputError, LimitError, UnavailableError

MIB = 1024 * 1024
_COPY_BYTES = MIB
_HEADER_BYTES = 2048  # a tar header, its padding, and a long name


@dataclass(frozen=True, slots=True)
class Words:
    """How refusals speak of what is unpacked: its name, and what to do when it is bad or large."""

    noun: str
    fix: str
    make_smaller: str


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def unpack_stream(
    opened: Callable[[], AbstractContextManager[Readable]],
    target: Path,
    *,
    max_bytes: int,
    max_entries: int,
    words: Words,
) -> None:
    """Unpack the tar that `opened` gives as the new folder `target`.

    The folder appears complete or not at all, also after a power cut. Refuses, with InputError,
    damaged streams, absolute paths, `..`, links leading out, devices and names that come twice;
    with LimitError contents over `max_bytes` or `max_entries`; with ConflictError a `target` that
    exists; with UnavailableError a disk that cannot take it.
    """
    if target.exists():
        raise already_there(target, words)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        temporary.mkdir(parents=True)
        with opened() as stream:
            _Unpacking(temporary, words).run(stream, max_bytes, max_entries)
        make_durable(temporary)
        _rename(temporary, target, words)
    except OSError as error:
        raise UnavailableError(
            f"The {words.noun} cannot be unpacked to {target}.",
            f"The system says: {error.strerror or error}.",
            "Check the space and the permissions of that folder.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def already_there(target: Path, words: Words) -> ConflictError:
    return ConflictError(
        f"{target} exists already.",
        f"A {words.noun} is unpacked to a new place, never over another.",
        "Use what is there as it is, or remove it first.",
    )


def _rename(temporary: Path, target: Path, words: Words) -> None:
    try:
        os.rename(temporary, target)
    except OSError:
        if target.exists():  # another process was faster
            raise already_there(target, words) from None
        raise


class _Capped:
    """A stream that refuses to give more than `limit_bytes`.

    Sizes that members state are checked one by one; this also bounds what tar headers may take.
    """

    def __init__(self, inner: Readable, limit_bytes: int, refusal: InputError) -> None:
        self._inner = inner
        self._left = limit_bytes
        self._refusal = refusal

    def read(self, size: int) -> bytes:
        data = self._inner.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise self._refusal
        return data


class _Unpacking:
    """One stream on its way into the folder `root`, which nobody else knows yet."""

    def __init__(self, root: Path, words: Words) -> None:
        self._root = root
        self._words = words

    def run(self, stream: Readable, max_bytes: int, max_entries: int) -> None:
        links: list[tuple[Path, str]] = []
        left_bytes, left_entries = max_bytes, max_entries
        too_long = self._refused("Its headers are larger than any real folder needs.")
        capped = _Capped(stream, max_bytes + max_entries * _HEADER_BYTES, too_long)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", capped), mode="r|") as tar:
                for member in tar:
                    left_bytes, left_entries = left_bytes - member.size, left_entries - 1
                    if left_bytes < 0 or left_entries < 0:
                        raise self._too_much(max_bytes, max_entries)
                    path = self._root / self._safe_name(member.name)
                    if member.issym():
                        links.append((path, member.linkname))
                    else:
                        self._put(tar, member, path)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            name = Path(error.filename).name
            raise self._refused(f"{name} comes twice, or as file and folder.") from None
        except (tarfile.TarError, zstd.ZstdError, EOFError) as error:
            raise self._refused(f"It is truncated or damaged: {error}.") from None
        self._make_links(links)

    def _put(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            return
        if not member.isreg():
            raise self._refused(f"{member.name} is neither a file, a folder nor a symbolic link.")
        content = tar.extractfile(member)
        assert content is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            shutil.copyfileobj(content, out, _COPY_BYTES)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)

    def _safe_name(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        windows = PureWindowsPath(name)
        on_windows = os.name == "nt"
        if (
            path.is_absolute()
            or ".." in path.parts
            or not path.parts
            or "\0" in name
            or (on_windows and (windows.drive or windows.root or "\\" in name or ":" in name))
        ):
            raise self._refused(f"The name {name!r} leads out of the folder.")
        return path

    def _make_links(self, links: list[tuple[Path, str]]) -> None:
        """Links come last, so that nothing is ever written through one, and are then checked."""
        for path, link_target in links:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(link_target)
            except (FileExistsError, NotADirectoryError):
                raise self._refused(f"{path.relative_to(self._root)} comes twice.") from None
        real_root = self._root.resolve()
        for path, link_target in links:
            name = path.relative_to(self._root)
            try:
                # Only resolving the finished tree sees what links through other links lead to.
                inside = path.resolve(strict=True).is_relative_to(real_root)
            except (OSError, RuntimeError):
                raise self._refused(f"The link {name} leads nowhere: {link_target}.") from None
            if not inside or os.path.isabs(link_target):
                raise self._refused(f"The link {name} leads out of the folder: {link_target}.")

    def _refused(self, why: str) -> InputError:
        return InputError(f"The {self._words.noun} cannot be unpacked.", why, self._words.fix)

    def _too_much(self, max_bytes: int, max_entries: int) -> LimitError:
        return LimitError(
            f"The {self._words.noun} is too large to unpack.",
            f"It holds more than {max_bytes / MIB:.0f} MB or {max_entries} entries.",
            self._words.make_smaller,
        )
