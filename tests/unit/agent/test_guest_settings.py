"""`[vm.guest]`: what may be said, what is refused, and that the guest reads what it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from officegrid.agent.config import AgentConfig, load_config
from officegrid.agent.files import Folders
from officegrid.agent.joining import Joining
from officegrid.agent.orders import KeptOrders
from officegrid.agent.seed import Seed
from officegrid.core.errors import UsageError
from officegrid.core.vm import VmState
from officegrid.core.vmlife import Action, Verb, Want
from officegrid.guest.settings import merge
from officegrid.transport.profile import Profile

ALL = """
[vm.guest]
start = "cron"
every_minutes = 10
slots = 3
proxy = "http://proxy.example.com:3128"
ntp = ["ntp.example.com", "192.0.2.7", "2001:db8::7"]
allow = ["db.example.com:3306", "10.1.0.0/16:443", "[2001:db8::]:53", "[2001:db8::/64]:443"]
"""


def _load(folder: Path, text: str) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_what_is_stated_is_told_and_nothing_else(tmp_path: Path) -> None:
    assert AgentConfig().vm.guest.stated() == {}
    told = _load(tmp_path, ALL).vm.guest.stated()
    assert told["every_minutes"] == 10
    assert set(told) == {"start", "every_minutes", "slots", "proxy", "ntp", "allow"}
    assert _load(tmp_path, "[vm.guest]\nslots = 2").vm.guest.stated() == {"slots": 2}


def test_the_guest_understands_all_that_is_accepted(tmp_path: Path) -> None:
    told = _load(tmp_path, ALL).vm.guest.stated()
    settings, complaints = merge({}, json.loads(json.dumps(told)))
    assert complaints == []
    assert (settings.start, settings.every_minutes, settings.slots) == ("cron", 10, 3)
    assert settings.proxy == "http://proxy.example.com:3128"
    assert list(settings.allow) == told["allow"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('start = "sometimes"', "vm.guest.start"),
        ("every_minutes = 60", "vm.guest.every_minutes"),
        ("every_minutes = 0", "vm.guest.every_minutes"),
        ("slots = 0", "vm.guest.slots"),
        ('proxy = "http://anna:secret@proxy:3128"', "without user and password"),
        ('proxy = "https://proxy:3128"', "http://host:port"),
        ('proxy = "http://proxy"', "http://host:port"),
        ('proxy = "http://proxy:70000"', "http://host:port"),
        ('ntp = ["ntp example"]', "'ntp example'"),
        ('ntp = ["ntp.example.com:123"]', "ntp.example.com:123"),
        ('allow = ["db.example.com"]', "'db.example.com'"),
        ('allow = ["10.1.0.0/40:443"]', "10.1.0.0/40:443"),
        ('allow = ["2001:db8::1:443"]', "2001:db8::1:443"),
        ('allow = ["db; drop:1"]', "db; drop:1"),
        ('user = "root"', "vm.guest.user"),
    ],
)
def test_mistakes_in_guest_settings_are_named(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, f"[vm.guest]\n{line}")
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_seed_says_nothing_where_nothing_is_stated() -> None:
    assert "settings" not in json.loads(Seed("i", "n").files()["officegrid.json"])


def test_the_agent_puts_them_on_the_seed_disk(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.agent.mkdir(parents=True)
    profile = Profile(
        url="https://grid.test", ca_pem="", machine_id="m", token="t", role="agent", name="desk"
    )
    joining = Joining(
        folders, profile, None, KeptOrders(folders.orders),  # type: ignore[arg-type]
        settings=_load(tmp_path, ALL).vm.guest.stated(), in_touch_since_s=lambda: None,
        vm_name="GridMachine",
    )  # fmt: skip
    joining.prepare(Action(Verb.IMPORT_IMAGE, "import", Want.RUN), VmState.ABSENT)
    told = json.loads((folders.seed / "officegrid.json").read_text())
    assert told["settings"]["start"] == "cron"
    assert told["settings"]["allow"][0] == "db.example.com:3306"
    assert b"10.1.0.0/16:443" in folders.seed_iso.read_bytes()
