"""What SQLite's errors mean to the people who run a coordinator."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from officegrid.core.errors import (
    InternalError,
    OfficeGridError,
    UnavailableError,
    VersionError,
)

# Primary result codes; extended codes (SQLITE_IOERR_WRITE = 778, …) keep them in the low byte.
_FULL, _IOERR, _BUSY, _LOCKED, _NOMEM = 13, 10, 5, 6, 7
_READONLY, _CANTOPEN, _CORRUPT, _NOTADB, _PERM = 8, 14, 11, 26, 3

_OUTAGES = {
    _FULL: ("the disk is full", "Free space on the disk; work goes on by itself afterwards."),
    _IOERR: (
        "the disk reported a read or write error",
        "Check the disk (free space, quota, `dmesg`); work goes on when it answers again.",
    ),
    _BUSY: (
        "another program holds the database locked",
        "Stop other programs that use this file (a backup, a `sqlite3` shell), then try again.",
    ),
    _LOCKED: ("a table is locked by a reader", "Try again in a moment."),
    _NOMEM: ("the coordinator has run out of memory", "Give it more memory, then start it again."),
    _READONLY: (
        "the database file is read-only",
        "Give the coordinator's user write permission on the data folder.",
    ),
    _CANTOPEN: (
        "the database file cannot be opened",
        "Check that the data folder exists and belongs to the coordinator's user.",
    ),
    _PERM: (
        "access to the database file is denied",
        "Give the coordinator's user access to the data folder.",
    ),
    _CORRUPT: (
        "the database file is damaged",
        "Stop the coordinator, keep a copy of the file, and restore the last backup.",
    ),
    _NOTADB: (
        "the file is not an SQLite database",
        "Point --data at the folder of a coordinator, or at an empty folder.",
    ),
}


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_outage(error: BaseException) -> bool:
    """Does this error concern the whole database, rather than the statement that met it?"""
    return isinstance(error, sqlite3.Error) and _code(error) in _OUTAGES


def translate(error: Exception, path: Path) -> Exception:
    """The error to show: UnavailableError for the disk's troubles, InternalError for ours.

    Errors that do not come from SQLite are returned as they are.
    """
    if isinstance(error, OfficeGridError) or not isinstance(error, sqlite3.Error):
        return error
    known = _OUTAGES.get(_code(error))
    if known is not None:
        return outage(error, path)
    if "no such column" in str(error) or "no such table" in str(error):
        return VersionError(
            "The database does not have the expected tables.",
            f"{path}: {error}",
            "Restore the last backup; the file was changed by something else.",
        )
    return InternalError(
        "A database statement failed.",
        f"{path}: {error}",
        "Please report this with the text above; the operation was undone.",
    )


def outage(error: Exception, path: Path) -> UnavailableError:
    """The UnavailableError for a write that could not be made durable; nothing was changed."""
    why, fix = _OUTAGES.get(_code(error), (str(error), "Try again; if it stays, check the disk."))
    return UnavailableError(
        "The coordinator cannot save to its database now; nothing was changed.",
        f"{path}: {why} ({error}).",
        fix,
    )
