"""The agent's own settings: `agent.toml` in its home, written by the admin or by `install`.

[vm]
driver = "auto"            # virtualbox, qemu, libvirt, hyperv, process; auto: the first usable
name = "GridMachine"
image = "/opt/grid.qcow2"  # without: the coordinator's
memory_mb = 2048
cpus = 0                   # 0: physical cores less one, which is also the most
cpu_cap_percent = 100
boot_deadline_s = 300      # after a start, until the worker in the VM has reported in
disk_quota_gb = 40         # of the VM's own disk and saved state; above, it is made anew
[vm.options]               # the driver's own
[vm.guest]                 # how the worker in the VM runs; heard of at its next cold boot
start = "service"          # or "cron"
every_minutes = 5          # with "cron"
slots = 1                  # units worked on at once
proxy = "http://proxy.example.com:3128"
ntp = ["ntp.example.com"]
allow = ["db.example.com:3306", "10.1.0.0/16:443"]   # what programs may reach, besides the grid
[images]
rate_mb_s = 10             # megabytes per second, while an image is fetched
rate_in_use_mb_s = 1       # the same while the PC is not the grid's
[sensors]
kind = "auto"              # auto, or file
file = "/run/presence.json"
[rules]                    # may only be stricter than the coordinator's
idle = "10m"
quiet_hours = ["mon-fri 08:00-18:00"]
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from officegrid.agent.files import write_private
from officegrid.agent.guest_settings import GuestConfig
from officegrid.core.errors import UsageError
from officegrid.wire.agent import DeskRules, desk_rules
from officegrid.wire.mistakes import mistakes

FILE_NAME = "agent.toml"

DriverName = Literal["auto", "virtualbox", "qemu", "libvirt", "hyperv", "process"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VmConfig(_Part):
    driver: DriverName = "auto"
    name: str = Field(default="GridMachine", pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")
    image: Path | None = None
    memory_mb: int = Field(default=2048, ge=64, le=1_000_000)
    cpus: int = Field(default=0, ge=0, le=256)
    cpu_cap_percent: int = Field(default=100, ge=1, le=100)
    boot_deadline_s: float = Field(default=300.0, ge=5, le=7200)
    disk_quota_gb: float = Field(default=40.0, ge=1, le=100_000)
    coordinator_url: str = ""
    """How the guest reaches the coordinator, where that differs from how this PC does."""
    options: dict[str, Any] = Field(default_factory=dict)
    guest: GuestConfig = Field(default_factory=GuestConfig)


class ImagesConfig(_Part):
    """How fast images are fetched, in megabytes (10^6) per second."""

    rate_mb_s: float = Field(default=10.0, gt=0, le=10_000)
    rate_in_use_mb_s: float = Field(default=1.0, gt=0, le=10_000)

    def rate_now_mb_s(self, *, in_use: bool) -> float:
        """The rate while the PC is the grid's, or is not."""
        return min(self.rate_mb_s, self.rate_in_use_mb_s) if in_use else self.rate_mb_s


class SensorConfig(_Part):
    kind: Literal["auto", "file"] = "auto"
    file: Path | None = None

    @model_validator(mode="after")
    def _file_is_named(self) -> SensorConfig:
        if self.kind == "file" and self.file is None:
            raise ValueError('kind = "file" needs file = "/path/to/presence.json"')
        return self


class AgentConfig(_Part):
    vm: VmConfig = Field(default_factory=VmConfig)
    images: ImagesConfig = Field(default_factory=ImagesConfig)
    sensors: SensorConfig = Field(default_factory=SensorConfig)
    rules: DeskRules = Field(default_factory=DeskRules)


def load_config(path: Path) -> AgentConfig:
    """Read the settings; a missing file means all defaults. Raises UsageError naming the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return AgentConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The agent's settings in {path} cannot be read.", str(error)) from None
    raw: dict[str, Any] = {}
    try:
        raw = tomllib.loads(text)
        rules = raw.pop("rules", {})
        if not isinstance(rules, dict):
            raise UsageError(
                f"The agent's settings in {path} are wrong at 'rules'.",
                "It is not a table.",
                "Begin it with a line [rules].",
            )
        return AgentConfig.model_validate({**raw, "rules": desk_rules(rules, f"[rules] in {path}")})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"The agent's settings in {path} are not TOML.", str(error), "Correct that line."
        ) from None
    except ValidationError as error:
        first = mistakes(error, raw)[0]
        raise UsageError(
            f"The agent's settings in {path} are wrong{first.at}.",
            first.sentence,
            "Correct that key; docs/agent.md lists all.",
        ) from None


def keep_config(config: AgentConfig, path: Path) -> None:
    """Remember settings that the agent runs with, for `kept_config`. Raises OSError."""
    write_private(path, config.model_dump_json().encode())


def kept_config(path: Path) -> AgentConfig | None:
    """The settings the agent ran with last, or None."""
    try:
        return AgentConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
