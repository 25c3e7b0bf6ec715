"""Windows with nothing installed: two scheduled tasks that start and save the worker VM.

The formats are Microsoft's: the Task Scheduler schema (namespace below), and files in UTF-16 with
a byte order mark, the only encoding that `schtasks /Create /XML` reads.

Two tasks, because one is not enough: where a task that runs VBoxHeadless itself is stopped at the
end of the idle time, Windows ends the process, and the VM is lost as in a power cut. Here the
first task asks VirtualBox to start the VM and then only waits; stopping it does the VM no harm.
The second task is started by everything that a person's return sets off, and saves the VM.
"""

from __future__ import annotations

import codecs
import ntpath
import re
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree as Et

from officegrid.core.errors import UsageError

NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"
FOLDER = "OfficeGrid"
LOG = "Microsoft-Windows-TaskScheduler/Operational"
VBOXMANAGE = r"C:\Program Files\Oracle\VirtualBox\VBoxManage.exe"
POWERSHELL = r"%SystemRoot%\System32\WindowsPowerShell\v1.0\powershell.exe"

# Event ids of the Operational log: a task was ended because the PC went on battery, or because
# the idle time was over.
_ENDED_FOR_BATTERY = 327
_ENDED_FOR_IDLE_END = 328

Logon = Literal["password", "s4u"]
# PowerShell takes typographic quotes for quotes.
_UNSAFE = re.compile(r"[\x00-\x1f\"'`;|&<>%\u2018-\u201e]|\$(?!\Z)")


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """What to write. `user` is `PC\\name`, `DOMAIN\\name`, or `DOMAIN\\name$` for a group managed
    service account; its VirtualBox registry must hold the VM."""

    vm: str
    user: str
    logon: Logon = "password"
    vboxmanage: str = VBOXMANAGE
    on_battery: bool = False
    idle_end: bool = True
    """Also save when Windows says that the idle time is over; else only at unlock, connect and
    logon, which is enough where PCs lock themselves."""

    def __post_init__(self) -> None:
        for what, text in {
            "VM's name": self.vm,
            "user": self.user,
            "path": self.vboxmanage,
        }.items():
            if not text.strip() or _UNSAFE.search(text):
                raise UsageError(
                    f"The {what} {text!r} cannot be used in a scheduled task.",
                    "It is empty, or has a character that a command line takes for its own.",
                    "Use letters, digits, spaces, dashes and backslashes.",
                )
        if not ntpath.isabs(self.vboxmanage) or len(self.vboxmanage) > 260:
            raise UsageError(
                f"{self.vboxmanage!r} is not the full path of VBoxManage.exe.",
                fix=f"Give --vboxmanage, for example {VBOXMANAGE!r}.",
            )

    @property
    def start_name(self) -> str:
        return f"\\{FOLDER}\\Start {self.vm}"

    @property
    def save_name(self) -> str:
        return f"\\{FOLDER}\\Save {self.vm}"


def start_task(plan: TaskPlan) -> bytes:
    """The task that starts the VM when the PC becomes idle, as the bytes of its file."""
    task = _task(plan, f"Starts the worker VM {plan.vm} while nobody uses this PC.")
    _leaf(_add(task.find("Triggers"), "IdleTrigger"), Enabled="true")
    _settings(
        task, battery=plan.on_battery, priority=7, run_only_if_idle=True,
        stop_on_idle_end=plan.idle_end,
    )  # fmt: skip
    _action(task, _start_script(plan))
    return _bytes(task)


def save_task(plan: TaskPlan) -> bytes:
    """The task that gives the PC back, as the bytes of its file."""
    task = _task(plan, f"Saves the worker VM {plan.vm} as soon as somebody uses this PC.")
    triggers = task.find("Triggers")
    for change in ("SessionUnlock", "ConsoleConnect", "RemoteConnect"):
        _leaf(_add(triggers, "SessionStateChangeTrigger"), Enabled="true", StateChange=change)
    _leaf(_add(triggers, "LogonTrigger"), Enabled="true")
    _leaf(_add(triggers, "EventTrigger"), Enabled="true", Subscription=_subscription(plan))
    # On battery it must run too: that is one of the reasons to save.
    _settings(task, battery=True, priority=4, run_only_if_idle=False, stop_on_idle_end=False)
    _action(task, _save_script(plan))
    return _bytes(task)


def _task(plan: TaskPlan, description: str) -> Et.Element:
    task = Et.Element("Task", {"version": "1.3", "xmlns": NAMESPACE})
    _leaf(_add(task, "RegistrationInfo"), Author="Office Grid", Description=description)
    _add(task, "Triggers")
    principal = _add(_add(task, "Principals"), "Principal")
    principal.set("id", "Grid")
    logon = "S4U" if plan.logon == "s4u" else "Password"
    _leaf(principal, UserId=plan.user, LogonType=logon, RunLevel="LeastPrivilege")
    _add(task, "Settings")
    _add(task, "Actions").set("Context", "Grid")
    return task


def _settings(
    task: Et.Element, *, battery: bool, priority: int, run_only_if_idle: bool,
    stop_on_idle_end: bool,
) -> None:  # fmt: skip
    settings = task.find("Settings")
    _leaf(
        settings, AllowStartOnDemand="true", MultipleInstancesPolicy="IgnoreNew",
        DisallowStartIfOnBatteries=_word(not battery), StopIfGoingOnBatteries=_word(not battery),
        AllowHardTerminate="true", StartWhenAvailable="false", RunOnlyIfNetworkAvailable="false",
        WakeToRun="false", Enabled="true", Hidden="false",
    )  # fmt: skip
    idle = _add(settings, "IdleSettings")
    _leaf(idle, StopOnIdleEnd=_word(stop_on_idle_end), RestartOnIdle="false")
    # PT0S is "no limit"; left out, Windows would end the task after 72 hours.
    _leaf(
        settings, ExecutionTimeLimit="PT0S", Priority=str(priority),
        RunOnlyIfIdle=_word(run_only_if_idle),
    )  # fmt: skip


def _action(task: Et.Element, script: str) -> None:
    command = f'-NoProfile -NonInteractive -ExecutionPolicy Bypass -Command "{script}"'
    _leaf(_add(task.find("Actions"), "Exec"), Command=POWERSHELL, Arguments=command)


def _subscription(plan: TaskPlan) -> str:
    """The start task was ended by the scheduler: somebody is back, or the PC is on battery."""
    events = f"EventID={_ENDED_FOR_BATTERY} or EventID={_ENDED_FOR_IDLE_END}"
    query = f"*[System[({events})]] and *[EventData[Data[@Name='TaskName']='{plan.start_name}']]"
    tree = Et.Element("QueryList")
    select = _add(_add(tree, "Query"), "Select")
    tree[0].set("Id", "0")
    tree[0].set("Path", LOG)
    select.set("Path", LOG)
    select.text = query
    return Et.tostring(tree, encoding="unicode")


def _prelude(plan: TaskPlan) -> str:
    # Without a double quote: the whole script stands in a pair of them.
    return (
        f"$m='{plan.vboxmanage}'; $v='{plan.vm}'; "
        "function S { $o = & $m showvminfo $v --machinereadable; "
        "[regex]::Match($o -join ' ', 'VMState=.([a-z-]+)').Groups[1].Value }; "
    )


def _start_script(plan: TaskPlan) -> str:
    """Start, trying again while VirtualBox still holds its lock; a saved state that cannot be
    used is thrown away once. Then wait until the VM is down."""
    return _prelude(plan) + (
        "$n=0; while ((S) -notin 'running','paused','starting','restoring','saving' -and $n -lt 8) "
        "{ $n++; & $m startvm $v --type headless; if ((S) -eq 'running') { break }; "
        "if ($n -eq 4 -and (S) -in 'saved','aborted-saved') { & $m discardstate $v }; "
        "Start-Sleep 5 }; "
        "if ((S) -eq 'paused') { & $m controlvm $v resume }; "
        "while ((S) -in 'running','paused','starting','restoring','saving') { Start-Sleep 15 }"
    )


def _save_script(plan: TaskPlan) -> str:
    """Pause at once, save, and power off what could not be saved within five minutes."""
    return _prelude(plan) + (
        "& $m controlvm $v pause; "
        "$n=0; while ((S) -in 'running','paused','starting','restoring','saving' -and $n -lt 60) "
        "{ $n++; if ((S) -in 'running','paused') { & $m controlvm $v savestate }; Start-Sleep 5 }; "
        "if ((S) -in 'running','paused') { & $m controlvm $v poweroff }"
    )


# Names may hold any letter: without this, cmd reads the file in the local code page.
_CMD_HEAD = ("@echo off", "chcp 65001 >nul")


def install_script(plan: TaskPlan) -> str:
    """`install.cmd`: registers both tasks; asks for the account's password where one is needed."""
    account = f' /RU "{plan.user}" /RP *'
    if plan.logon == "s4u":
        account = ""  # the principal in the XML is enough
    elif plan.user.endswith("$"):
        account = f' /RU "{plan.user}" /RP ""'
    lines = [
        *_CMD_HEAD,
        "rem Run as administrator. Registers the two Office Grid tasks on this PC.",
        "rem The save task listens to this log, which is off on a fresh Windows.",
        f"wevtutil sl {LOG} /e:true || exit /b 1",
    ]
    for name, file in ((plan.start_name, START_FILE), (plan.save_name, SAVE_FILE)):
        lines.append(f'schtasks /Create /TN "{name}" /XML "%~dp0{file}"{account} /F || exit /b 1')
    return _lines([*lines, "echo Both tasks are registered."])


def uninstall_script(plan: TaskPlan) -> str:
    """`uninstall.cmd`: saves the VM and removes both tasks."""
    return _lines([
        *_CMD_HEAD,
        f'schtasks /Run /TN "{plan.save_name}"',
        f'schtasks /Delete /TN "{plan.start_name}" /F',
        f'schtasks /Delete /TN "{plan.save_name}" /F',
    ])  # fmt: skip


def powershell_script(plan: TaskPlan) -> str:
    """`install.ps1`: the same for remote roll-out; the password comes from a credential object."""
    lines = [
        "# Run as administrator: .\\install.ps1            asks for the account's password",
        "#                       .\\install.ps1 -Credential $c",
        "param([pscredential]$Credential)",
        "$ErrorActionPreference = 'Stop'",
        f"wevtutil sl {LOG} /e:true",
    ]
    if plan.logon == "password" and not plan.user.endswith("$"):
        lines += [
            f"if (-not $Credential) {{ $Credential = Get-Credential '{plan.user}' }}",
            "$account = @{ User = $Credential.UserName",
            "              Password = $Credential.GetNetworkCredential().Password }",
        ]
    else:
        lines.append("$account = @{}  # the principal in the XML needs no password")
    for name, file in ((plan.start_name, START_FILE), (plan.save_name, SAVE_FILE)):
        leaf = name.rpartition("\\")[2]
        lines += [
            f"$xml = Get-Content -Raw -Encoding Unicode (Join-Path $PSScriptRoot '{file}')",
            f"Register-ScheduledTask -TaskPath '\\{FOLDER}\\' -TaskName '{leaf}' -Xml $xml "
            "@account -Force | Out-Null",
        ]
    return _lines(lines)


START_FILE = "officegrid-start.xml"
SAVE_FILE = "officegrid-save.xml"


def task_files(plan: TaskPlan) -> dict[str, bytes]:
    """All files of a roll-out by name: two tasks, and the scripts that register and remove them."""
    return {
        START_FILE: start_task(plan),
        SAVE_FILE: save_task(plan),
        "install.cmd": install_script(plan).encode("utf-8"),
        "uninstall.cmd": uninstall_script(plan).encode("utf-8"),
        # Windows PowerShell takes a file without a byte order mark for the local code page.
        "install.ps1": codecs.BOM_UTF8 + powershell_script(plan).encode("utf-8"),
    }


def _add(parent: Et.Element | None, name: str) -> Et.Element:
    assert parent is not None
    return Et.SubElement(parent, name)


def _leaf(parent: Et.Element | None, **texts: str) -> None:
    for name, text in texts.items():
        _add(parent, name).text = text


def _word(flag: bool) -> str:
    return "true" if flag else "false"


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\r\n" for line in lines)


def _bytes(task: Et.Element) -> bytes:
    """UTF-16, little endian, with byte order mark and CRLF, as Windows itself exports tasks."""
    Et.indent(task)
    text = '<?xml version="1.0" encoding="UTF-16"?>\n' + Et.tostring(task, encoding="unicode")
    return codecs.BOM_UTF16_LE + (text + "\n").replace("\n", "\r\n").encode("utf-16-le")
