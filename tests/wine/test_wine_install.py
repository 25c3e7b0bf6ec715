"""`officegrid agent install | uninstall` on a Windows Python: service, Run key, folder, list."""

from __future__ import annotations

import shutil
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
    for word in ("icacls", "/inheritance:r", "memory_mb = 2000", "LocalSystem"):
        assert word in shown
    assert "pythonw.exe" not in shown
    assert not home.exists()
    assert "None | None | None" in rig.run("-c", LOOK)[1]

    assert "The agent is installed." in agent("install", "--driver", "virtualbox")
    found = rig.run("-c", LOOK)[1]
    assert "-P -m officegrid.agent.install.windows_host C:\\ProgramData\\OfficeGrid" in found
    assert "| LocalSystem |" in found
    assert found.strip().endswith("| None")
    assert 'driver = "virtualbox"' in (home / "agent.toml").read_text(encoding="utf-8")
    assert kept.exists()
    assert "Nothing to change." in agent("install")
    named = agent("install", "--account", r".\grid", "--dry-run")
    assert "pythonw.exe" in named  # in the Run key: only LocalSystem starts the helpers itself
    assert "/grant:r grid:(OI)(CI)F" in named

    agent("uninstall", "--purge")
    assert "None | None | None" in rig.run("-c", LOOK)[1]
    assert not home.exists()
    assert not Path(kept).exists()


@pytest.mark.timeout(120)
def test_a_folder_that_somebody_has_put_there_is_not_trusted(clean_rig: Rig) -> None:
    rig = clean_rig
    home = rig.prefix / "drive_c/ProgramData/OfficeGrid"
    home.mkdir()
    (home / "agent.toml").write_text('[vm]\ndriver = "process"\n')
    (home / "profile.json").write_text("{}")
    for more in ([], ["--dry-run"]):
        code, output = rig.run("-m", "officegrid", "agent", "install", *more)
        assert code == 1, output
        assert "OfficeGrid is there already, and the agent may not trust it" in output
        assert "No installation has made it" in output
    assert "None | None | None" in rig.run("-c", LOOK)[1]
    assert not (rig.prefix / "drive_c/Program Files/OfficeGrid").exists()
    # Nor when it appears after that look: the call that makes the folder notices.
    script = (
        "from pathlib import Path; from officegrid.agent.install import windows_folder as w; "
        r"w.make(Path(r'C:\ProgramData\OfficeGrid'))"
    )
    code, output = rig.run("-c", script)
    assert code == 1
    assert "ConflictError" in output
    shutil.rmtree(home)
    # Nor one of another owner, although an installation says that it made a folder there.
    script = (
        "from pathlib import Path; from officegrid.agent.install import windows_folder as w; "
        r"p = Path(r'C:\ProgramData\OfficeGrid'); w.make(p); w.refuse_foreign(p, ours=True); "
        "w.accounts.own_sid = lambda: ''; w.refuse_foreign(p, ours=True)"
    )
    code, output = rig.run("-c", script)
    assert code == 1
    assert "It belongs to S-1-5-" in output  # Wine makes all folders the user's
    home.rmdir()


@pytest.mark.timeout(120)
def test_the_value_of_a_named_account_goes_when_localsystem_takes_over(clean_rig: Rig) -> None:
    rig = clean_rig
    write = (
        "from officegrid.agent.windows import runkey; "
        "from officegrid.agent.install import windows_service as w; "
        "from officegrid.agent.install.plan import Facts; "
        r"runkey.write(w.run_key(Facts(r'C:\og\python.exe')))"
    )
    assert rig.run("-c", write)[0] == 0
    assert r"| C:\og\pythonw.exe" in rig.run("-c", LOOK)[1].replace('"', "")
    code, output = rig.run("-m", "officegrid", "agent", "install")
    assert code == 0, output
    assert "remove  the value OfficeGridSession" in output
    assert rig.run("-c", LOOK)[1].strip().endswith("| None")
    assert rig.run("-m", "officegrid", "agent", "uninstall", "--purge")[0] == 0


@pytest.mark.timeout(120)
def test_the_service_says_in_its_log_why_it_cannot_run(rig: Rig) -> None:
    home = rig.prefix / "drive_c/grid home"
    home.mkdir()
    # Started by hand, not by the service manager.
    code, _ = rig.run("-m", "officegrid.agent.install.windows_host", "C:\\grid home")
    assert code == 1
    assert "The service manager did not start this process." in (home / "agent.log").read_text()
