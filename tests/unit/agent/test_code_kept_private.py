"""A join code in the environment is not passed on to programs that the commands start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from officegrid.agent.install.as_account import run_as
from officegrid.cli.image_seed import seed
from officegrid.cli.join import join
from officegrid.core.errors import UsageError
from officegrid.core.joincode import format_code

CODE = "OFFICEGRID_CODE"


def test_the_account_of_the_agent_gets_a_short_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "win32":
        pytest.skip("a script with a first line")
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable} -I\nimport json, os\nprint(json.dumps([*os.environ.items()]))\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv(CODE, "a-secret")
    monkeypatch.setenv("OFFICEGRID_ACCOUNT_PASSWORD", "a-secret")
    monkeypatch.setenv("CI_TOKEN", "a-secret")
    told = run_as("", "check", tmp_path, python=str(python))
    assert "a-secret" not in str(told)
    assert str(("PATH", os.environ["PATH"])).strip("()") in str(told)
    assert str(("HOME", str(tmp_path))).strip("()") in str(told)


def test_join_takes_the_code_out_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFICEGRID_HOME", str(tmp_path))
    monkeypatch.setenv(CODE, "not-a-code")
    with pytest.raises(UsageError, match="join code"):
        join.main(["https://127.0.0.1:9", "--no-install"], standalone_mode=False)
    assert CODE not in os.environ


def test_image_seed_takes_the_code_out_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = format_code(bytes(range(16)), bytes(32))
    monkeypatch.setenv(CODE, code)
    disk = tmp_path / "seed.iso"
    seed.main(["-o", str(disk), "--url", "https://grid.test"], standalone_mode=False)
    assert code.encode() in disk.read_bytes()
    assert CODE not in os.environ
