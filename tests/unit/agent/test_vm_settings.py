"""What the agent's settings become for a driver."""

from __future__ import annotations

import stat
from pathlib import Path

import psutil
import pytest

from officegrid.agent.config import AgentConfig, VmConfig
from officegrid.agent.files import Folders
from officegrid.agent.watch import vm_settings


@pytest.mark.parametrize(
    ("cores", "asked", "given"), [(8, 0, 7), (8, 4, 4), (8, 8, 7), (2, 0, 1), (1, 0, 1), (1, 3, 1)]
)
def test_one_core_always_stays_the_desk_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, asked: int, given: int
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: cores if not logical else 64)
    config = AgentConfig(vm=VmConfig(cpus=asked))
    assert vm_settings(config, Folders(tmp_path)).cpus == given


def test_the_vms_folder_is_for_the_agent_alone(tmp_path: Path) -> None:
    settings = vm_settings(AgentConfig(), Folders(tmp_path))
    assert stat.S_IMODE(settings.folder.stat().st_mode) == 0o700
