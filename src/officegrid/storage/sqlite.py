"""The embedded default database: one file, one writer, group commit.

Exactly one connection writes and checkpoints; readers have connections that can do neither.
An acknowledged write is in the write-ahead log and synced (`synchronous=FULL`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from officegrid.core.errors import InternalError, UnavailableError
from officegrid.storage.api import Done
from officegrid.storage.folder_lock import FolderLock
from officegrid.storage.migrate import bring_up_to_date, fsync
from officegrid.storage.sqlite_errors import is_outage, outage, translate
from officegrid.storage.sqlite_tx import SqliteTx

if TYPE_CHECKING:
    from officegrid.storage.api import Storage

T = TypeVar("T")

_WAL_RESET_FIXED = (3, 51, 3)
_CACHED_STATEMENTS = 512  # more than there are distinct statements here
_CHECKPOINT_PAGES = 4000  # 16 MB of log between checkpoints
_IDLE_READERS_MAX = 16
_CLOSE_WAIT_S = 10.0


class _GroupFailed(Exception):  # noqa: N818 - a signal inside this module, never shown
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def library_warning() -> str | None:
    """A sentence about a known fault of the linked SQLite library, or None."""
    if sqlite3.sqlite_version_info >= _WAL_RESET_FIXED:
        return None
    return (
        f"SQLite {sqlite3.sqlite_version} can damage its log when two connections write or "
        "checkpoint at once (fixed in 3.51.3). The coordinator uses one writing connection, so it "
        "is not affected; do not write to its database with other programs while it runs."
    )


class SqliteStorage:
    """`api.Storage` on one SQLite file, created and migrated as needed.

    Raises ConflictError when another process has it open or it is some other program's file,
    VersionError when a newer program wrote it, UnavailableError when the disk does not play.
    `warnings` holds sentences for the log; `backup` is the copy made before a migration, if any.
    """

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 5.0) -> None:
        self.path = Path(path).absolute()
        self.warnings = [text for text in (library_warning(),) if text]
        self._busy_timeout_s = busy_timeout_s
        self._writing = threading.Lock()
        self._idle_readers: deque[sqlite3.Connection] = deque()
        self._readers = threading.Condition()
        self._busy_readers = 0
        self._closed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        except OSError as error:
            raise UnavailableError(
                f"The database folder {self.path.parent} cannot be used.",
                str(error),
                "Check that it exists, has space, and belongs to the coordinator's user.",
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect(str(self.path), uri=False)
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise UnavailableError(
                    f"The folder {self.path.parent} does not support a write-ahead log.",
                    f"SQLite chose {mode!r} instead; network drives do that.",
                    "Put the coordinator's data on a local disk.",
                )
            connection.execute("PRAGMA synchronous = FULL")
            # Savepoints copy the pages they change; in memory that costs next to nothing.
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA cache_size = -65536")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            self.backup = bring_up_to_date(connection, self.path)
            fsync(self.path.parent)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise translate(error, self.path) from error
            raise
        self._writer = connection
        self._control = connection.cursor()  # BEGIN, SAVEPOINT and the like

    def _connect(self, database: str, *, uri: bool) -> sqlite3.Connection:
        # isolation_level=None: the driver begins no transactions of its own.
        return sqlite3.connect(
            database,
            timeout=self._busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
            uri=uri,
        )

    # writing

    def write(self, operation: Callable[[SqliteTx], T]) -> T:
        """See `api.Storage`. Raises what the operation raised, or UnavailableError."""
        done = self.write_many([operation])[0]
        if done.error is not None:
            raise done.error
        value: T = done.value
        return value

    def write_many(self, operations: Sequence[Callable[[SqliteTx], Any]]) -> list[Done]:
        """See `api.Storage`. Raises InternalError when called while another write runs."""
        if not self._writing.acquire(blocking=False):
            raise InternalError(
                "Two writes at once.", "Only the writer's thread may write, one group at a time."
            )
        try:
            return self._write_group(operations)
        finally:
            self._writing.release()

    def _write_group(self, operations: Sequence[Callable[[SqliteTx], Any]]) -> list[Done]:
        if self._closed:
            return [Done(error=self._is_closed()) for _ in operations]
        writer = self._writer
        tx = SqliteTx(writer)
        try:
            writer.execute("BEGIN IMMEDIATE")
            results = [self._run_one(tx, operation) for operation in operations]
            tx.flush()
            writer.execute("COMMIT")
        except (_GroupFailed, sqlite3.Error) as error:
            self._roll_back()
            cause = error.cause if isinstance(error, _GroupFailed) else error
            return [Done(error=outage(cause, self.path)) for _ in operations]
        except BaseException:
            self._roll_back()
            raise
        finally:
            tx.end()
        return results

    def _run_one(self, tx: SqliteTx, operation: Callable[[SqliteTx], Any]) -> Done:
        writer, execute = self._writer, self._control.execute
        execute("SAVEPOINT operation")
        tx.begin_operation()
        try:
            value = operation(tx)
            if tx.failure is not None:
                raise tx.failure
        except Exception as error:
            # SQLite undoes the whole transaction by itself on some disk errors; and after any
            # of them the rest of the group has no better chance.
            if is_outage(error) or not writer.in_transaction:
                raise _GroupFailed(error) from error
            execute("ROLLBACK TO operation")
            execute("RELEASE operation")
            tx.undo_operation()
            return Done(error=translate(error, self.path))
        execute("RELEASE operation")
        return Done(value=value)

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")

    # reading

    def read(self, operation: Callable[[SqliteTx], T]) -> T:
        """See `api.Storage`. Raises InternalError when the operation tries to write."""
        with self._reader() as connection:
            tx = SqliteTx(connection)
            try:
                connection.execute("BEGIN")
                return operation(tx)
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
                    raise InternalError(
                        "A read operation tried to write.", str(error), "Please report this."
                    ) from error
                raise translate(error, self.path) from error
            finally:
                tx.end()
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """Borrow a reading connection; there are as many as readers at one time."""
        with self._readers:
            if self._closed:
                raise self._is_closed()
            self._busy_readers += 1
            connection = self._idle_readers.pop() if self._idle_readers else None
        try:
            if connection is None:
                connection = self._open_reader()
            yield connection
        finally:
            with self._readers:
                self._busy_readers -= 1
                keep = not self._closed and len(self._idle_readers) < _IDLE_READERS_MAX
                if connection is not None and keep:
                    self._idle_readers.append(connection)
                elif connection is not None:
                    connection.close()
                self._readers.notify_all()

    def _open_reader(self) -> sqlite3.Connection:
        """A connection that can neither write nor checkpoint, not even by being closed last."""
        try:
            connection = self._connect(f"{self.path.as_uri()}?mode=ro", uri=True)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA cache_size = -16384")
        except sqlite3.Error as error:
            raise translate(error, self.path) from error
        return connection

    def close(self) -> None:
        """Wait for running reads, merge the log into the file, give up the lock. Idempotent."""
        with self._readers:
            if self._closed:
                return
            self._closed = True
            while self._idle_readers:
                self._idle_readers.pop().close()
            self._readers.wait_for(lambda: self._busy_readers == 0, timeout=_CLOSE_WAIT_S)
        with self._writing:
            self._writer.close()
            self._lock.release()

    def _is_closed(self) -> UnavailableError:
        return UnavailableError(
            "The database is closed.", "The coordinator is stopping.", "Try again in a moment."
        )


if TYPE_CHECKING:

    def _implements_the_contract(storage: SqliteStorage) -> Storage:
        return storage
