"""`officegrid join --install` on a Windows Python: from a code to a service that the coordinator
hears, in one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.grid import Grid, wait_for
from wine.conftest import ROOT, Rig, windows_path

STATE = (
    "from officegrid.agent.windows import control; f = control.look('OfficeGridAgent'); "
    "print('service', f and f.state)"
)
CLEAN = (
    "from officegrid.agent.windows import control; "
    "control.look('OfficeGridAgent') and control.uninstall('OfficeGridAgent')"
)


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    made = Grid(tmp_path / "grid")
    made.start()
    yield made
    made.close()


@pytest.fixture
def installed_rig(rig: Rig) -> Iterator[Rig]:
    """Its Python has officegrid also for services, which do not get our PYTHONPATH."""
    # Of no consequence for others that use this Python now: they have the same folder already.
    path = rig.python.parent / "Lib" / "site-packages" / f"officegrid-{os.getpid()}.pth"
    path.write_text(windows_path(ROOT / "src") + "\n", encoding="utf-8")
    assert rig.run("-c", CLEAN)[0] == 0
    yield rig
    assert rig.run("-c", CLEAN)[0] == 0
    path.unlink()


@pytest.mark.timeout(300)
def test_one_command_makes_a_desktop_that_is_heard(installed_rig: Rig, grid: Grid) -> None:
    rig = installed_rig
    secret = grid.code("agent", uses=2)

    def join(*options: str) -> str:
        code, output = rig.run(
            "-m", "officegrid", "join", grid.url, "--install", "--driver", "process", *options,
            timeout_s=120, OFFICEGRID_CODE=secret,
        )  # fmt: skip
        assert code == 0, output
        assert secret not in output
        return output

    def agents() -> list[str]:
        return [m["id"] for m in grid.read("machines") if m["role"] == "agent"]

    def heard(machine_id: str) -> None:
        def reported() -> bool:
            desk = grid.machine(machine_id).desk
            return desk is not None and desk.heard_ago_s is not None

        wait_for(reported, "the desktop reports to the coordinator", 60)

    try:
        said = join("--name", "win-1")
        assert "service OfficeGridAgent" in said
        assert "as agent 'win-1'" in said
        (first,) = agents()
        heard(first)
        assert "service running" in rig.run("-c", STATE)[1]
        assert "Nothing to change." in join()
        assert agents() == [first]
        # The service is started anew with another identity.
        assert "a new identity" in join("--anew", "--name", "win-2")
        (second,) = set(agents()) - {first}
        heard(second)
    finally:
        code, output = rig.run("-m", "officegrid", "agent", "uninstall", "--purge", timeout_s=120)
    assert code == 0, output
    assert not (rig.prefix / "drive_c/ProgramData/OfficeGrid").exists()
