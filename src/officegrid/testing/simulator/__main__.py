"""`python -m officegrid.testing.simulator`: run universes, print what went wrong and how to see
it again. Exit code 1 when any universe failed."""

from __future__ import annotations

import argparse
import sys
import time

from officegrid.testing.simulator.server import forget_empty_database
from officegrid.testing.simulator.universe import Outcome, run_seed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m officegrid.testing.simulator")
    parser.add_argument("--seed", type=int, default=1, help="the first universe (default: 1)")
    parser.add_argument("--count", type=int, help="how many universes, from that seed on")
    parser.add_argument("--seconds", type=float, help="go on for so many seconds of real time")
    parser.add_argument("--verbose", action="store_true", help="tell everything that happens")
    options = parser.parse_args(arguments)
    count = options.count or (10**9 if options.seconds else 1)
    ends_at = time.monotonic() + options.seconds if options.seconds else float("inf")
    failed: list[int] = []
    ran = 0
    started = time.monotonic()
    try:
        for seed in range(options.seed, options.seed + count):
            outcome = run_seed(seed, echo=print if options.verbose else None)
            ran += 1
            if not outcome.is_well:
                failed.append(seed)
            _tell(outcome)
            if time.monotonic() >= ends_at:
                break
    finally:
        forget_empty_database()
    spent_s = time.monotonic() - started
    print(
        f"{ran} universes in {spent_s:.1f} s, {len(failed)} failed{': ' if failed else '.'}", end=""
    )
    print(*failed)
    return 1 if failed else 0


def _tell(outcome: Outcome) -> None:
    if outcome.is_well:
        print(
            f"seed {outcome.seed}: well. {outcome.virtual_s:,.0f} virtual s, "
            f"{outcome.records:,} records, {outcome.commits:,} commits, "
            f"{outcome.deaths} machines brought down, log {outcome.digest[:12]}"
        )
    else:
        print(outcome.report)


if __name__ == "__main__":
    sys.exit(main())
