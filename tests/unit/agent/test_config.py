"""The agent's settings file: what it may say, and how it says no."""

from __future__ import annotations

from pathlib import Path

import pytest

from officegrid.agent.config import AgentConfig, load_config
from officegrid.core.errors import UsageError


def _load(folder: Path, text: str) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_no_file_means_all_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "agent.toml") == AgentConfig()


def test_all_tables(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        [vm]
        driver = "qemu"
        name = "Grid 2"
        memory_mb = 1024
        [vm.options]
        accelerator = "tcg"
        [sensors]
        kind = "file"
        file = "/run/presence.json"
        [rules]
        idle = "10m"
        quiet_hours = ["mon-fri 08:00-18:00"]
        """,
    )
    assert config.vm.driver == "qemu"
    assert config.vm.options == {"accelerator": "tcg"}
    assert config.sensors.file == Path("/run/presence.json")
    assert config.rules.idle_s == 600
    assert config.rules.quiet_hours == ["mon-fri 08:00-18:00"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[vm]\nmemory = 5", "vm.memory"),
        ("[vm]\ndriver = 'vmware'", "vm.driver"),
        ("[vm]\nname = '../x'", "vm.name"),
        ("[rules]\nidel = '5m'", "idel"),
        ("[rules]\nidle = 'soon'", "soon"),
        ("rules = 5", "rules"),
        ("[vm", "TOML"),
        ("surprise = 1", "surprise"),
        ("[sensors]\nkind = 'file'", "needs file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, text)
    assert named in str(caught.value)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError):
        load_config(tmp_path / "agent.toml")
