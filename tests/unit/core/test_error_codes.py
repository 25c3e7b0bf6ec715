"""Errors that crossed the wire come back as what they were."""

from __future__ import annotations

from officegrid.core.errors import LimitError, OfficeGridError, UnavailableError, from_wire


def test_a_code_means_the_class_that_brought_it_in() -> None:
    class MoreSpecialError(UnavailableError):
        """Inherits the code; whoever reads the code must not become this."""

    assert type(from_wire("unavailable", "what")) is UnavailableError
    assert MoreSpecialError.code == "unavailable"
    assert type(from_wire("limit", "what")) is LimitError


def test_an_unknown_code_is_kept() -> None:
    error = from_wire("from_the_future", "what", "why", "fix")
    assert type(error) is OfficeGridError
    assert error.code == "from_the_future"
