"""What drivers and servers say, as errors for people. Passwords are taken out of every text."""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING

from officegrid.core.errors import (
    ConflictError,
    ForbiddenError,
    InputError,
    OfficeGridError,
    UnavailableError,
    UsageError,
)
from officegrid.data.sql.source import SqlSource

if TYPE_CHECKING:
    import psycopg
    import pymysql

_MYSQL_LOGIN = {1045, 1698, 1130, 1862, 2059, 2061, 4151}
_MYSQL_RIGHTS = {1044, 1142, 1143, 1227, 1370, 1290, 1410}
_MYSQL_AWAY = {
    1021, 1040, 1041, 1053, 1077, 1114, 1129, 1152, 1158, 1159, 1160, 1161, 1184, 1203, 1205,
    1213, 1226, 1317, 1412, 1637, 1836, 1927, 1969, 2002, 2003, 2006, 2013, 2014, 2026, 2027,
    3024, 3168, 4031,
}  # fmt: skip
_PG_LOGIN = re.compile(
    r"password authentication failed|no password supplied|pg_hba\.conf|role .* does not exist"
    r"|authentication failed|not permitted to log in"
)
_PG_AWAY = ("08", "53", "55", "57", "58", "40", "XX")


class SourceLoginError(OfficeGridError):
    """The database refuses the user or the password of the configuration.

    Not an AuthError: that is about the caller's own token, and would send them to join again.
    """

    code = "source_login"
    http_status = 502


def missing_driver(package: str) -> UsageError:
    return UsageError(
        "Databases need a part of officegrid that is not installed here.",
        f"The package {package} is missing.",
        "Run `pip install 'officegrid[sql]'`.",
    )


def said(source: SqlSource, error: BaseException) -> str:
    """The server's or driver's own words on one line, without its error number."""
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    return source.scrub(" ".join(text.split())).removesuffix(".")[:600]


def _login(source: SqlSource, why: str) -> SourceLoginError:
    return SourceLoginError(
        f"The database {source.describe()} does not let {source.user!r} in.",
        f"It says: {why}.",
        f"Correct user and password of source {source.name!r} in the coordinator's configuration.",
    )


def _away(source: SqlSource, why: str) -> UnavailableError:
    return UnavailableError(
        f"The database {source.describe()} cannot be used now.",
        f"It says: {why}.",
        "Nothing was half-done. Try again when it is back.",
    )


def _rights(source: SqlSource, why: str) -> ForbiddenError:
    return ForbiddenError(
        f"The user of {source.describe()} may not do that.",
        f"The database says: {why}.",
        "Grant what docs/sql.md names, or use another source.",
    )


def _no_database(source: SqlSource, why: str) -> UsageError:
    return UsageError(
        f"There is no database {source.database!r} for source {source.name!r}.",
        f"The server says: {why}.",
        "Correct the URL in the coordinator's configuration.",
    )


def _refused(source: SqlSource, why: str) -> InputError:
    return InputError(
        f"The database {source.describe()} refuses the statement.",
        f"It says: {why}.",
        "Correct the table, the columns or the SQL of the job.",
    )


def lost(source: SqlSource, error: BaseException | None = None) -> UnavailableError:
    """The connection ended in the middle of a result."""
    why = said(source, error) if error is not None else "the connection was closed"
    return _away(source, f"{why}. The snapshot is gone, so reading has to begin again")


def exists_already(table: str) -> ConflictError:
    return ConflictError(
        f"The table {table} exists already.",
        'mode = "create" makes a new one and never touches one that is there.',
        'Drop it, name another table, or use mode = "append", "upsert" or "replace".',
    )


def from_mysql(source: SqlSource, error: pymysql.Error) -> OfficeGridError:
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    why = said(source, error)
    if code in _MYSQL_LOGIN:
        return _login(source, why)
    if code in _MYSQL_RIGHTS:
        return _rights(source, why)
    if code == 1049:
        return _no_database(source, why)
    if code in _MYSQL_AWAY or code == 0:
        return _away(source, why or "the connection is gone")
    return _refused(source, why)


def from_postgres(source: SqlSource, error: psycopg.Error) -> OfficeGridError:
    state = error.sqlstate or ""
    why = said(source, error)
    if state.startswith("28") or (not state and _PG_LOGIN.search(str(error))):
        return _login(source, why)
    if state == "3D000" or (not state and re.search(r'database ".*" does not exist', str(error))):
        return _no_database(source, why)
    if state == "42501":
        return _rights(source, why)
    import psycopg

    if state.startswith(_PG_AWAY) or (
        not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    ):
        return _away(source, why)
    return _refused(source, why)


def from_sqlite(source: SqlSource, error: sqlite3.Error) -> OfficeGridError:
    name = getattr(error, "sqlite_errorname", "") or ""
    why = said(source, error)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR")):
        return _away(source, why)
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return _rights(source, why)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_NOTADB", "SQLITE_CORRUPT")):
        return InputError(
            f"{source.database} cannot be read as an SQLite database.",
            f"SQLite says: {why}.",
            "Check the path, the permissions of file and folder, and that the file is whole.",
        )
    if name == "SQLITE_AUTH":
        return UsageError(
            "This SQL cannot be an input.", f"SQLite says: {why}.", "Only reading is allowed."
        )
    return _refused(source, why)
