"""URLs of databases: what is understood, and that no password is ever told."""

from __future__ import annotations

from pathlib import Path

import pytest

from officegrid.core.errors import UsageError
from officegrid.data.sql.source import parse_source


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+pymysql://u:p%40ss@db:3307/crm", "mysql://u@db:3307/crm"),
        ("mysql://u:p@db/crm", "mysql://u@db:3306/crm"),
        ("mariadb://u:p@db/crm?ssl_mode=VERIFY_CA&ssl_ca=/ca.pem", "mysql://u@db:3306/crm"),
        ("mysql://u@/crm?unix_socket=/run/my.sock", "mysql://u@/run/my.sock/crm"),
        ("mysql://u:p@db/crm?charset=utf8mb4", "mysql://u@db:3306/crm"),
        ("postgresql://u:p@db/crm", "postgresql://u@db:5432/crm"),
        ("postgres://u:p@[::1]:99/crm?sslmode=verify-full", "postgresql://u@::1:99/crm"),
        ("postgresql+psycopg://u@/crm?host=/run/pg&port=7", "postgresql://u@/run/pg/crm"),
        ("postgresql://u@/crm?host=db", "postgresql://u@db:5432/crm"),
        ("sqlite:////data/x%20y.sqlite", "sqlite:////data/x y.sqlite"),
    ],
)
def test_urls_that_are_understood(url: str, shown: str) -> None:
    assert parse_source("crm", url).describe() == shown


def test_parts_are_decoded() -> None:
    found = parse_source("crm", "mysql://u%40x:p%40ss%2Fw%3A%23@db/c%20d")
    assert (found.user, found.secret(), found.database) == ("u@x", "p@ss/w:#", "c d")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3cr3t-word", "no scheme"),
        ("oracle://u:s3cr3t-word@db/crm", "'oracle' is not known"),
        ("mysql://u:s3cr3t-word@db", "names no database"),
        ("mysql://u:s3cr3t-word@db/a/b", "names no database"),
        ("mysql://u:s3cr3t-word@/crm", "names no host"),
        ("mysql://:s3cr3t-word@db/crm", "names no user"),
        ("mysql://u:s3cr3t-word@db:99999/crm", "cannot be read"),
        ("mysql://u:s3cr3t/word@db/crm", "cannot be read"),
        ("mysql://u:s3cr3t#word@db/crm", "cannot be read"),
        ("mysql://u:s3cr3t-word@db/crm#x", "a #"),
        ("mysql://u:s3cr3t-word[@db/crm", "cannot be read"),
        ("mysql://u:p@db/crm?s3cr3t-word=1", "unknown option"),
        ("mysql://u:p@db/crm?ssl_mode=s3cr3t-word", "ssl_mode is not known"),
        ("postgresql://u:p@db/crm?sslmode=s3cr3t-word", "sslmode is not known"),
        ("postgresql://u@/crm?host=/run&port=s3cr3t-word", "port is not a number"),
        ("mysql://u:s3cr3t-word@db/crm?charset=latin1", "utf8mb4"),
        ("sqlite://data/s3cr3t-word", "a host is named"),
        ("sqlite:///s3cr3t-word", "not absolute"),
    ],
)
def test_urls_that_are_wrong_are_told_without_the_url(url: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source("crm", url)
    told = str(caught.value)
    assert why in told
    assert "'crm'" in told
    assert "s3cr3t" not in told


def test_passwords_from_files_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("of the file\n")
    source = parse_source("crm", "mysql://u@db/crm", password_file=file)
    assert source.secret() == "of the file"
    file.write_text("changed\n")
    assert source.secret() == "changed"
    file.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        source.secret()
    source = parse_source("crm", "mysql://u@db/crm", password_env="CRM_PASSWORD")
    with pytest.raises(UsageError, match="is missing"):
        source.secret()
    monkeypatch.setenv("CRM_PASSWORD", "of the environment")
    assert source.secret() == "of the environment"
    with pytest.raises(UsageError, match="given twice"):
        parse_source("crm", "mysql://u:p@db/crm", password_file=file)


def test_a_source_never_shows_its_password() -> None:
    source = parse_source("crm", "mysql://u:s3cr3t@db/crm")
    assert "s3cr3t" not in repr(source) + str(source) + source.describe()
    assert source.scrub("denied for u with s3cr3t!") == "denied for u with ***!"
    short = parse_source("crm", "mysql://u:a@db/crm")
    assert short.scrub("access denied") == "access denied"
