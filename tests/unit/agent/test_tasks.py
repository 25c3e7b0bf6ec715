"""The scheduled tasks for Windows: bytes, schema, rules, and the scripts inside."""

from __future__ import annotations

import codecs
from pathlib import Path
from xml.etree import ElementTree as Et

import pytest
import xmlschema

from officegrid.agent.install.tasks import (
    NAMESPACE,
    TaskPlan,
    install_script,
    powershell_script,
    save_task,
    start_task,
    task_files,
    uninstall_script,
)
from officegrid.core.errors import UsageError

PLAN = TaskPlan(vm="GridMachine", user="PC\\grid")
SCHEMA = xmlschema.XMLSchema(str(Path(__file__).with_name("task_scheduler.xsd")))
NS = {"t": NAMESPACE}


def _tree(content: bytes) -> Et.Element:
    # The declaration says UTF-16 about bytes; a decoded text must not carry it.
    return Et.fromstring(content)


def _text(content: bytes, path: str) -> str | None:
    return _tree(content).findtext(path, namespaces=NS)


@pytest.mark.parametrize("make", [start_task, save_task])
@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        TaskPlan(vm="Grid 2", user="FIRM\\grid$", logon="s4u"),
        TaskPlan(vm="GridMachine", user="FIRM\\büro", on_battery=True, idle_end=False),
        TaskPlan(vm="G", user="PC\\g", vboxmanage="D:\\Tools\\VirtualBox\\VBoxManage.exe"),
    ],
)
def test_tasks_fit_the_published_schema_and_encoding(make, plan) -> None:
    content = make(plan)
    assert content[:2] == codecs.BOM_UTF16_LE
    text = content.decode("utf-16")
    assert text.startswith('<?xml version="1.0" encoding="UTF-16"?>\r\n')
    assert "\n" not in text.replace("\r\n", "")
    assert not list(SCHEMA.iter_errors(_tree(content)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SessionUnlock", "SessionUnlocked"),
        ("<Priority>4<", "<Priority>11<"),
        ("PT0S", "0 s"),
        ("LeastPrivilege", "Least"),
        ("<WakeToRun>", "<WakeUp>"),
        ("</UserId>", "</UserId><Surprise/>"),
    ],
)
def test_the_schema_would_notice_mistakes(old: str, new: str) -> None:
    text = save_task(PLAN).decode("utf-16").partition("?>")[2]
    broken = text.replace(old, new).replace("</WakeToRun>", "</WakeUp>" if "Wake" in new else "")
    if "Wake" not in new:
        broken = text.replace(old, new)
    assert broken != text
    assert list(SCHEMA.iter_errors(Et.fromstring(broken)))


def test_the_start_task_runs_without_limit_and_only_when_idle() -> None:
    content = start_task(PLAN)
    settings = "t:Settings/t:"
    assert _text(content, f"{settings}ExecutionTimeLimit") == "PT0S"
    assert _text(content, f"{settings}RunOnlyIfIdle") == "true"
    assert _text(content, f"{settings}IdleSettings/t:StopOnIdleEnd") == "true"
    assert _text(content, f"{settings}DisallowStartIfOnBatteries") == "true"
    assert _text(content, f"{settings}StopIfGoingOnBatteries") == "true"
    assert _text(content, f"{settings}MultipleInstancesPolicy") == "IgnoreNew"
    assert _tree(content).find("t:Triggers/t:IdleTrigger", NS) is not None
    assert _text(content, "t:Principals/t:Principal/t:LogonType") == "Password"


def test_the_start_task_never_runs_the_vm_process_itself() -> None:
    # Ending the task would then kill the VM instead of saving it.
    text = start_task(PLAN).decode("utf-16")
    assert "VBoxHeadless" not in text
    assert "startvm $v --type headless" in text


def test_the_save_task_is_set_off_by_every_kind_of_return() -> None:
    content = save_task(PLAN)
    tree = _tree(content)
    changes = {node.text for node in tree.iterfind(".//t:StateChange", NS)}
    assert changes == {"SessionUnlock", "ConsoleConnect", "RemoteConnect"}
    assert tree.find("t:Triggers/t:LogonTrigger", NS) is not None
    query = Et.fromstring(_text(content, ".//t:Subscription") or "")
    select = query.find("Query/Select")
    assert select is not None
    assert select.text is not None
    assert "EventID=328" in select.text
    assert "EventID=327" in select.text
    assert "'\\OfficeGrid\\Start GridMachine'" in select.text
    # A PC that goes on battery must be able to save.
    assert _text(content, "t:Settings/t:DisallowStartIfOnBatteries") == "false"
    assert _text(content, "t:Settings/t:StopIfGoingOnBatteries") == "false"
    assert _text(content, "t:Settings/t:RunOnlyIfIdle") == "false"


def test_pause_comes_first_and_power_off_last() -> None:
    script = _text(save_task(PLAN), ".//t:Arguments") or ""
    verbs = [script.index(verb) for verb in (" pause;", "savestate", "poweroff")]
    assert verbs == sorted(verbs)


@pytest.mark.parametrize("make", [start_task, save_task])
def test_scripts_stand_in_one_pair_of_double_quotes(make) -> None:
    arguments = _text(make(PLAN), ".//t:Arguments") or ""
    head, _, rest = arguments.partition('"')
    assert head.endswith("-Command ")
    assert rest.count('"') == 1
    assert rest.endswith('"')
    for opening, closing in ("{}", "()", "[]"):
        assert rest.count(opening) == rest.count(closing)


@pytest.mark.parametrize(
    ("vm", "user"),
    [
        ("", "PC\\g"),
        ("G'; calc; '", "PC\\g"),
        ('G" x', "PC\\g"),
        ("G", "PC\\$(calc)"),
        ("G\u2019; calc", "PC\\g"),
        ("G", " "),
    ],
)
def test_names_that_a_command_line_would_run_are_refused(vm: str, user: str) -> None:
    with pytest.raises(UsageError) as caught:
        TaskPlan(vm=vm, user=user)
    assert caught.value.fix


def test_a_managed_service_account_is_a_name_with_a_dollar_at_its_end() -> None:
    plan = TaskPlan(vm="G", user="FIRM\\grid$")
    assert '/RU "FIRM\\grid$" /RP ""' in install_script(plan)
    assert "Get-Credential" not in powershell_script(plan)
    with pytest.raises(UsageError):
        TaskPlan(vm="G", user="FIRM\\g$rid")


def test_the_password_is_asked_for_and_never_written() -> None:
    assert "/RP *" in install_script(PLAN)
    assert "Get-Credential" in powershell_script(PLAN)
    assert "/RP" not in install_script(TaskPlan(vm="G", user="PC\\g", logon="s4u"))


def test_the_log_that_the_save_task_listens_to_is_switched_on() -> None:
    for script in (install_script(PLAN), powershell_script(PLAN)):
        assert "wevtutil sl Microsoft-Windows-TaskScheduler/Operational /e:true" in script


def test_uninstalling_saves_first() -> None:
    script = uninstall_script(PLAN)
    assert script.index("/Run") < script.index("/Delete")
    assert script.count("/Delete") == 2


def test_all_files_of_a_roll_out() -> None:
    files = task_files(PLAN)
    assert sorted(files) == [
        "install.cmd", "install.ps1", "officegrid-save.xml", "officegrid-start.xml",
        "uninstall.cmd",
    ]  # fmt: skip
    assert files["install.ps1"].startswith(codecs.BOM_UTF8)
    assert files["install.cmd"].startswith(b"@echo off\r\nchcp 65001 >nul\r\n")
