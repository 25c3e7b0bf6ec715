"""Messages of joining, and the body of every error answer.

`GET /v1/ca` answers with the CA certificate as PEM text. It is the only thing a client ever
reads without verified TLS, and it is believed only if its SHA-256 is the one in the join code.
`POST /v1/join` takes a JoinRequest and answers with a JoinReply.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from officegrid.wire.data import Message

CA_PATH = "/v1/ca"
JOIN_PATH = "/v1/join"
CLONE_PATH = "/v1/machine/clone"


class JoinRequest(Message):
    """`secret` is `JoinCodeParts.secret_text`; `facts` describe the machine, for people."""

    secret: str = Field(min_length=20, max_length=128, repr=False)
    name: str = Field(min_length=1, max_length=255)
    facts: dict[str, Any] = Field(default_factory=dict, max_length=64)


class CloneRequest(Message):
    """A worker that finds itself on other hardware than it joined on is a copy: it asks, with the
    token it was copied with, for an identity of its own. Answered with a JoinReply."""

    hardware_id: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=255)
    facts: dict[str, Any] = Field(default_factory=dict, max_length=64)


class JoinReply(Message):
    """The identity the coordinator gave; `token` is shown once and kept only hashed there."""

    machine_id: str = Field(min_length=1, max_length=64)
    token: str = Field(min_length=1, max_length=256, repr=False)
    role: str = Field(min_length=1, max_length=32)


class ErrorDetail(Message):
    """An OfficeGridError on the wire; `core.errors.from_wire` rebuilds it."""

    code: str = Field(max_length=64)
    what: str
    why: str = ""
    fix: str = ""


class ErrorBody(Message):
    """What every answer with a status of 400 or more carries."""

    error: ErrorDetail
