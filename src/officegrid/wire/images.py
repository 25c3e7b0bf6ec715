"""Messages about worker images: what is pushed, who runs what, what an agent is told to run.

A pushed image is one build in several file formats. Each file is a row of chunks, and each chunk
an object in the store named by its SHA-256: uploads and downloads resume anywhere, every piece is
checked by itself, and builds that share pieces share them in the store.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from officegrid.wire.data import Message, Sha256

CHUNK_BYTES = 4 * 1024 * 1024
"""Every chunk of a file but its last has this size."""

ImageFormat = Literal["qcow2", "ova", "vhdx"]
"""qcow2: QEMU and libvirt. ova: VirtualBox. vhdx: Hyper-V."""
RolloutState = Literal["rolling", "paused", "current", "rolled_back", "replaced"]
UseState = Literal["fetching", "ready", "trial", "good", "failed"]
_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class ImageFile(Message):
    """One file of an image: `name` as it lies in the build's folder."""

    name: _Name
    size: int = Field(ge=1, le=2**40, description="bytes")
    sha256: Sha256 = Field(description="of the whole file")
    chunks: list[Sha256] = Field(min_length=1, max_length=262_144)


class ImageSpec(Message):
    """An image as it is pushed; its id is the SHA-256 of its canonical JSON."""

    name: _Name = Field(description="of the build, such as grid-2026.11.22")
    worker_version: str = Field(default="", max_length=64, description="officegrid in the guest")
    built_at: float = Field(
        default=0.0, allow_inf_nan=False, description="seconds since the epoch, of its sources"
    )
    about: dict[str, str] = Field(
        default_factory=dict, max_length=64, description="for people: system, parts, kernel"
    )
    files: dict[ImageFormat, ImageFile] = Field(min_length=1)


class ImageUseView(Message):
    """What one desktop does with an image."""

    machine: str
    machine_name: str
    state: UseState
    text: str = ""
    at: float
    done_bytes: int = 0
    total_bytes: int = 0
    running: bool = Field(default=False, description="its VM is made from this image now")


class ImageView(Message):
    """An image as people see it. `uses` is left out of lists."""

    id: Sha256
    version: int = Field(description="1, 2, 3 … in the order pushed")
    name: str
    worker_version: str = ""
    created_at: float
    pushed_by: str = ""
    state: RolloutState
    share: float = Field(description="of the desktops that are to run it now, 0 to 1")
    words: str = Field(default="", description="what happens with it and why, in a sentence")
    sizes: dict[ImageFormat, int] = Field(default_factory=dict, description="bytes")
    counts: dict[UseState, int] = Field(
        default_factory=dict,
        description="desktops; good: of an image out of use those on it",
    )
    running: int = Field(default=0, description="desktops whose VM is made from it")
    about: dict[str, str] = Field(default_factory=dict)
    uses: list[ImageUseView] | None = None


class ImageList(Message):
    """Newest first. `elsewhere` counts desktops whose VM is made from an image of their own."""

    images: list[ImageView]
    elsewhere: int = 0
    without: int = Field(default=0, description="desktops that have no VM yet")


class RolloutChange(Message):
    """pause: no further desktop starts with it. resume: go on, or start anew with an image that is
    out of use. finish: all desktops now; again: accept it without further watching. roll_back:
    everybody back to the image before. retry: desktops on which it failed try it again."""

    action: Literal["pause", "resume", "finish", "roll_back", "retry"]


class RolloutSettings(Message):
    """How new images go out; see `core.rollout.RolloutPolicy`."""

    stages: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.01, 0.10, 1.0], min_length=1, max_length=20, description="shares of the desktops"
    )
    soak_s: float = Field(default=1800.0, ge=0, le=30 * 86400)
    good_share: float = Field(default=0.8, ge=0, le=1)
    failed_share: float = Field(default=0.2, ge=0, le=1)

    @field_validator("stages")
    @classmethod
    def _grow_to_all(cls, stages: list[float]) -> list[float]:
        if stages != sorted(set(stages)) or stages[-1] != 1:
            raise ValueError("stages grow, and the last one is all desktops: 0.01, 0.1, 1")
        return stages


class ImageOrder(Message):
    """In the answer to an agent's report: the image that its VM is to be made from.

    The agent asks `GET /v1/images/{id}/spec` for the chunks and `GET /v1/image-chunks/{sha256}`
    for each. `retry` asks to try an image again that has failed on this desktop.
    """

    id: Sha256
    version: int
    name: str
    retry: bool = False


class ImageReport(Message):
    """What an agent says about images: what its VM is made from, and how the ordered one fares.

    `format` is what its driver can use; empty: no driver is known, or it needs no image.
    """

    format: ImageFormat | Literal[""] = ""
    running: Sha256 | None = Field(default=None, description="image id; None: none of ours")
    pinned: bool = Field(default=False, description="agent.toml names a file of its own")
    image: Sha256 | None = Field(default=None, description="the one that `state` is about")
    state: UseState | None = None
    text: str = Field(default="", max_length=1024)
    done_bytes: int = Field(default=0, ge=0)
    total_bytes: int = Field(default=0, ge=0)
