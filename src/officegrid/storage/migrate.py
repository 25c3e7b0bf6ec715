"""Bringing a database to the schema of this program, with a copy kept beforehand."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from officegrid.core.errors import ConflictError, VersionError
from officegrid.storage.schema import HEAD

if TYPE_CHECKING:
    from alembic.config import Config

SCRIPTS = Path(__file__).with_name("migrations")


def version_of(connection: sqlite3.Connection) -> str | None:
    """The schema revision of a database; None if it has no tables yet.

    Raises ConflictError for an SQLite file with tables of some other program.
    """
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if "alembic_version" in names:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if row is not None:
            return str(row[0])
    if names - {"alembic_version"}:
        raise ConflictError(
            "This database belongs to another program.",
            f"It has tables ({', '.join(sorted(names)[:3])}, …) but no Office Grid version.",
            "Point --data at the folder of a coordinator, or at an empty folder.",
        )
    return None


def bring_up_to_date(
    connection: sqlite3.Connection, path: Path, *, scripts: Path = SCRIPTS, head: str = HEAD
) -> Path | None:
    """Migrate to `head` in one transaction; returns the copy made before, if one was needed.

    Raises VersionError when the database was written by a newer program.
    """
    version = version_of(connection)
    if version == head:
        return None
    # Alembic takes a while to import and is needed on the first start after an update only.
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise VersionError(
            f"The database {path} is newer than this program.",
            f"It has schema {version}; this program knows schemas up to {head}.",
            "Update this coordinator, or restore a copy from before the update.",
        )
    copy = None if version is None else _copy(connection, path, version)
    _upgrade(connection, config, head)
    return copy


def _copy(connection: sqlite3.Connection, path: Path, version: str) -> Path:
    """A compact copy named after the schema it has; safe on disk before anything changes."""
    copy = path.with_name(f"{path.name}.schema-{version}.backup")
    unfinished = copy.with_name(copy.name + ".part")
    unfinished.unlink(missing_ok=True)
    connection.execute("VACUUM INTO ?", (str(unfinished),))
    fsync(unfinished)
    unfinished.replace(copy)
    fsync(copy.parent)
    return copy


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _upgrade(connection: sqlite3.Connection, config: Config, head: str) -> None:
    """Run the revisions on the connection that is open already, all or none."""
    from alembic import command
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as alchemy, alchemy.begin():
        # The driver is in autocommit mode, so this BEGIN is the transaction; SQLAlchemy's
        # commit or rollback at the end of the block closes it.
        connection.execute("BEGIN IMMEDIATE")
        config.attributes["connection"] = alchemy
        command.upgrade(config, head)
