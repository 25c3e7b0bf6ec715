"""Messages about workers that pass on to one another what they fetched."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from officegrid.wire.data import Message, Sha256

MOST_HELD = 512
MOST_WANTED = 64
PEER_DOMAIN = "peer.officegrid.internal"
"""The certificate of a worker is for `<machine id>.<this>`; no name server knows it."""

MachineId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class PeerAsk(Message):
    """What a worker can give to others, and what it looks for."""

    port: int = Field(
        default=0, ge=0, le=65535,
        description="it listens there, at the address its requests come from; 0: it does not",
    )  # fmt: skip
    holds: list[Sha256] | None = Field(
        default=None, max_length=MOST_HELD, description="all that it has; null: as told before"
    )
    adds: list[Sha256] = Field(
        default_factory=list, max_length=MOST_HELD, description="what is new since it told last"
    )
    wants: list[Sha256] = Field(default_factory=list, max_length=MOST_WANTED)
    certificate: bool = Field(default=False, description="send a key and a certificate")
    failed: list[MachineId] = Field(
        default_factory=list, max_length=64, description="who did not answer at all"
    )
    got_objects: int = Field(default=0, ge=0, le=10**9, description="from others, since last time")
    got_bytes: int = Field(default=0, ge=0, le=2**50)


class PeerCertificate(Message):
    """For both ends of a connection between workers. PEM; the key is shown to nobody else."""

    certificate: str
    key: str = Field(repr=False)
    authority: str = Field(description="who signs all peers' certificates")
    authority_id: str
    expires_at: float


class PeerPlace(Message):
    """A worker that gives objects away."""

    id: MachineId
    address: str
    port: int
    has: list[Sha256]


class PeerReply(Message):
    allowed: bool = Field(description="False: this grid does not want it; do not listen")
    came_from: str = Field(
        default="", description="the address of this request; who has it can be reached there"
    )
    authority_id: str = Field(default="", description="a certificate of another one is void")
    certificate: PeerCertificate | None = None
    peers: list[PeerPlace] = Field(default_factory=list)
    tell_all: bool = Field(default=False, description="say all that you hold next time")
    again_s: float = Field(default=120.0, description="tell again then, at the latest")


class PeerView(Message):
    """A worker that shares, for people."""

    id: MachineId
    name: str
    address: str
    port: int
    network: str
    objects: int
    told_at: float


class PeerList(Message):
    allowed: bool
    peers: list[PeerView]
    got_objects: int = Field(description="by all workers from others, since the coordinator began")
    got_bytes: int
