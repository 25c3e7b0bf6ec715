"""The coordinator's log: an error is told with its traceback, and without what variables hold."""

from __future__ import annotations

import pytest
import structlog

from officegrid.coordinator.log import configure_logging, get_logger

SECRET = "s3cret-of-the-database"


@pytest.fixture(autouse=True)
def _as_before() -> object:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def _fail() -> None:
    password = SECRET.encode()
    url = f"mysql://me:{SECRET}@db/x"
    raise ValueError(f"{len(password) + len(url)} bytes")


@pytest.mark.parametrize("json_lines", [False, True])
def test_the_variables_of_an_error_are_never_logged(
    json_lines: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(json_lines=json_lines)
    try:
        _fail()
    except ValueError as error:
        get_logger("test").error("unexpected_error", password=SECRET, exc_info=error)
    told = capsys.readouterr().err
    assert "_fail" in told, "where it happened"
    assert SECRET not in told
