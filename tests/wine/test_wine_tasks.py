"""`officegrid agent tasks` on Windows, and what schtasks takes of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from wine.conftest import Rig, windows_path


def test_the_tasks_are_written_and_taken(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    code, output = rig.run(
        "-m", "officegrid", "agent", "tasks", "--vm", "GridMachine", "--user", r"PC\grid",
        "-o", windows_path(folder),
    )  # fmt: skip
    assert code == 0, output
    written = sorted(folder.glob("*.xml"))
    assert len(written) == 2
    for path in written:
        raw = path.read_bytes()
        assert raw.startswith(b"\xff\xfe")  # schtasks takes UTF-16 with a byte order mark only
        assert "GridMachine" in raw.decode("utf-16")
        # Wine's schtasks judges the arguments only, not the task.
        create = ["schtasks", "/create", "/tn", path.stem, "/xml", windows_path(path), "/f"]
        done = subprocess.run(
            ["wine", *create], env=rig.environment(), timeout=60, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, create
