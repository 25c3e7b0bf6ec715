"""Databases as the coordinator's configuration names them: one URL each, checked when it is read.

    mysql+pymysql://user:password@host:3306/database   also mysql:// and mariadb://
    postgresql://user:password@host:5432/database      also postgres://
    sqlite:////absolute/path.sqlite

A password never leaves this module but to the driver: not in `repr`, not in an error, not in a log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from officegrid.core.errors import UsageError

Dialect = Literal["mysql", "postgresql", "sqlite"]

_SCHEMES: dict[str, Dialect] = {
    "mysql": "mysql",
    "mysql+pymysql": "mysql",
    "mariadb": "mysql",
    "mariadb+pymysql": "mysql",
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "postgresql+psycopg": "postgresql",
    "sqlite": "sqlite",
}
_PORTS: dict[Dialect, int] = {"mysql": 3306, "postgresql": 5432, "sqlite": 0}
_OPTIONS: dict[Dialect, set[str]] = {
    "mysql": {"unix_socket", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key", "charset"},
    "postgresql": {"host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey"},
    "sqlite": set(),
}
_SSL_MODES = {
    "mysql": ("ssl_mode", ["disabled", "preferred", "required", "verify_ca", "verify_identity"]),
    "postgresql": (
        "sslmode",
        ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
    ),
}
_HIDDEN = "***"
_SHORTEST_SCRUBBED = 4  # shorter ones would blank out ordinary words, and so show themselves


@dataclass(frozen=True)
class SqlSource:
    """One database and how to get in. Make it with `parse_source`."""

    name: str
    dialect: Dialect
    host: str = ""
    port: int = 0
    database: str = ""  # SQLite: the path of the file
    user: str = ""
    options: dict[str, str] = field(default_factory=dict)
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    password_env: str | None = None
    connect_timeout_s: float = 10.0
    silence_s: float = 3600.0  # a server that sends nothing for so long is taken for dead

    def describe(self) -> str:
        """The URL without the password, for people."""
        if self.dialect == "sqlite":
            return f"sqlite:///{self.database}"
        place = f"{self.host}:{self.port}" if self.host else self.socket
        return f"{self.dialect}://{self.user}@{place}/{self.database}"

    @property
    def socket(self) -> str:
        """Path of the unix socket (PostgreSQL: of its folder); "" if it is not one."""
        return self.options.get("unix_socket", "") if not self.host else ""

    def secret(self) -> str:
        """The password as it is now. Raises UsageError where it cannot be read."""
        if self.password_file is not None:
            return _from_file(self.name, self.password_file)
        if self.password_env is not None:
            found = os.environ.get(self.password_env)
            if found is None:
                raise UsageError(
                    f"The password of source {self.name!r} is missing.",
                    f"The environment variable {self.password_env} is not set.",
                    "Set it where the coordinator is started.",
                )
            return found
        return self.password

    def scrub(self, text: str) -> str:
        """`text`, which somebody else wrote, without the password."""
        try:
            secret = self.secret()
        except UsageError:
            return text
        return text.replace(secret, _HIDDEN) if len(secret) >= _SHORTEST_SCRUBBED else text


def _from_file(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"The password file of source {name!r} cannot be read.",
            f"{path}: {why}.",
            "Let the coordinator's account read it, and nobody else.",
        ) from None


def parse_source(
    name: str,
    url: str,
    *,
    password_file: str | Path | None = None,
    password_env: str | None = None,
    connect_timeout_s: float = 10.0,
    silence_s: float = 3600.0,
) -> SqlSource:
    """The source `name` of the configuration. Raises UsageError, which never holds the URL."""
    split, dialect = _split(name, url)
    options = _options(name, split, dialect)
    if dialect == "sqlite":
        return SqlSource(name, dialect, database=_sqlite_path(name, split))
    database = unquote(split.path.removeprefix("/"))
    if not database or "/" in database:
        raise _wrong(name, "it names no database", "End it in /DATABASE.")
    host, port = _place(name, split, dialect, options)
    password = unquote(split.password or "")
    given = [bool(password), password_file is not None, password_env is not None]
    if sum(given) > 1:
        raise _wrong(name, "the password is given twice", "Give it in one place only.")
    user = unquote(split.username or "")
    if not user:
        raise _wrong(name, "it names no user", "Write USER:PASSWORD@ before the host.")
    return SqlSource(
        name, dialect, host, port, database, user, options, password,
        None if password_file is None else Path(password_file), password_env,
        connect_timeout_s, silence_s,
    )  # fmt: skip


def _wrong(name: str, why: str, fix: str) -> UsageError:
    return UsageError(f"The URL of source {name!r} is wrong: {why}.", fix=fix)


_ESCAPES = (
    "In a user name or password write @ as %40, / as %2F, : as %3A, # as %23, ? as %3F, % as %25, "
    "[ as %5B and ] as %5D, or use password_file."
)


def _split(name: str, url: str) -> tuple[SplitResult, Dialect]:
    scheme, separator, _ = url.partition("://")
    dialect = _SCHEMES.get(scheme.lower())
    if not separator or dialect is None:
        # Without "://" what looks like a scheme could be anything, a password too.
        shown = f"its scheme {scheme[:20]!r} is not known" if separator else "it has no scheme"
        raise _wrong(name, shown, "Begin it with mysql+pymysql://, postgresql:// or sqlite:///.")
    try:
        split = urlsplit(url)
        _ = split.port
    except ValueError:
        raise _wrong(name, "host or port cannot be read", _ESCAPES) from None
    if split.fragment:
        raise _wrong(name, "there is a # in it", _ESCAPES)
    return split, dialect


def _options(name: str, split: SplitResult, dialect: Dialect) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parse_qsl(split.query, keep_blank_values=True):
        if key not in _OPTIONS[dialect]:
            known = ", ".join(sorted(_OPTIONS[dialect])) or "none"
            raise _wrong(name, "it has an unknown option behind the ?", f"Known ones: {known}.")
        options[key] = value
    if options.pop("charset", "utf8mb4") != "utf8mb4":
        raise _wrong(name, "charset must be utf8mb4", "Leave charset out: it is utf8mb4 always.")
    if dialect in _SSL_MODES:
        key, modes = _SSL_MODES[dialect]
        mode = options.get(key, "").lower()
        if mode and mode not in modes:
            raise _wrong(name, f"{key} is not known", f"Known ones: {', '.join(modes)}.")
        if mode:
            options[key] = mode
    return options


def _place(
    name: str, split: SplitResult, dialect: Dialect, options: dict[str, str]
) -> tuple[str, int]:
    host = split.hostname or ""
    port = split.port or _PORTS[dialect]
    if dialect == "postgresql":
        other = options.pop("host", "")
        if other.startswith("/"):
            options["unix_socket"] = other
        elif other:
            host = host or other
        given = options.pop("port", "")
        if given and not (given.isascii() and given.isdigit() and 0 < int(given) < 65536):
            raise _wrong(name, "port is not a number from 1 to 65535", "Correct it.")
        port = int(given) if given else port
    if options.get("unix_socket"):
        return "", port
    if not host:
        raise _wrong(name, "it names no host", _ESCAPES)
    return host, port


def _sqlite_path(name: str, split: SplitResult) -> str:
    if split.netloc:
        raise _wrong(
            name, "a host is named", "Write sqlite:// and then the path: sqlite:////data/x.sqlite."
        )
    path = unquote(split.path).removeprefix("/")
    if not path.startswith("/"):
        raise _wrong(
            name, "the path is not absolute", "Write four slashes: sqlite:////data/x.sqlite."
        )
    return path
