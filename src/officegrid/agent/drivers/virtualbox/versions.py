"""Which releases of VirtualBox work, and which do not, each with its reason.

A saved desktop is worth nothing if it cannot be restored, and VirtualBox had releases that could
not. Sources: the release's own issue tracker (github.com/VirtualBox/virtualbox), named per entry.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from officegrid.core.vm import HealthLevel

OLDEST = (6, 1)
NEWEST_KNOWN = (7, 2)
_NUMBER = re.compile(r"(?m)^(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def keeps_state_of_aborted_restore(self) -> bool:
        """Since 7.0 a VM that dies while it is restored is "aborted-saved": nothing is lost."""
        return self.major >= 7

    @property
    def hides_host_loopback(self) -> bool:
        """Since 7.0 NAT has a switch for the host's own loopback services."""
        return self.major >= 7


@dataclass(frozen=True, slots=True)
class KnownFault:
    first: Version
    last: Version
    level: HealthLevel
    sentence: str
    platforms: tuple[str, ...] = ()
    """Values of sys.platform; () is all."""
    only_slow_mode: bool = False
    """Matters only where VirtualBox runs on top of another hypervisor (NEM)."""


def _at(text: str) -> Version:
    major, minor, patch = (int(part) for part in text.split("."))
    return Version(major, minor, patch)


KNOWN_FAULTS = (
    KnownFault(
        _at("7.1.12"), _at("7.1.12"), HealthLevel.UNUSABLE,
        "VirtualBox 7.1.12 on Windows fails to restore saved VMs (VirtualBox issue 96).",
        platforms=("win32",),
    ),
    KnownFault(
        _at("7.2.0"), _at("7.2.0"), HealthLevel.UNUSABLE,
        "VirtualBox 7.2.0 crashes while it saves a VM (VirtualBox issue 267).",
    ),
    KnownFault(
        _at("7.2.8"), _at("7.2.8"), HealthLevel.DEGRADED,
        "VirtualBox 7.2.8 hides AVX2 from guests when Hyper-V is active (VirtualBox issue 642): "
        "images that need x86-64-v3 do not boot.",
        platforms=("win32",), only_slow_mode=True,
    ),
    KnownFault(
        _at("6.1.0"), _at("7.1.10"), HealthLevel.DEGRADED,
        "VirtualBox before 7.1.12 hides AVX2 from guests when Hyper-V is active (VirtualBox issue "
        "36): images that need x86-64-v3 do not boot.",
        platforms=("win32",), only_slow_mode=True,
    ),
    KnownFault(
        _at("7.2.14"), _at("7.2.14"), HealthLevel.DEGRADED,
        "VirtualBox 7.2.14 on macOS may lose the guest's network after a restore (VirtualBox "
        "issue 788).",
        platforms=("darwin",),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    level: HealthLevel
    sentence: str
    fix: str = ""


def parse_version(text: str) -> Version | None:
    """`VBoxManage --version`: `7.1.8r168469`, `6.1.50_Ubuntur161033`, warnings before it."""
    match = _NUMBER.search(text)
    return Version(*(int(part) for part in match.groups())) if match else None


def warns_of_driver(text: str) -> bool:
    """On Linux without its kernel module VirtualBox warns in the same output, with exit 0."""
    return "vboxdrv" in text


def judge(
    version: Version,
    *,
    platform: str,
    slow_mode: bool = False,
    allowed: Collection[str] = (),
    denied: Collection[str] = (),
) -> Judgement:
    """What is known of a release. `allowed` and `denied` are the admin's own lists of versions
    ("7.2.0"), which win over ours. Pure."""
    fix = "Install a current 7.1 or 7.2 release; power the VM off before, a saved one may not fit."
    if str(version) in denied:
        return Judgement(
            HealthLevel.UNUSABLE, f"VirtualBox {version} is on this machine's deny list.", fix
        )
    if str(version) in allowed:
        return Judgement(HealthLevel.GOOD, f"VirtualBox {version} is on the allow list.")
    if (version.major, version.minor) < OLDEST:
        sentence = f"VirtualBox {version} is too old: Office Grid needs 6.1 or later."
        return Judgement(HealthLevel.UNUSABLE, sentence, fix)
    known = [
        fault
        for fault in KNOWN_FAULTS
        if fault.first <= version <= fault.last
        and (not fault.platforms or platform in fault.platforms)
        and (slow_mode or not fault.only_slow_mode)
    ]
    for level in (HealthLevel.UNUSABLE, HealthLevel.DEGRADED):
        for fault in known:
            if fault.level is level:
                return Judgement(level, fault.sentence, fix)
    if (version.major, version.minor) > NEWEST_KNOWN:
        sentence = f"VirtualBox {version} is newer than any release this driver knows."
        return Judgement(
            HealthLevel.DEGRADED, sentence, "Try it on a few desks before you roll it out."
        )
    return Judgement(HealthLevel.GOOD, f"VirtualBox {version}.")
