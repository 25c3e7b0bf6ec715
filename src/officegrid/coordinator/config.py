"""The coordinator's own settings: `coordinator.toml` in its data folder, written by the admin.

[sources.crm]                       # databases that jobs may read from and write to
url = "postgresql://grid@db.example.com/crm"
password_file = "/etc/officegrid/crm.password"
write = true                        # jobs may put their output into its tables
[data.postcodes]                    # reference data that the coordinator keeps fresh
path = "/srv/postcodes.sqlite"      # or url = "https://…", or source = "crm" with sql = "select …"
schedule = "*/15 * * * *"
[git]                               # code = "git+https://…@branch" in job files
allow = ["https://git.example.com/"]
every = "5m"
[keep]                              # what the daily clean-up leaves
versions = 10                       # of each name, the newest
days = 30                           # what jobs ran that ended since then
objects = "24h"                     # uploads that belong to nothing yet
jobs = "90d"                        # ended jobs with their output; without it, for ever
[peers]                             # workers fetch from one another; off without it
allow = true
networks = ["10.1.0.0/16"]          # what counts as one network; else the /24 (IPv6: /64)

Passwords stay in this file, or in files it names; both are for the coordinator's user alone.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from officegrid.core.errors import UsageError
from officegrid.core.peers import parse_network
from officegrid.core.quantities import parse_duration_s
from officegrid.wire.catalogue import VersionName, is_name
from officegrid.wire.mistakes import mistakes

FILE_NAME = "coordinator.toml"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _cron_line(text: str) -> str:
    try:
        # Any moment will do: it is only asked whether the line ever comes.
        from datetime import datetime

        next(CronSim(text, datetime(2026, 1, 1)))
    except (CronSimError, StopIteration):
        raise ValueError(
            "not a cron line that ever comes; five fields: minute hour day month weekday, like "
            '"0 19 * * 1-5"'
        ) from None
    return text


def _seconds(value: object) -> float:
    try:
        return parse_duration_s(value)
    except UsageError:
        raise ValueError('must be a duration like "90s", "5m", "1h", "7d", or seconds') from None


CronLine = Annotated[str, AfterValidator(_cron_line)]
Seconds = Annotated[float, BeforeValidator(_seconds)]


class SourceConfig(_Part):
    """A database. Its password may stand in `url`, alone in a file, or in the environment."""

    url: str = Field(min_length=1, repr=False)
    password_file: Path | None = None
    password_env: str | None = None
    write: bool = False


class DataConfig(_Part):
    """Where the coordinator gets a data set from, and when it looks."""

    path: Path | None = None
    url: str | None = None
    source: str | None = None
    sql: str | None = None
    format: Literal["csv", "ndjson"] = "csv"
    schedule: CronLine = "*/15 * * * *"

    @model_validator(mode="after")
    def _one_place(self) -> DataConfig:
        if sum(one is not None for one in (self.path, self.url, self.source)) != 1:
            raise ValueError("give exactly one of 'path', 'url' and 'source'")
        if (self.source is None) != (self.sql is None):
            raise ValueError("'source' and 'sql' go together")
        return self


class GitConfig(_Part):
    """Which repositories job files may name, by the beginning of their address; none: no one."""

    allow: list[str] = Field(default_factory=list)
    every: Seconds = Field(default=300.0, ge=1)


class KeepConfig(_Part):
    versions: int = Field(default=10, ge=1, le=10_000)
    days: float = Field(default=30.0, ge=0, le=36_500)
    objects: Seconds = Field(default=24 * 3600.0, ge=60)
    jobs: Annotated[Seconds, Field(ge=24 * 3600)] | None = None


def _network(text: str) -> str:
    try:
        return str(parse_network(text))
    except ValueError:
        raise ValueError(
            'must be a network like "10.1.0.0/16", with no bits set behind the slash\'s count'
        ) from None


class PeersConfig(_Part):
    """May workers fetch data from one another, and within which networks?"""

    allow: bool = False
    networks: list[Annotated[str, AfterValidator(_network)]] = Field(
        default_factory=list, max_length=1000
    )


class CoordinatorConfig(_Part):
    sources: dict[VersionName, SourceConfig] = Field(default_factory=dict)
    data: dict[VersionName, DataConfig] = Field(default_factory=dict)
    git: GitConfig = Field(default_factory=GitConfig)
    keep: KeepConfig = Field(default_factory=KeepConfig)
    peers: PeersConfig = Field(default_factory=PeersConfig)

    @model_validator(mode="after")
    def _known_sources(self) -> CoordinatorConfig:
        for name, one in self.data.items():
            if one.source is not None and one.source not in self.sources:
                known = ", ".join(sorted(self.sources)) or "none"
                # An address, which may hold a password, can stand there by mistake.
                named = f"source {one.source!r}" if is_name(one.source) else "a source"
                raise ValueError(f"[data.{name}] names {named}, which is not there; known: {known}")
        return self


def load_config(path: Path) -> CoordinatorConfig:
    """Read the settings; a missing file means all defaults. Raises UsageError naming the key,
    never quoting a value: it may be a password."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return CoordinatorConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The coordinator's settings in {path} cannot be read.", str(error)
        ) from None
    raw: dict[str, object] = {}
    try:
        raw = tomllib.loads(text)
        return CoordinatorConfig.model_validate(raw)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"The coordinator's settings in {path} are not TOML.", str(error), "Correct that line."
        ) from None
    except ValidationError as error:
        first = mistakes(error, raw)[0]
        raise UsageError(
            f"The coordinator's settings in {path} are wrong{first.at}.",
            first.sentence,
            "Correct that key; docs/operations.md lists all.",
        ) from None
