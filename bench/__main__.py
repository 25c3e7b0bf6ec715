"""`make bench`: all benchmarks, or those named: python -m bench records start."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from bench import coordinator, deltas, desk, peers, records, sql, start


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        default=["records", "start", "coordinator", "deltas", "peers", "sql", "desk"],
    )
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=200, help="of the data set in deltas")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="officegrid-bench-"))
    try:
        if "records" in chosen.names:
            records.run(folder, chosen.records, chosen.rounds)
        if "start" in chosen.names:
            start.run(folder, chosen.rounds)
        if "coordinator" in chosen.names:
            coordinator.run(folder)
        if "deltas" in chosen.names:
            deltas.run(folder, chosen.megabytes)
        if "peers" in chosen.names:
            peers.run(folder, chosen.megabytes)
        if "sql" in chosen.names:
            sql.run(folder, chosen.records // 2, chosen.rounds)
        if "desk" in chosen.names:
            desk.run(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
