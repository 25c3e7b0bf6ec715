"""Connections to PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.troubles import from_postgres, missing_driver

if TYPE_CHECKING:
    import psycopg

    PgConnection = psycopg.Connection[tuple[Any, ...]]

_SESSION = (
    "SET DateStyle = ISO; SET IntervalStyle = iso_8601; SET TimeZone = 'UTC';"
    "SET extra_float_digits = 1; SET bytea_output = hex; SET xmloption = content;"
    "SET standard_conforming_strings = on; SET idle_in_transaction_session_timeout = 0"
)


def connect_postgres(source: SqlSource) -> PgConnection:
    """A new connection, outside any transaction, UTF-8 and UTC. Raises OfficeGridError."""
    try:
        import psycopg
    except ImportError:
        raise missing_driver("psycopg") from None
    options: dict[str, Any] = dict(source.options)
    options.pop("unix_socket", None)
    try:
        connection = psycopg.connect(
            host=source.host or source.socket,
            port=source.port,
            user=source.user,
            password=source.secret(),
            dbname=source.database,
            client_encoding="UTF8",
            connect_timeout=max(2, round(source.connect_timeout_s)),
            application_name="officegrid",
            keepalives_idle=60,
            keepalives_interval=15,
            keepalives_count=4,
            autocommit=True,
            prepare_threshold=None,
            **options,
        )
        connection.execute(_SESSION)
    except psycopg.Error as error:
        raise from_postgres(source, error) from None
    return connection
