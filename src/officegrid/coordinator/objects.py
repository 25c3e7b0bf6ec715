"""The object store: immutable content in a folder, named by its SHA-256.

    <root>/objects/ab/cdef…   one object; it is there whole or not at all
    <root>/objects/tmp/…      objects being received

An object is written beside its place, checked against its name, synced to disk, and then
renamed into place; the folder is synced too. So a returned `put` survives a power cut, and a
crash at any moment leaves at most a file in `tmp`, which `sweep_temp` removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from officegrid.core.errors import InputError, LimitError, NotFoundError, UnavailableError

_NAME = re.compile(r"[0-9a-f]{64}")
_REST = re.compile(r"[0-9a-f]{62}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class ObjectStore:
    """A folder of objects. Safe for any number of threads and processes at once."""

    def __init__(self, root: Path) -> None:
        """Open or create the store below `root`. Raises UnavailableError when that fails."""
        self._root = root
        self._folder = root / "objects"
        self._temp = self._folder / "tmp"
        self._changing = threading.Lock()
        """Held while an object is published, refreshed or taken away: who was told that one is
        there can rely on it."""
        is_new = not root.exists()
        try:
            self._temp.mkdir(parents=True, exist_ok=True)
            # All 256 folders exist from the start, so that no put has to sync their parent.
            for number in range(256):
                (self._folder / f"{number:02x}").mkdir(exist_ok=True)
            for folder in (self._folder, root):
                _sync_folder(folder)
            if is_new:
                _sync_folder(root.parent)
        except OSError as error:
            raise _disk_error(error, "open its object store") from error

    # --- writing

    def begin(self, sha256: str, *, max_bytes: int) -> Incoming:
        """Start to receive an object piece by piece; see Incoming."""
        return Incoming(self.path(sha256), self._temp, sha256, max_bytes, self._changing)

    def put(self, sha256: str, chunks: Iterable[bytes], *, max_bytes: int) -> int:
        """Store the bytes in `chunks` under their SHA-256; returns how many bytes the object has.

        Durable on return. An object that is there already is kept and `chunks` is not read.
        Raises InputError when the bytes have another digest or the name is malformed, LimitError
        beyond `max_bytes`, UnavailableError when the disk is full or fails; what `chunks`
        raises passes through. All of them leave no trace.
        """
        if self._touch(sha256):
            self._sync_folders([sha256])
            present = self.size(sha256)
            if present is not None:
                return present
        with self.begin(sha256, max_bytes=max_bytes) as incoming:
            for chunk in chunks:
                incoming.write(chunk)
            return incoming.finish()

    def put_bytes(self, content: bytes) -> str:
        """Store `content`; returns its name. Errors as for `put`."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.put(sha256, [content], max_bytes=len(content))
        return sha256

    def delete(self, sha256: str) -> bool:
        """Remove an object; False when it was not there. Open readers can finish on POSIX."""
        try:
            self.path(sha256).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _disk_error(error, "delete an object") from error
        return True

    def delete_unless_young(self, sha256: str, before: float) -> int | None:
        """Remove an object that nobody has put or asked for since `before` (seconds since the
        epoch). Its bytes; None if it is younger, or not there.

        Only the process that owns the store may call this: the look at the time and the removal
        are one step for its own threads alone. A crash leaves the object, or a file in `tmp`."""
        path, trash = self.path(sha256), self._temp / f"{sha256}.gone"
        try:
            with self._changing:
                facts = path.stat()
                if facts.st_mtime >= before:
                    return None
                os.replace(path, trash)
            trash.unlink()  # outside: a large file takes a while
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _disk_error(error, "delete an object") from error
        return facts.st_size

    def sweep_temp(self, older_than_s: float, now: float) -> int:
        """Remove what aborted uploads left, if last written before `now - older_than_s`.

        Returns how many files were removed.
        """
        removed = 0
        for entry in os.scandir(self._temp):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < now - older_than_s:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    # --- reading

    def path(self, sha256: str) -> Path:
        """Where the object is or would be. Raises InputError for a malformed name."""
        if not _NAME.fullmatch(sha256):
            raise InputError(
                f"{sha256[:80]!r} is not the name of an object.",
                "Objects are named by their SHA-256: 64 digits from 0-9 and a-f.",
            )
        return self._folder / sha256[:2] / sha256[2:]

    def open(self, sha256: str, start: int = 0) -> BinaryIO:
        """The object's bytes from offset `start`, to be closed by the caller.

        Raises NotFoundError when there is no such object, InputError when it is shorter
        than `start`.
        """
        try:
            file = self.path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFoundError(
                f"There is no object {sha256[:12]}….",
                "It was never uploaded, or it has been cleaned up since.",
                "Upload it again.",
            ) from None
        except OSError as error:
            raise _disk_error(error, "read an object") from error
        size = os.fstat(file.fileno()).st_size
        if not 0 <= start <= size:
            file.close()
            raise InputError(f"Object {sha256[:12]}… has no byte {start}.", f"It has {size} bytes.")
        file.seek(start)
        return file

    def size(self, sha256: str) -> int | None:
        """Bytes of the object, None when it is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def hold(self, sha256: str) -> int | None:
        """`size`, for somebody who is about to refer to the object: no clean-up that has begun
        will take it any more."""
        return self.size(sha256) if self._touch(sha256) else None

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of `digests` that are not here, each once, in the order asked.

        Those that are here get a fresh modification time: who asks will not upload them again,
        so a clean-up that goes by age must not take them just then.
        """
        asked = list(dict.fromkeys(digests))
        absent = [name for name in asked if not self._touch(name)]
        self._sync_folders(frozenset(asked).difference(absent))
        return absent

    def all(self) -> Iterator[tuple[str, int, float]]:
        """(name, bytes, modification time in seconds since the epoch) of each object, by name."""
        for number in range(256):
            prefix = f"{number:02x}"
            for entry in sorted(os.scandir(self._folder / prefix), key=lambda e: e.name):
                if not _REST.fullmatch(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        yield prefix + entry.name, facts.st_size, facts.st_mtime

    def free_bytes(self) -> int:
        """Bytes that can still be written to the disk that holds the store."""
        return shutil.disk_usage(self._folder).free

    def _touch(self, sha256: str) -> bool:
        """Is the object there? If so, it gets a fresh modification time."""
        try:
            with self._changing:
                os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _disk_error(error, "read an object") from error
        return True

    def _sync_folders(self, names: Collection[str]) -> None:
        """Make sure that objects just seen are there after a power cut as well: another thread
        may have renamed one into place and not yet synced its folder."""
        try:
            for folder in {self.path(name).parent for name in names}:
                _sync_folder(folder)
        except OSError as error:
            raise _disk_error(error, "read an object") from error


class Incoming:
    """One object being received. Use as a context manager: leaving it without a successful
    `finish()` removes every trace. For one thread at a time.

        with store.begin(sha256, max_bytes=limit) as incoming:
            async for chunk in request.stream():
                incoming.write(chunk)
            await to_thread(incoming.finish)
    """

    def __init__(
        self, target: Path, temp_folder: Path, sha256: str, max_bytes: int, changing: threading.Lock
    ) -> None:
        self._target = target
        self._changing = changing
        self._sha256 = sha256
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._received = 0
        name = f"{sha256}.{os.getpid()}.{secrets.token_hex(8)}"
        self._draft = temp_folder / name
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self._file = os.fdopen(os.open(self._draft, flags, 0o600), "wb", buffering=0)
        except OSError as error:
            raise _disk_error(error, "store an object") from error

    def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises LimitError, UnavailableError (disk full or failing)."""
        self._received += len(chunk)
        if self._received > self._max_bytes:
            raise LimitError(
                "The object is too large.",
                f"It has more than {self._max_bytes} bytes, the most that is accepted here.",
                "Send smaller pieces, or ask the grid admin to raise the limit.",
            )
        self._digest.update(chunk)
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _disk_error(error, "store an object") from error

    def finish(self) -> int:
        """Check, sync and publish; returns the bytes received. Raises InputError when they
        have another digest, UnavailableError when the disk is full or fails."""
        found = self._digest.hexdigest()
        if found != self._sha256:
            raise InputError(
                f"The bytes received are not those of object {self._sha256[:12]}….",
                f"Their SHA-256 begins with {found[:12]}: they were damaged, cut off, "
                "or sent under a wrong name.",
                "Send the object again.",
            )
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            os.utime(self._draft)  # a slow upload is as young as a quick one
            with self._changing:
                os.replace(self._draft, self._target)
            _sync_folder(self._target.parent)
        except OSError as error:
            raise _disk_error(error, "store an object") from error
        return self._received

    def __enter__(self) -> Incoming:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a close that fails has nothing more to tell
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._draft.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open folders; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, task: str) -> UnavailableError:
    if error.errno in _FULL:
        return UnavailableError(
            "The coordinator's disk is full.",
            f"It could not {task}: {error.strerror}.",
            "The grid admin must free space or enlarge the disk; nothing that was "
            "acknowledged is lost, and the request can then be sent again.",
        )
    return UnavailableError(
        f"The coordinator could not {task}.",
        error.strerror or str(error),
        "See the coordinator's log and check its disk.",
    )
