"""`python -m bench desk`: how fast a desk is given back, and what the agent costs it.

A real agent with the X11 sensor on a real X server, the pointer moved by xdotool, a real guest of
1 GB under QEMU whose worker computes and writes to more than 500 MB of memory all the time. Each
figure is taken from outside: the X server's own time of the input, the CPU time of the thread that
runs the guest's processor, the process table, the ledger. In two series: on a quiet desk, and
beside two programs that each want a whole core. Needs root and what the guest is built with.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.report import heading

TESTS = Path(__file__).resolve().parents[1] / "tests"


def run(folder: Path) -> None:
    """Print all figures; a missing system part prints a sentence instead (under CI=true it is an
    error). Takes about six minutes."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import pytest

    from acceptance.grid import Grid
    from bench.desk_grid import MEMORY_MB, LoadedDesk, load
    from bench.desk_series import Bench
    from desktops import message_bus, mock_service, x_server
    from vm.guest import HOST, built_guest

    heading(f"A desk: a guest of {MEMORY_MB} MB under QEMU, with load; {load()}")
    try:
        guest = built_guest()
        here = folder / "desk"
        here.mkdir()
        with (
            message_bus(here) as bus,
            mock_service(bus, "--template", "logind", system=True),
            x_server() as x,
        ):
            grid = Grid(here / "grid", lease_s=20, names=[HOST])
            try:
                grid.start()
                desk = LoadedDesk(here, grid, guest, x, bus)
                try:
                    Bench(desk).run()
                except (AssertionError, TimeoutError):
                    print(grid.tails(), flush=True)
                    raise
                finally:
                    desk.close()
            finally:
                grid.close()
    except pytest.skip.Exception as reason:
        print(f"  Skipped: {reason}.", flush=True)
