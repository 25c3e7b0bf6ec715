"""The tests in inside/, run by pytest on a Windows Python: one test here for each file there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wine.conftest import Rig, windows_path

INSIDE = Path(__file__).parent / "inside"
FILES = sorted(path.name for path in INSIDE.glob("test_*.py"))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", FILES)
def test_on_a_windows_python(rig: Rig, name: str, tmp_path: Path) -> None:
    code, output = rig.run(
        "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "-W", "error",
        "--timeout", "60", "-c", windows_path(INSIDE / "pytest.ini"),
        "--basetemp", windows_path(tmp_path / "windows"), windows_path(INSIDE / name),
        timeout_s=170,
    )  # fmt: skip
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert "skipped" not in output, output
