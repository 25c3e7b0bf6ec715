"""Messages about old programs: the floor, and the releases that workers update themselves to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from officegrid.wire.data import Message, Sha256

MAX_WHEEL_BYTES = 64 * 1024 * 1024

_Version = Annotated[str, StringConstraints(max_length=64)]


class FloorSettings(Message):
    """The oldest that still gets work; see `core.floor.Floor`. In a change: null leaves it as it
    is, "" and 0 take that floor away."""

    worker: _Version | None = None
    agent: _Version | None = None
    image: int | None = Field(default=None, ge=0, le=1_000_000_000)


class StaleMachine(Message):
    id: str
    name: str
    why: str = Field(description="worker 0.1.0 is below the floor 0.2.0")


class FloorView(Message):
    """What is in force, and which machines get no units because of it."""

    worker: str = ""
    agent: str = ""
    image: int = 0
    below: list[StaleMachine] = Field(default_factory=list)


class ReleasePush(Message):
    """A wheel of officegrid that is in the object store."""

    digest: Sha256


class ReleaseFailure(Message):
    """A machine on which a release did not work."""

    id: str
    name: str
    why: str


class ReleaseView(Message):
    digest: Sha256
    version: str
    size: int = Field(description="bytes")
    state: str = Field(description="in force, before, withdrawn")
    pushed_at: float
    pushed_by: str
    running: int = Field(default=0, description="workers that run this version")
    installed: int = Field(
        default=0,
        description="of those running: what was installed there, not fetched",
    )
    failed: list[ReleaseFailure] = Field(default_factory=list)


class UpdateList(Message):
    """Releases, newest push first; and how many workers run which version, pushed or installed."""

    releases: list[ReleaseView]
    versions: dict[str, int] = Field(default_factory=dict)
