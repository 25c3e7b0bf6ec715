"""Messages about the clean-up: what went, and why the rest stayed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from officegrid.wire.catalogue import Kind
from officegrid.wire.data import Message, Sha256


class CleanRequest(Message):
    dry_run: bool = Field(default=False, description="only say what would go")


class CleanedVersion(Message):
    kind: Kind
    name: str
    n: int
    digest: Sha256


class Stays(Message):
    """How much stays for one reason; the first one that holds counts."""

    what: Literal["versions", "objects"]
    reason: str
    count: int
    bytes: int = 0


class CleanReply(Message):
    """What has gone or, of a dry run, would go."""

    dry_run: bool
    jobs: list[str] = Field(
        default_factory=list,
        description="ids of those that went as a whole; what they alone used is counted in a dry "
        "run only once they have gone",
    )
    versions: list[CleanedVersion] = Field(default_factory=list)
    datasets: int = Field(default=0, description="inputs that no job uses")
    objects: int = 0
    bytes: int = 0
    stay: list[Stays] = Field(default_factory=list)
    took_s: float = 0.0
