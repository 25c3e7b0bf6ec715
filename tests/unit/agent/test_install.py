"""Plans of an installation: what is in them for each system, and that quoting holds."""

from __future__ import annotations

import configparser
import plistlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.agent.install import launchd, systemd, windows_service
from officegrid.agent.install.manifest import Manifest
from officegrid.agent.install.plan import (
    Command,
    Facts,
    Join,
    MakeAccount,
    MakeLink,
    Plan,
    RegisterService,
    SetRunKey,
    Wishes,
    WriteFile,
    settings_text,
)
from officegrid.core.errors import UsageError
from parts import need

LINUX = Facts("/opt/office grid/bin/python", groups=("input", "kvm"), systemd_version=252)
WINDOWS = Facts(r"C:\Program Files\OfficeGrid\python.exe", joined=True)


def written(plan: Plan) -> dict[str, WriteFile]:
    return {step.path: step for step in plan.steps if isinstance(step, WriteFile)}


def commands(plan: Plan) -> list[str]:
    return [" ".join(step.words) for step in plan.steps if isinstance(step, Command)]


def unit_of(wishes: Wishes, facts: Facts = LINUX) -> dict[str, str]:
    lines = systemd.unit_text(wishes, facts).splitlines()
    return dict(line.partition("=")[::2] for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("driver", ["auto", "virtualbox", "qemu", "libvirt", "process"])
def test_the_service_never_ends_the_vm_and_never_gives_up(driver: str) -> None:
    unit = unit_of(Wishes(driver=driver))
    assert unit["KillMode"] == "process"
    assert unit["RestartKillSignal"] == "SIGKILL"
    assert unit["OOMPolicy"] == "continue"
    assert (unit["Restart"], unit["RestartSec"]) == ("always", "2")
    assert unit["StartLimitIntervalSec"] == "0"
    assert int(unit["TimeoutStopSec"]) > 90  # so long the agent saves
    # X servers are found in /tmp, and the VM's files may be looked for there by nobody else.
    assert not {"PrivateTmp", "PrivateDevices", "ProtectClock", "DeviceAllow"} & set(unit)
    assert "MemoryDenyWriteExecute" not in unit


def test_hardening_leaves_virtualbox_its_setuid_programs() -> None:
    assert unit_of(Wishes(driver="qemu"))["NoNewPrivileges"] == "yes"
    # Every one of these brings NoNewPrivileges with it for a service that is not root.
    implies = re.compile("NoNewPrivileges|Restrict|ProtectKernel|ProtectHost|SystemCall|LockPers")
    for driver in ("auto", "virtualbox", None):
        assert not [key for key in unit_of(Wishes(driver=driver)) if implies.match(key)]


def test_groups_only_where_they_are_needed_and_exist() -> None:
    assert unit_of(Wishes(driver="qemu"))["SupplementaryGroups"] == "input kvm"
    assert unit_of(Wishes(driver="process"))["SupplementaryGroups"] == "input"
    none = Facts("/usr/bin/python3")
    assert "SupplementaryGroups" not in unit_of(Wishes(), none)
    assert any("input" in note for note in systemd.plan(Wishes(), none).notes)
    root = unit_of(Wishes(account="root"))
    assert "User" not in root
    assert "SupplementaryGroups" not in root


def test_a_worker_without_a_vm_gets_control_groups() -> None:
    old = unit_of(Wishes(driver="process"))
    new = unit_of(Wishes(driver="process"), Facts("/p", systemd_version=254))
    assert old["Delegate"] == new["Delegate"] == "yes"
    assert "DelegateSubgroup" not in old
    assert new["DelegateSubgroup"] == "agent"
    assert "Delegate" not in unit_of(Wishes(driver="qemu"))


def test_linux_starts_only_what_has_joined_and_only_here() -> None:
    apart = systemd.plan(Wishes(), LINUX)
    assert any(isinstance(step, MakeAccount) for step in apart.steps)
    assert commands(apart) == ["systemctl daemon-reload", f"systemctl enable {systemd.SERVICE}"]
    joined = systemd.plan(Wishes(), Facts("/p", joined=True), "https://grid")
    assert commands(joined)[-2:] == [
        f"systemctl stop {systemd.SERVICE}",
        f"systemctl start {systemd.SERVICE}",
    ]
    kinds = [type(step) for step in joined.steps]
    assert kinds.index(Join) < kinds.index(Command)
    offline = systemd.plan(Wishes(), Facts("/p", offline=True))
    assert commands(offline) == []
    assert not any(isinstance(step, MakeAccount) for step in offline.steps)
    assert any(isinstance(step, MakeLink) for step in offline.steps)
    assert written(offline)[systemd.SYSUSERS].content.startswith(b"u officegrid - ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a Linux tool")
def test_sysusers_takes_the_account(tmp_path: Path) -> None:
    need("systemd-sysusers")
    content = written(systemd.plan(Wishes(), Facts("/p", offline=True)))[systemd.SYSUSERS].content
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", "--root", str(tmp_path), "-"], input=content, capture_output=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    accounts = (tmp_path / "etc/passwd").read_text(encoding="utf-8").splitlines()
    account = next(line for line in accounts if line.startswith("officegrid:"))
    assert account.strip().endswith(":/var/lib/officegrid:/usr/sbin/nologin")


WORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1)


@given(WORDS)
def test_systemd_reads_back_every_word(word: str) -> None:
    # As systemd.syntax(7) reads it: quotes, then specifiers, then variables.
    (read,) = shlex.split(systemd.quoted(word))
    assert read.replace("%%", "%").replace("$$", "$") == word


@given(WORDS)
def test_the_autostart_entry_reads_back(word: str) -> None:
    facts = Facts(f"/opt/{word}")
    parsed = configparser.RawConfigParser(delimiters="=", comment_prefixes=("#",))
    parsed.read_string(systemd.desktop_entry(facts))
    value = parsed["Desktop Entry"]["Exec"].replace("\\\\", "\\").replace("%%", "%")
    first = re.match(r'"((?:[^"\\]|\\.)*)"', value)
    assert first
    assert re.sub(r"\\(.)", r"\1", first[1]) == facts.python
    assert value.endswith('"-m" "officegrid" "agent" "session"')


@given(WORDS | st.text(max_size=5), st.integers(64, 10_000))
def test_settings_say_what_was_said(name: str, memory_mb: int) -> None:
    wishes = Wishes(vm=name, memory_mb=memory_mb, quiet_hours=("mon-fri 08:00-18:00",))
    if not name.isprintable():
        with pytest.raises(UsageError, match="cannot be written"):
            settings_text(wishes)
        return
    assert tomllib.loads(settings_text(wishes)) == {
        "vm": {"name": name, "memory_mb": memory_mb},
        "rules": {"quiet_hours": ["mon-fri 08:00-18:00"]},
    }


def test_what_is_not_said_stays_as_it_was() -> None:
    manifest = Manifest("1", "/h", "a", wishes={"driver": "qemu", "quiet_hours": ["20:00-06:00"]})
    now = Wishes(memory_mb=512).over(manifest.earlier_wishes())
    assert now == Wishes(driver="qemu", memory_mb=512, quiet_hours=("20:00-06:00",))
    assert Wishes(driver="auto").over(manifest.earlier_wishes()).driver == "auto"


def test_macos_keeps_the_vm_when_the_agent_ends() -> None:
    plan = launchd.plan(Wishes(), Facts("/opt/og/bin/python", joined=True))
    daemon = plistlib.loads(written(plan)[launchd.PLIST].content)
    assert daemon["Label"] == launchd.LABEL
    assert daemon["ProgramArguments"][:6] == [
        "/opt/og/bin/python", "-P", "-m", "officegrid", "agent", "run",
    ]  # fmt: skip
    assert daemon["AbandonProcessGroup"] is True
    assert daemon["KeepAlive"] is daemon["RunAtLoad"] is True
    assert daemon["ExitTimeOut"] > 90
    assert daemon["EnvironmentVariables"]["OFFICEGRID_HOME"] == plan.home
    assert commands(plan) == [f"launchctl bootstrap system {launchd.PLIST}"]
    assert not any("LaunchAgents" in path for path in written(plan))


def test_windows_closes_its_folder_before_anything_secret_is_in_it() -> None:
    plan = windows_service.plan(Wishes(account=r".\grid"), WINDOWS, "https://grid")
    kinds = [type(step) for step in plan.steps]
    closing = commands(plan)
    assert closing[1].startswith(r"icacls C:\ProgramData\OfficeGrid /inheritance:r")
    assert closing[1].endswith("grid:(OI)(CI)F")
    assert "S-1-5-32-545" not in " ".join(closing)  # Users
    assert kinds.index(Command) < kinds.index(WriteFile) < kinds.index(Join)
    (service,) = [step for step in plan.steps if isinstance(step, RegisterService)]
    assert service.start
    assert service.service.account == r".\grid"
    assert service.service.command[-1] == r"C:\ProgramData\OfficeGrid"
    (key,) = [step for step in plan.steps if isinstance(step, SetRunKey)]
    assert key.value.command[0].endswith("pythonw.exe")
    assert any("SeServiceLogonRight" in note for note in plan.notes)
    assert not any("firewall" in word for word in closing)
