"""Writing a file so that readers see the old one or the whole new one, never a part."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import compressobj

from backports import zstd

from officegrid.core.errors import OfficeGridError, UnavailableError, UsageError

_STEP_BYTES = 1024 * 1024
_GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # zlib's code for the gzip wrapper with the full window
_ZSTD_LEVEL = 3
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Compressor(ABC):
    @abstractmethod
    def compress(self, data: bytes) -> bytes: ...
    @abstractmethod
    def finish(self) -> bytes: ...


class _Plain(_Compressor):
    def compress(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class _Gzip(_Compressor):
    """Its header has no time and no name, so equal records give equal files."""

    def __init__(self) -> None:
        self._inner = compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)

    def compress(self, data: bytes) -> bytes:
        return self._inner.compress(data)

    def finish(self) -> bytes:
        return self._inner.flush()


class _Zstd(_Compressor):
    def __init__(self) -> None:
        self._inner = zstd.ZstdCompressor(_ZSTD_LEVEL)

    def compress(self, data: bytes) -> bytes:
        return self._inner.compress(data)

    def finish(self) -> bytes:
        return self._inner.flush()


class FileWriter:
    """Takes plain bytes, writes them compressed, and hashes what is written.

    Input goes on in steps of one fixed size, so that what a compressor makes of it does not
    depend on how the caller cut it.
    """

    def __init__(self, descriptor: int, compression: str) -> None:
        self._descriptor = descriptor
        self._compressor = {".gz": _Gzip, ".zst": _Zstd}.get(compression, _Plain)()
        self._waiting = bytearray()
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self._waiting += data
        whole = len(self._waiting) - len(self._waiting) % _STEP_BYTES
        if not whole:
            return
        ready = bytes(memoryview(self._waiting)[:whole])
        del self._waiting[:whole]
        for start in range(0, whole, _STEP_BYTES):
            self._store(self._compressor.compress(ready[start : start + _STEP_BYTES]))

    def finish(self) -> None:
        self._store(self._compressor.compress(bytes(self._waiting)))
        self._waiting.clear()
        self._store(self._compressor.finish())

    def _store(self, data: bytes) -> None:
        self._hash.update(data)
        self.bytes += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def real_target(path: Path) -> Path:
    """Where writing to `path` ends up, links followed. Raises UsageError if it cannot be a file."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UsageError(
            f"{path} is a folder.",
            "The output is written as one file.",
            f'Name a file in it, for example "{path}/output.csv".',
        )
    if target.exists() and not target.is_file():
        raise UsageError(
            f"{path} is not a regular file.",
            "The output replaces the file as a whole, which a device or a pipe does not allow.",
            "Name a file, and copy it on from there.",
        )
    return target


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A free name beside `target` to write to; renamed to it at the end, durably.

    On any error the file under that name is removed and `target` is as it was. OSErrors come
    out as UnavailableError.
    """
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        # Opened for writing because Windows flushes no other handles.
        sync(temporary, os.O_RDWR)
        os.replace(temporary, target)
        if os.name != "nt":  # Windows has no handles on folders
            sync(target.parent, os.O_RDONLY)
    except OfficeGridError:
        raise
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def spool_beside(temporary: Path) -> Iterator[Path]:
    """A free name for data that has to be on disk only while the output is being made."""
    spool = temporary.with_suffix(".spool")
    try:
        yield spool
    finally:
        with suppress(OSError):
            spool.unlink()


def sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> UnavailableError:
    if error.errno in _NO_SPACE:
        return UnavailableError(
            f"{path} cannot be written: no space is left.",
            f"The system says: {error.strerror}. What was there before is untouched.",
            "Free space on that disk, or name an output on another one, and run it again.",
        )
    return UnavailableError(
        f"{path} cannot be written.",
        f"The system says: {error.strerror or error}. What was there before is untouched.",
        "Check the permissions of its folder, and whether the file is open elsewhere.",
    )


@contextmanager
def written(temporary: Path, compression: str) -> Iterator[FileWriter]:
    """A FileWriter for a new file; finished when the block ends without an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        writer = FileWriter(descriptor, compression)
        yield writer
        writer.finish()
    finally:
        os.close(descriptor)
