"""What VBoxManage and VBox.log print, in all versions, read into values; which releases work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from officegrid.agent.drivers.virtualbox import parse, vmlog
from officegrid.agent.drivers.virtualbox.locate import find_vboxmanage
from officegrid.agent.drivers.virtualbox.options import Options, read_options
from officegrid.agent.drivers.virtualbox.versions import Version, judge, parse_version
from officegrid.core.errors import UsageError
from officegrid.core.vm import HealthLevel, Trouble, VmState

RECORDING = Path(__file__).resolve().parents[2] / "data" / "vboxmanage-7.1.8.txt"


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("poweroff", VmState.OFF), ("aborted", VmState.OFF), ("teleported", VmState.OFF),
        ("saved", VmState.SAVED), ("aborted-saved", VmState.SAVED),
        ("starting", VmState.STARTING), ("restoring", VmState.STARTING),
        ("teleportingin", VmState.STARTING), ("running", VmState.RUNNING),
        ("livesnapshotting", VmState.RUNNING), ("onlinesnapshotting", VmState.RUNNING),
        ("deletingsnapshotlive", VmState.RUNNING), ("teleporting", VmState.RUNNING),
        ("paused", VmState.PAUSED), ("teleportingpausedvm", VmState.PAUSED),
        ("deletingsnapshotlivepaused", VmState.PAUSED), ("saving", VmState.SAVING),
        ("stopping", VmState.STOPPING), ("gurumeditation", VmState.BROKEN),
        ("snapshotting", VmState.UNKNOWN), ("restoringsnapshot", VmState.UNKNOWN),
        ("deletingsnapshot", VmState.UNKNOWN), ("settingup", VmState.UNKNOWN),
        ("unknown", VmState.UNKNOWN), ("a word of 9.0", VmState.UNKNOWN),
    ],
)  # fmt: skip
def test_every_state_of_virtualbox(word: str, state: VmState) -> None:
    assert parse.vm_state(word) is state


def test_no_state_is_forgotten() -> None:
    assert len(parse.VM_WORDS) == 24


def test_showvminfo_as_recorded() -> None:
    text = RECORDING.read_text(encoding="utf-8")
    shown = text[text.index("showvminfo 'Probe VM'") :]
    info = parse.machine_readable(shown[: shown.index("[exit 0]")])
    assert info["name"] == "Probe VM"
    assert info["VMState"] == "poweroff"
    assert (info["memory"], info["cpus"]) == ("64", "1")
    assert info["IDE-0-0"].endswith(".iso")
    assert info["LogFldr"] == "/home/grid/vms/Probe VM/Logs"


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ('name="Say \\"hi\\""', "name", 'Say "hi"'),
        ('name="Say "hi""', "name", 'Say "hi"'),
        (r'CfgFile="C:\\Grid\\new\\m.vbox"', "CfgFile", r"C:\Grid\new\m.vbox"),
        (r'CfgFile="C:\Grid\new\m.vbox"', "CfgFile", r"C:\Grid\new\m.vbox"),
        ('"SATA-0-0"="/grid/a.vmdk"', "SATA-0-0", "/grid/a.vmdk"),
        ("memory=2048", "memory", "2048"),
        ("biossystemtimeoffset=-5", "biossystemtimeoffset", "-5"),
        ('VMState="running"\r', "VMState", "running"),
    ],
)
def test_lines_of_6_and_of_7(line: str, key: str, value: str) -> None:
    assert parse.machine_readable(line + "\n") == {key: value}


def test_lines_that_are_no_values_are_passed_over() -> None:
    assert parse.machine_readable('VRDEClients==0\nVideoMode="720,400,0"@0,0 1\n\n') == {}


def test_lists() -> None:
    text = '"w 1" {51A6275B-38a4-4b90-b079-ec7f5eb6e066}\r\n"<inaccessible>" {' + "0" * 8
    text += "-38a4-4b90-b079-ec7f5eb6e066}\r\nnoise\r\n"
    assert parse.listed_vms(text) == {
        "51a6275b-38a4-4b90-b079-ec7f5eb6e066": "w 1",
        "00000000-38a4-4b90-b079-ec7f5eb6e066": "<inaccessible>",
    }
    host = parse.colon_fields("Host Information:\n\nProcessor supports HW virtualization: no\n")
    assert host["Processor supports HW virtualization"] == "no"
    packs = "Extension Packs: 1\nPack no. 0:   Oracle VM VirtualBox Extension Pack\nVersion: 7\n"
    assert parse.extension_packs(packs) == ["Oracle VM VirtualBox Extension Pack"]
    assert parse.extension_packs("Extension Packs: 0\n") == []
    assert parse.extra_value("Value: a b\r\n") == "a b"
    assert parse.extra_value("No value set!\n") is None


LOCKED = """\
VBoxManage: error: The machine 'w' is already locked by a session (or being locked or unlocked)
VBoxManage: error: Details: code VBOX_E_INVALID_OBJECT_STATE (0x80bb0007), component MachineWrap
VBoxManage: error: Context: "LaunchVMProcess(a->session)" at line 919 of file VBoxManageMisc.cpp
"""
WINDOWS_GERMAN = """\
VBoxManage.exe: error: Die Maschine 'w' ist bereits gesperrt\r
VBoxManage.exe: error: Details: Code VBOX_E_INVALID_OBJECT_STATE (0x80BB0007), Komponente M\r
"""
WITHOUT_CODE = "VBoxManage: error: Machine 'w' is not currently running.\n"
STUCK = """\
VBoxManage: error: Code NS_ERROR_FAILURE (0x80004005) - Operation failed (extended info not available)
VBoxManage: error: Context: "LockMachine(a->session, LockType_Shared)" at line 369 of file V.cpp
"""  # noqa: E501
TWO = (
    LOCKED + "--------\nVBoxManage: error: Other\nVBoxManage: error: Details: code X (0x80bb0001)\n"
)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (LOCKED, 0x80BB0007, "The machine 'w' is already locked"),
        (WINDOWS_GERMAN, 0x80BB0007, "Die Maschine 'w' ist bereits gesperrt"),
        (WITHOUT_CODE, None, "Machine 'w' is not currently running."),
        (STUCK, 0x80004005, "Code NS_ERROR_FAILURE"),
        (TWO, 0x80BB0007, "The machine 'w' is already locked"),
    ],
)
def test_error_blocks_are_read_by_their_code(text: str, code: int | None, words: str) -> None:
    block = parse.error_block("0%...10%...\n" + text)
    assert block is not None
    assert block.code == code
    assert block.text.startswith(words)
    assert "Context:" not in block.text


def test_no_error_and_named_errors() -> None:
    assert parse.error_block("0%...100%\nWarning: --audio is deprecated.\n") is None
    block = parse.error_block("VBoxManage: error: Failed to open 'x' (VERR_DISK_FULL)\n")
    assert block is not None
    assert block.statuses == ("VERR_DISK_FULL",)


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        ("VERR_VMX_MSR_LOCKED_OR_DISABLED", Trouble.NO_VIRTUALIZATION),
        ("VERR_VMX_MSR_ALL_VMX_DISABLED", Trouble.NO_VIRTUALIZATION),
        ("VERR_SVM_DISABLED", Trouble.NO_VIRTUALIZATION),
        ("VERR_VMX_NO_VMX", Trouble.NO_VIRTUALIZATION),
        ("VERR_SVM_NO_SVM", Trouble.NO_VIRTUALIZATION),
        ("VERR_NEM_NOT_AVAILABLE", Trouble.NO_VIRTUALIZATION),
        ("VERR_VMX_IN_VMX_ROOT_MODE", Trouble.CONFLICT),
        ("VERR_SVM_IN_USE", Trouble.CONFLICT),
        ("VERR_NEM_VM_CREATE_FAILED", Trouble.CONFLICT),
        ("VERR_SUPDRV_NO_RAW_MODE_HYPER_V_ROOT", Trouble.CONFLICT),
        ("VERR_VM_DRIVER_NOT_INSTALLED", Trouble.MISSING),
        ("VERR_VM_DRIVER_VERSION_MISMATCH", Trouble.VERSION),
        ("VERR_VM_DRIVER_NOT_ACCESSIBLE", Trouble.PERMISSION),
        ("VERR_EM_NO_MEMORY", Trouble.MEMORY),
        ("VERR_NO_MEMORY", Trouble.MEMORY),
        ("VERR_DISK_FULL", Trouble.DISK_FULL),
        ("VERR_SSM_LOAD_CPUID_MISMATCH", Trouble.SAVED_STATE),
        ("VERR_SSM_LOAD_CONFIG_MISMATCH", Trouble.SAVED_STATE),
        ("VERR_SSM_UNSUPPORTED_DATA_UNIT_VERSION", Trouble.SAVED_STATE),
    ],
)
def test_causes_in_the_log(status: str, trouble: Trouble) -> None:
    log = vmlog.VmLog(f"00:00:01 Power up failed (vrc={status}, rc=E_FAIL (0X80004005))\n", "")
    cause = vmlog.cause_in_log(log)
    assert cause is not None
    assert cause.trouble is trouble
    assert cause.sentence.endswith(".")
    assert cause.fix.endswith(".")


def test_a_cause_that_is_only_mentioned_gives_way_to_one_that_is_reported() -> None:
    log = vmlog.VmLog(
        "00:00:01 GIM: tried VERR_NO_MEMORY once\n"
        "00:00:02 Power up failed (vrc=VERR_SVM_DISABLED, rc=E_FAIL (0X80004005))\n",
        "",
    )
    cause = vmlog.cause_in_log(log)
    assert cause is not None
    assert cause.status == "VERR_SVM_DISABLED"
    assert vmlog.cause_in_log(vmlog.VmLog("00:00:01 all is well\n", "")) is None


def test_the_log_names_process_slow_mode_and_full_disk(tmp_path: Path) -> None:
    head = (
        "VirtualBox VM 7.1.8 r168469 win.amd64 release log\n"
        "00:00:00.454559 Process ID: 854\n"
        "00:00:01.345849 HM: HMR3Init: Attempting fall back to NEM: VT-x is not available\n"
    )
    full = (
        "00:01:00.0 VD#0: Host disk full\n00:01:00.1 Console: Machine state changed to 'Paused'\n"
    )
    (tmp_path / "VBox.log").write_text(head + "x" * 600_000 + "\n" + full, encoding="utf-8")
    log = vmlog.read_log(str(tmp_path))
    assert vmlog.process_id(log.head) == 854
    assert vmlog.slow_mode_reason(log.head) == "VT-x is not available"
    assert vmlog.paused_for_full_disk(log.tail)
    assert not vmlog.paused_for_full_disk(full + "Console: Machine state changed to 'Running'\n")
    assert vmlog.slow_mode_reason("HM: HMR3Init: VT-x w/ nested paging") is None
    assert vmlog.read_log(str(tmp_path / "none")).head == ""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("7.1.8r168469\n", Version(7, 1, 8)),
        ("6.1.50_Ubuntur161033\n", Version(6, 1, 50)),
        ("WARNING: The vboxdrv kernel module is not loaded.\n  6.1.0-amd64\n7.0.22r1\r\n",
         Version(7, 0, 22)),
        ("nothing", None),
    ],
)  # fmt: skip
def test_version_texts(text: str, version: Version | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("version", "platform", "slow", "level"),
    [
        ((7, 1, 8), "linux", False, HealthLevel.GOOD),
        ((7, 1, 12), "win32", False, HealthLevel.UNUSABLE),
        ((7, 1, 12), "linux", False, HealthLevel.GOOD),
        ((7, 2, 0), "linux", False, HealthLevel.UNUSABLE),
        ((7, 2, 8), "win32", False, HealthLevel.GOOD),
        ((7, 2, 8), "win32", True, HealthLevel.DEGRADED),
        ((7, 1, 10), "win32", True, HealthLevel.DEGRADED),
        ((7, 2, 14), "darwin", False, HealthLevel.DEGRADED),
        ((6, 0, 24), "linux", False, HealthLevel.UNUSABLE),
        ((6, 1, 36), "linux", False, HealthLevel.GOOD),
        ((8, 0, 0), "linux", False, HealthLevel.DEGRADED),
    ],
)
def test_what_is_known_of_releases(
    version: tuple[int, int, int], platform: str, slow: bool, level: HealthLevel
) -> None:
    judgement = judge(Version(*version), platform=platform, slow_mode=slow)
    assert judgement.level is level
    assert judgement.sentence.endswith(".")
    assert level is HealthLevel.GOOD or judgement.fix


def test_the_admins_lists_win() -> None:
    crashes = Version(7, 2, 0)
    assert judge(crashes, platform="linux", allowed=["7.2.0"]).level is HealthLevel.GOOD
    fine = Version(7, 1, 8)
    assert judge(fine, platform="linux", denied=["7.1.8"]).level is HealthLevel.UNUSABLE


def test_finding_the_program(tmp_path: Path) -> None:
    chosen = tmp_path / "VBoxManage"
    assert find_vboxmanage(str(chosen)) is None
    chosen.write_text("", encoding="utf-8")
    assert find_vboxmanage(str(chosen)) == chosen
    environ = {"VBOX_INSTALL_PATH": os.pathsep.join(["/nowhere", str(tmp_path)]), "PATH": ""}
    assert find_vboxmanage(None, environ) == chosen


def test_options_are_checked() -> None:
    assert read_options({}) == Options()
    read = read_options({"allow_versions": ["7.2.0"], "stop_timeout_s": 3, "reach_host": True})
    assert (read.allow_versions, read.stop_timeout_s, read.reach_host) == (("7.2.0",), 3.0, True)
    for wrong in (
        {"nosuch": 1}, {"registry": "theirs"}, {"stop_timeout_s": "soon"}, {"reach_host": 1},
        {"allow_versions": "7.2.0"}, {"vboxmanage": 3}, {"disk_margin_mb": -1},
    ):  # fmt: skip
        with pytest.raises(UsageError, match=next(iter(wrong))):
            read_options(wrong)
