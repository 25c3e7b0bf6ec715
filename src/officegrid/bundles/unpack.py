"""Bundles back to folders, trusting nothing that a bundle says."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import tarfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from backports import zstd

from officegrid.bundles.durable import make_durable
from officegrid.core.errors import ConflictError, InputError, LimitError, UnavailableError

MIB = 1024 * 1024
_COPY_BYTES = MIB
_HEADER_BYTES = 2048  # a tar header, its padding, and a long name


def unpack_bundle(
    payload: bytes | Path, target: Path, *, max_bytes: int = 1024 * MIB, max_entries: int = 200_000
) -> None:
    """Unpack a bundle (its bytes, or a file that holds them) as the new folder `target`.

    The folder appears complete or not at all, also after a power cut. Refuses, with InputError,
    damaged bundles, absolute paths, `..`, links leading out, devices and names that come twice;
    with LimitError contents over `max_bytes` or `max_entries`; with ConflictError a `target` that
    exists; with UnavailableError a disk that cannot take it.
    """
    if target.exists():
        raise _already_there(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        temporary.mkdir(parents=True)
        with _opened(payload) as file:
            _unpack(file, temporary, max_bytes, max_entries)
        make_durable(temporary)
        _rename(temporary, target)
    except OSError as error:
        raise UnavailableError(
            f"The bundle cannot be unpacked to {target}.",
            f"The system says: {error.strerror or error}.",
            "Check the space and the permissions of that folder.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _opened(payload: bytes | Path) -> io.BufferedIOBase:
    return io.BytesIO(payload) if isinstance(payload, bytes) else payload.open("rb")


def _already_there(target: Path) -> ConflictError:
    return ConflictError(
        f"{target} exists already.",
        "A bundle is unpacked to a new folder, never over another.",
        "Use the folder as it is, or remove it first.",
    )


def _rename(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)
    except OSError:
        if target.exists():  # another process was faster
            raise _already_there(target) from None
        raise


def _unpack(file: io.BufferedIOBase, root: Path, max_bytes: int, max_entries: int) -> None:
    links: list[tuple[Path, str]] = []
    left_bytes, left_entries = max_bytes, max_entries
    try:
        with (
            zstd.ZstdFile(file, "rb") as plain,
            tarfile.open(
                fileobj=cast("IO[bytes]", _Capped(plain, max_bytes + max_entries * _HEADER_BYTES)),
                mode="r|",
            ) as tar,
        ):
            for member in tar:
                left_bytes, left_entries = left_bytes - member.size, left_entries - 1
                if left_bytes < 0 or left_entries < 0:
                    raise _too_much(max_bytes, max_entries)
                path = root / _safe_name(member.name)
                if member.issym():
                    links.append((path, member.linkname))
                else:
                    _put(tar, member, path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _refused(f"{Path(error.filename).name} comes twice, or as file and folder.") from None
    except (tarfile.TarError, zstd.ZstdError, EOFError) as error:
        raise _refused(f"It is truncated or damaged: {error}.") from None
    _make_links(root, links)


class _Capped:
    """A stream that refuses to give more than `limit_bytes`.

    Sizes that members state are checked one by one; this also bounds what tar headers may take.
    """

    def __init__(self, inner: zstd.ZstdFile, limit_bytes: int) -> None:
        self._inner = inner
        self._left = limit_bytes

    def read(self, size: int) -> bytes:
        data = self._inner.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _refused("Its headers are larger than any real folder needs.")
        return data


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    if not member.isreg():
        raise _refused(f"{member.name} is neither a file, a folder nor a symbolic link.")
    content = tar.extractfile(member)
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        shutil.copyfileobj(content, out, _COPY_BYTES)
    path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _safe_name(name: str) -> PurePosixPath:
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
        raise _refused(f"The name {name!r} leads out of the folder.")
    return path


def _make_links(root: Path, links: list[tuple[Path, str]]) -> None:
    """Links come last, so that nothing is ever written through one, and are then checked."""
    for path, link_target in links:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(link_target)
        except (FileExistsError, NotADirectoryError):
            raise _refused(f"{path.relative_to(root)} comes twice.") from None
    real_root = root.resolve()
    for path, link_target in links:
        name = path.relative_to(root)
        try:
            # Only resolving the finished tree sees what links through other links lead to.
            inside = path.resolve(strict=True).is_relative_to(real_root)
        except (OSError, RuntimeError):
            raise _refused(f"The link {name} leads nowhere: {link_target}.") from None
        if not inside or os.path.isabs(link_target):
            raise _refused(f"The link {name} leads out of the folder: {link_target}.")


def _refused(why: str) -> InputError:
    return InputError(
        "The bundle cannot be unpacked.",
        why,
        "Submit the job again from the program folder; `officegrid submit` makes good bundles.",
    )


def _too_much(max_bytes: int, max_entries: int) -> LimitError:
    return LimitError(
        "The bundle is too large to unpack.",
        f"It holds more than {max_bytes / MIB:.0f} MB or {max_entries} entries.",
        "Keep data out of the program folder: name it under [data] in the job file.",
    )
