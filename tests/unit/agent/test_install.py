"""Plans of an installation: what is in them for each system, and that quoting holds."""

from __future__ import annotations

import configparser
import os
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

from officegrid.agent.install import (
    apply,
    launchd,
    manifest,
    systemd,
    trust,
    windows_folder,
    windows_host,
    windows_service,
)
from officegrid.agent.install.doing import Machine
from officegrid.agent.install.manifest import Manifest
from officegrid.agent.install.plan import (
    Command,
    Facts,
    Join,
    MakeAccount,
    MakeFolder,
    MakeLink,
    Plan,
    RegisterService,
    SetRunKey,
    Wishes,
    WriteFile,
    settings_text,
)
from officegrid.core.errors import ConflictError, UsageError
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


def test_before_ordinary_programs_only_with_drivers_that_lower_every_thread() -> None:
    for driver in ("qemu", "libvirt", "process"):
        assert unit_of(Wishes(driver=driver))["Nice"] == "-5"
    for driver in ("virtualbox", "auto", None):
        assert unit_of(Wishes(driver=driver))["Nice"] == "0"
    # Not higher: what the agent starts must not lift itself above ordinary programs.
    assert unit_of(Wishes(driver="qemu"))["LimitNICE"] == "+0"


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
    earlier = Manifest("1", "/h", "a", wishes={"driver": "qemu", "quiet_hours": ["20:00-06:00"]})
    now = Wishes(memory_mb=512).over(earlier.earlier_wishes())
    assert now == Wishes(driver="qemu", memory_mb=512, quiet_hours=("20:00-06:00",))
    assert Wishes(driver="auto").over(earlier.earlier_wishes()).driver == "auto"


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
    (closing,) = commands(plan)
    assert closing.startswith(r"icacls C:\ProgramData\OfficeGrid /inheritance:r")
    assert closing.endswith("grid:(OI)(CI)F")
    assert "S-1-5-32-545" not in closing + windows_folder.CLOSED  # Users
    assert re.findall(r";;;(\w+)\)", windows_folder.CLOSED) == ["SY", "BA"]
    assert kinds.index(MakeFolder) < kinds.index(Command) < kinds.index(WriteFile)
    assert kinds.index(WriteFile) < kinds.index(Join)
    (service,) = [step for step in plan.steps if isinstance(step, RegisterService)]
    assert service.start
    assert service.service.account == r".\grid"
    assert service.service.command[-1] == r"C:\ProgramData\OfficeGrid"
    (key,) = [step for step in plan.steps if isinstance(step, SetRunKey)]
    assert key.value.command[0].endswith("pythonw.exe")
    assert any("SeServiceLogonRight" in note for note in plan.notes)
    assert key.wanted
    assert "firewall" not in closing


def test_each_windows_session_gets_its_helper_once() -> None:
    # As LocalSystem the service starts it; the Run key would start a second one.
    (key,) = [s for s in windows_service.plan(Wishes(), WINDOWS).steps if isinstance(s, SetRunKey)]
    assert not key.wanted
    assert windows_host.helper_command(WINDOWS.python) == (
        r"C:\Program Files\OfficeGrid\pythonw.exe", "-P", "-m", "officegrid", "agent", "session",
    )  # fmt: skip


def refused(home: Path, account: str) -> str:
    try:
        trust.refuse_foreign_home(Machine(home / "install.json"), str(home), account, None)
    except ConflictError as error:
        return error.why
    return ""


@pytest.mark.skipif(sys.platform == "win32", reason="modes and owners of Linux and macOS")
def test_a_home_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    me = Path(tmp_path).owner()
    home, settings = tmp_path / "home", tmp_path / "home" / "agent.toml"
    assert refused(home, me) == ""
    home.mkdir(mode=0o700)
    settings.write_text("")
    settings.chmod(0o644)
    assert refused(home, me) == ""
    settings.chmod(0o664)
    assert "mode 0664" in refused(home, me)
    settings.chmod(0o600)
    home.chmod(0o777)
    assert "mode 0777" in refused(home, me)


@pytest.mark.skipif(sys.platform == "win32", reason="modes and owners of Linux and macOS")
def test_a_home_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(home, 65534, 65534)
    foreign = f"belongs to the user {home.stat().st_uid},"
    assert foreign in refused(home, "root")
    assert refused(home, home.owner()) == ""


class Recorder:
    """Programs of the system that only say in a file that they were called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said = folder / "called"
        folder.mkdir()
        program = folder / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$*" >> "{self.said}"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def lines(self) -> list[str]:
        return self.said.read_text().splitlines()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for systemctl")
def test_systemd_forgets_the_unit_once_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Recorder(tmp_path / "bin", monkeypatch)
    machine, unit = Machine(tmp_path / "etc/install.json"), tmp_path / "unit"
    made = systemd.plan(Wishes(), LINUX)
    steps = (
        WriteFile(str(unit), b"[Service]\n"),
        *(step for step in made.steps if isinstance(step, Command)),
    )
    plan = Plan(str(tmp_path / "home"), "root", steps)
    said: list[str] = []
    apply.install(
        machine, plan, None, version="1", wishes=Wishes(), join=lambda *_: None, say=said.append
    )
    assert "daemon-reload" in calls.lines()
    calls.said.unlink()
    known = manifest.read(machine.manifest)
    assert known
    assert apply.removals(machine, known, purge=False)[-1] == "run     systemctl daemon-reload"
    apply.uninstall(machine, known, purge=False, delete_vm=lambda: None, say=said.append)
    assert calls.lines() == [f"disable --now {systemd.SERVICE}", "daemon-reload"]
    assert said[-2:] == [f"remove  {unit}", "run     systemctl daemon-reload"]
    assert not machine.manifest.exists()
