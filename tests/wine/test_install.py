"""`officegrid agent install | uninstall` on a Windows Python: service, Run key, folder, list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wine.conftest import Rig

LOOK = (
    "from officegrid.agent.windows import control, runkey; "
    "f = control.look('OfficeGridAgent'); "
    "print(f and f.image_path, '|', f and f.account, '|', runkey.read('OfficeGridSession'))"
)
CLEAN = (
    "from officegrid.agent.windows import control, runkey; "
    "runkey.remove('OfficeGridSession'); "
    "control.look('OfficeGridAgent') and control.uninstall('OfficeGridAgent')"
)


@pytest.fixture
def clean_rig(rig: Rig) -> Iterator[Rig]:
    """Without what a failed test has left in the registry."""
    assert rig.run("-c", CLEAN)[0] == 0
    yield rig
    assert rig.run("-c", CLEAN)[0] == 0


@pytest.mark.timeout(240)
def test_installed_shown_repeated_and_taken_away(clean_rig: Rig) -> None:
    rig = clean_rig

    def agent(*words: str) -> str:
        code, output = rig.run("-m", "officegrid", "agent", *words)
        assert code == 0, output
        return output

    home = rig.prefix / "drive_c/ProgramData/OfficeGrid"
    kept = rig.prefix / "drive_c/Program Files/OfficeGrid/install.json"
    shown = agent("install", "--driver", "virtualbox", "--memory", "2GB", "--dry-run")
    for word in ("icacls", "/inheritance:r", "memory_mb = 2000", "LocalSystem", "pythonw.exe"):
        assert word in shown
    assert not home.exists()
    assert "None | None | None" in rig.run("-c", LOOK)[1]

    assert "The agent is installed." in agent("install", "--driver", "virtualbox")
    found = rig.run("-c", LOOK)[1]
    assert "-P -m officegrid.agent.install.windows_host C:\\ProgramData\\OfficeGrid" in found
    assert "| LocalSystem |" in found
    assert "agent session" in found
    assert 'driver = "virtualbox"' in (home / "agent.toml").read_text(encoding="utf-8")
    assert kept.exists()
    assert "Nothing to change." in agent("install")

    agent("uninstall", "--purge")
    assert "None | None | None" in rig.run("-c", LOOK)[1]
    assert not home.exists()
    assert not Path(kept).exists()


@pytest.mark.timeout(120)
def test_the_service_says_in_its_log_why_it_cannot_run(rig: Rig) -> None:
    home = rig.prefix / "drive_c/grid home"
    home.mkdir()
    # Started by hand, not by the service manager.
    code, _ = rig.run("-m", "officegrid.agent.install.windows_host", "C:\\grid home")
    assert code == 1
    assert "The service manager did not start this process." in (home / "agent.log").read_text()
