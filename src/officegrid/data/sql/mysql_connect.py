"""Connections to MySQL and MariaDB."""

from __future__ import annotations

import socket
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from officegrid.core.errors import UsageError
from officegrid.data.sql.source import SqlSource
from officegrid.data.sql.troubles import from_mysql, missing_driver

if TYPE_CHECKING:
    import pymysql

    MySqlConnection = pymysql.Connection[Any]

# Seconds of silence after which the kernel asks whether the other side is still there.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


def connect_mysql(source: SqlSource) -> MySqlConnection:
    """A new connection with utf8mb4 and UTC. Raises OfficeGridError."""
    try:
        import pymysql
    except ImportError:
        raise missing_driver("pymysql") from None
    tls = _tls(source)
    try:
        connection = _connection_class()(
            host=source.host or "localhost",
            port=source.port,
            unix_socket=source.socket or None,
            user=source.user,
            password=source.secret().encode(),
            database=source.database,
            charset="utf8mb4",
            connect_timeout=source.connect_timeout_s,
            read_timeout=source.silence_s,
            write_timeout=source.silence_s,
            autocommit=True,
            program_name="officegrid",
            **tls,
        )
        _keep_alive(connection)
        # A consumer that is slow for a while must not have the server hang up on it.
        with connection.cursor() as cursor:
            cursor.execute(
                "SET SESSION time_zone = '+00:00', net_write_timeout = 3600, wait_timeout = 28800"
            )
    except pymysql.Error as error:
        raise from_mysql(source, error) from None
    return connection


@lru_cache(maxsize=1)
def _connection_class() -> type[MySqlConnection]:
    """PyMySQL's, but TLS that verifies nothing does not load the system's authorities first.

    That takes 70 ms, at each connection.
    """
    import pymysql

    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE

    class Lean(pymysql.Connection):
        def _create_ssl_ctx(self, given: Any) -> ssl.SSLContext:
            return given if isinstance(given, ssl.SSLContext) else unverified

    return Lean


def _tls(source: SqlSource) -> dict[str, Any]:
    """Without a mode: verified where an authority is named, else TLS if the server has it."""
    options = source.options
    authority = options.get("ssl_ca")
    mode = options.get("ssl_mode") or ("verify_identity" if authority else "preferred")
    if mode == "disabled" or source.socket:
        return {"ssl_disabled": True}
    if mode == "preferred":
        return {}
    try:
        context = ssl.create_default_context(cafile=authority)
        # Certificates that servers make for themselves lack what the strict mode wants.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = mode == "verify_identity"
        if mode == "required":
            context.verify_mode = ssl.CERT_NONE
        if options.get("ssl_cert"):
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"The TLS files of source {source.name!r} cannot be read.",
            f"{error.strerror or error}.",
            "Correct ssl_ca, ssl_cert and ssl_key.",
        ) from None
    return {"ssl": context}


def _keep_alive(connection: MySqlConnection) -> None:
    found = getattr(connection, "_sock", None)
    if isinstance(found, socket.socket) and found.family != getattr(socket, "AF_UNIX", None):
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def run(connection: MySqlConnection, sql: str) -> list[tuple[Any, ...]]:
    """Execute one statement as it is; all its rows. Raises pymysql.Error."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())
