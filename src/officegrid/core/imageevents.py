"""What can happen to the images of one PC: the events of `core.imagelife`. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Order:
    """What the coordinator wants the VM to be made from. `retry`: also if it failed here."""

    id: str
    version: int
    name: str
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """An image of which a file lies on this PC, whole and verified. `sha256` is the file's, `ext`
    its format, `size` its bytes."""

    id: str
    version: int
    name: str
    sha256: str
    ext: str
    size: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """The coordinator's word, now; None: it has no image."""

    order: Order | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The image's file is whole, verified and durable."""

    held: Held


@dataclass(frozen=True, slots=True)
class Free:
    """Nothing of the VM is in memory, and nobody waits for anything."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The VM is gone, as `remake` asked. `following`: digest of the image from which the next one
    will be made, as was decided before the deletion began; empty: from none. None: it does not
    depend on the images here."""

    following: str | None = None


@dataclass(frozen=True, slots=True)
class Making:
    """A VM is about to be made from `wanted`, or (pinned) from a file of the admin's own."""

    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Booting:
    """The VM is about to boot, or to go on with a boot."""


@dataclass(frozen=True, slots=True)
class BootEnded:
    """What came of the boot is known, or it was called off: nothing of it is at work any more."""


@dataclass(frozen=True, slots=True)
class BootFailed:
    """A boot has ended, or lasted too long, and the worker was not heard."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The hypervisor does not take the image. `whole`: digest of the image's file, once it has
    been found to be what it should; empty: nobody has looked."""

    reason: str
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """The coordinator has heard the VM's worker since its last start."""


@dataclass(frozen=True, slots=True)
class Outgrown:
    """The VM is to be made anew for a reason of its own, such as its size."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A file is gone or damaged."""

    sha256: str


@dataclass(frozen=True, slots=True)
class FormatIs:
    """The hypervisor takes files of this format."""

    ext: str


Event = (
    Ordered | Fetched | Free | Deleted | Making | Booting | BootEnded | BootFailed | Refused
    | Heard | Outgrown | Lost | FormatIs
)  # fmt: skip
