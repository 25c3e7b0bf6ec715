"""The narrow interface to PowerShell, over the stand-in: quoting, answers, sessions, failures."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from officegrid.agent.drivers.base import VmSettings
from officegrid.agent.drivers.hyperv import scripts
from officegrid.agent.drivers.hyperv.options import Options
from officegrid.agent.drivers.hyperv.powershell import (
    PowerShell,
    ScriptError,
    ShellCancelled,
    ShellMissing,
    ShellProblem,
    ShellRestricted,
    ShellTimeout,
    items,
)
from officegrid.testing.hyperv.install import StandIn

ODD_TEXTS = [
    "",
    "plain",
    "it's",
    "''",
    'say "so"',
    "\u2018curly\u2019 \u201aquotes\u201b",
    "$(Stop-Process -Id 1) `n $env:PATH",
    "line\r\nbreak\ttab",
    "Prüfung 日本 \U0001f600",
    "C:\\Users\\O'Brien\\",
    "; } | {",
]
GUID = "12345678-1234-1234-1234-1234567890ab"


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    standin = StandIn(tmp_path / "hyperv")
    yield standin
    standin.close()


@pytest.fixture
def shell(standin: StandIn) -> Iterator[PowerShell]:
    shell = PowerShell(standin.program, keep=True)
    yield shell
    shell.close()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# -- scripts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_literal_holds_nothing_that_could_be_misread(text: str) -> None:
    literal = scripts.literal(text)
    assert literal.isascii()
    assert literal.isprintable()
    assert '"' not in literal


def test_literals_come_back_as_they_went_in(shell: PowerShell) -> None:
    body = f"@({', '.join(scripts.literal(text) for text in ODD_TEXTS)})"
    # Surrogate pairs come back as two characters, which JSON joins.
    assert shell.run(body, timeout_s=10) == ODD_TEXTS


def test_every_script_is_one_plain_line() -> None:
    odd = VmSettings(
        "Grid'Ü", Path("folder"), Path("im\u2019age.vhdx"), seed_iso=Path("seed ☃.iso")
    )
    options = Options(generation=2, secure_boot=True, switch="Büro")
    bodies = [
        scripts.look(GUID, odd.name, pids=True),
        scripts.examine("Büro"),
        scripts.start(GUID, scripts.fit(odd)),
        scripts.create(odd, options, "disk", "place", "note\nof two lines"),
    ]
    for body in bodies:
        script = scripts.wrapped(body, "[begin of it", "end of it]")
        assert script.isascii()
        assert script.isprintable()
        assert '"' not in script
        assert "[begin of it" not in script, "an echo of the script would be taken for its answer"


# -- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False], ids=["session", "one-shot"])
@pytest.mark.parametrize(
    "modes",
    [
        {"crlf": True, "bom": True},
        {"crlf": False, "shell": "7"},
        {"noise": 'WARNUNG: Grüße {"value": 1}\r\n[officegrid 00000000\r\n'},
    ],
    ids=["crlf and bom", "7", "noise"],
)
def test_answers_survive_what_surrounds_them(
    standin: StandIn, keep: bool, modes: dict[str, object]
) -> None:
    standin.set(**modes)
    shell = PowerShell(standin.program, keep=keep)
    try:
        for _ in range(2):
            text = "Grüße <&> 日本"
            body = f"@{{ a = {scripts.literal(text)}; b = @(1); c = $null }}"
            assert shell.run(body, timeout_s=10) == [{"a": text, "b": [1], "c": None}]
    finally:
        shell.close()


def test_outputs_are_always_a_list(shell: PowerShell, standin: StandIn, tmp_path: Path) -> None:
    names = "Get-VM | ForEach-Object { $_.Name }"
    assert shell.run(names, timeout_s=10) == []
    standin.make_vm("One", tmp_path / "vms")
    assert shell.run(names, timeout_s=10) == ["One"]
    standin.make_vm("Two", tmp_path / "vms")
    assert shell.run(names, timeout_s=10) == ["One", "Two"]


def test_lists_in_every_form_that_convertto_json_gives() -> None:
    assert items(None) == []
    assert items({"id": "x"}) == [{"id": "x"}]
    assert items([1, 2]) == [1, 2]
    assert items({"value": [1, 2], "Count": 2}) == [1, 2]


def test_an_error_comes_with_its_codes_and_leaves_the_session_usable(
    shell: PowerShell, standin: StandIn
) -> None:
    standin.set(language="de")
    with pytest.raises(ScriptError) as caught:
        shell.run("Get-VM -Name 'Nobody'", timeout_s=10)
    error = caught.value
    assert error.category == "InvalidArgument"
    assert error.error_id == "InvalidParameter,Microsoft.HyperV.PowerShell.Commands.GetVM"
    assert error.hresult == 0x80131500
    assert (
        error.message == 'Hyper-V hat keinen virtuellen Computer mit dem Namen "Nobody" gefunden.'
    )
    assert shell.run("1", timeout_s=10) == [1]
    assert standin.calls("session") == 1


@pytest.mark.parametrize(
    ("body", "error_id"),
    [
        ("Get-VMM", "CommandNotFoundException"),
        ("Get-VM -Nmae 'x'", "NamedParameterNotFound,Get-VM"),
        ("Stop-VM -VM 'text' -TurnOff", "ParameterArgumentValidationError"),
        ("[Strnig]::Join('x')", "TypeNotFound"),
    ],
)
def test_the_stand_in_refuses_misspelt_scripts(shell: PowerShell, body: str, error_id: str) -> None:
    with pytest.raises(ScriptError) as caught:
        shell.run(body, timeout_s=10)
    assert caught.value.error_id == error_id


def test_a_script_that_cannot_be_parsed_is_told_with_what_was_said(standin: StandIn) -> None:
    with pytest.raises(ShellProblem, match="ParserError"):
        PowerShell(standin.program, keep=False).run("if (", timeout_s=10)


def test_a_restricted_language_mode_is_told(standin: StandIn) -> None:
    standin.set(language_mode="ConstrainedLanguage")
    with pytest.raises(ShellRestricted):
        PowerShell(standin.program, keep=False).run("1", timeout_s=10)


@pytest.mark.parametrize("keep", [True, False])
def test_a_missing_program_is_told(tmp_path: Path, keep: bool) -> None:
    with pytest.raises(ShellMissing, match=r"powershell\.exe"):
        PowerShell(tmp_path / "powershell.exe", keep=keep).run("1", timeout_s=10)


# -- sessions -----------------------------------------------------------------------------------


def test_one_process_serves_many_scripts(shell: PowerShell, standin: StandIn) -> None:
    for number in range(5):
        assert shell.run(f"{number}", timeout_s=10) == [number]
    assert (standin.calls("session"), standin.calls("one-shot")) == (1, 0)


def session_pid(shell: PowerShell) -> int:
    assert shell._session is not None
    return shell._session.pid


def test_a_session_that_was_killed_is_replaced(shell: PowerShell, standin: StandIn) -> None:
    shell.run("1", timeout_s=10)
    first = session_pid(shell)
    os.kill(first, signal.SIGKILL)
    assert shell.run("2", timeout_s=10) == [2]
    assert shell.run("3", timeout_s=10) == [3]
    assert not psutil.pid_exists(first)


def test_a_script_over_which_the_session_dies_is_run_alone(
    shell: PowerShell, standin: StandIn
) -> None:
    standin.set(faults=[{"cmdlet": "Get-VMSwitch", "calls": [1], "kind": "die"}])
    assert shell.run("Get-VMSwitch | ForEach-Object { $_.Name }", timeout_s=10) == [
        "Default Switch"
    ]
    assert (standin.calls("Get-VMSwitch"), standin.calls("one-shot")) == (2, 1)
    assert shell.run("1", timeout_s=10) == [1]
    assert standin.calls("session") == 2


def test_a_hanging_session_is_ended_and_replaced(shell: PowerShell, standin: StandIn) -> None:
    shell.run("1", timeout_s=10)
    first = session_pid(shell)
    standin.set(faults=[{"cmdlet": "Get-VM", "kind": "hang"}])
    began = time.monotonic()
    with pytest.raises(ShellTimeout):
        shell.run("Get-VM", timeout_s=0.5)
    assert time.monotonic() - began < 4
    assert not psutil.pid_exists(first)
    standin.set(faults=[])
    assert shell.run("Get-VM", timeout_s=10) == []


def test_where_no_session_can_be_kept_each_script_gets_a_process(
    shell: PowerShell, standin: StandIn
) -> None:
    standin.set(sessions=False)
    assert [shell.run(f"{n}", timeout_s=10) for n in range(4)] == [[0], [1], [2], [3]]
    # Two tries, then it is left alone for a while.
    assert (standin.calls("session"), standin.calls("one-shot")) == (2, 4)


@pytest.mark.parametrize("keep", [True, False], ids=["session", "one-shot"])
def test_cancel_ends_the_wait_at_once(standin: StandIn, keep: bool) -> None:
    standin.set(faults=[{"cmdlet": "Get-VM", "kind": "hang"}])
    shell = PowerShell(standin.program, keep=keep)
    cancel = threading.Event()
    timer = threading.Timer(0.3, cancel.set)
    began = time.monotonic()
    timer.start()
    try:
        with pytest.raises(ShellCancelled):
            shell.run("Get-VM", timeout_s=60, cancel=cancel)
    finally:
        timer.join()
        shell.close()
    assert time.monotonic() - began < 5


def test_an_unused_session_is_let_go(shell: PowerShell, standin: StandIn) -> None:
    shell.run("1", timeout_s=10)
    pid = session_pid(shell)
    shell.rest(60)
    assert psutil.pid_exists(pid)
    shell.rest(0)
    assert not psutil.pid_exists(pid)
    assert shell.run("2", timeout_s=10) == [2]


def test_no_process_outlives_its_owner(standin: StandIn) -> None:
    shell = PowerShell(standin.program, keep=True)
    shell.run("1", timeout_s=10)
    pid = session_pid(shell)
    del shell
    gc.collect()
    until(lambda: not psutil.pid_exists(pid), "PowerShell ends when nobody holds it")
