"""`[vm.guest]` of agent.toml: how the guest runs its worker, and what it may talk to.

It goes to the guest on the seed disk, as "settings". `officegrid.guest.settings` reads it there and
ignores what is wrong; here a mistake is refused where the admin sees it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_ENDPOINT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})")


class GuestConfig(BaseModel):
    """What is not stated stays as the image has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Literal["service", "cron"] | None = None
    every_minutes: int | None = Field(default=None, ge=1, le=59)
    """With `cron`; within an hour, because a `*/90` of cron is not every 90 minutes."""
    slots: int | None = Field(default=None, ge=1, le=256)
    proxy: str | None = None
    ntp: list[str] | None = Field(default=None, max_length=64)
    allow: list[str] | None = Field(default=None, max_length=64)

    peers_port: int | None = Field(default=None, ge=1, le=65535)
    """Where the guest's worker shares data with others on its network; without it, nowhere."""

    @field_validator("proxy")
    @classmethod
    def _proxy_has_no_password(cls, value: str | None) -> str | None:
        if value is None:
            return value
        endpoint = value.removeprefix("http://").removesuffix("/")
        if endpoint == value or not is_endpoint(endpoint):
            # What the guest runs with can be read by the programs in it.
            raise ValueError("a proxy is http://host:port, without user and password")
        return value

    @field_validator("ntp")
    @classmethod
    def _ntp_are_hosts(cls, value: list[str] | None) -> list[str] | None:
        for host in value or []:
            if not is_host(host):
                raise ValueError(f"{host!r} is neither a host name nor an address")
        return value

    @field_validator("allow")
    @classmethod
    def _allow_are_endpoints(cls, value: list[str] | None) -> list[str] | None:
        for one in value or []:
            if not is_endpoint(one, networks=True):
                raise ValueError(
                    f"{one!r} is neither host:port nor network/bits:port (IPv6 in brackets)"
                )
        return value

    def stated(self) -> dict[str, Any]:
        """What the guest is told: the keys that were set."""
        return self.model_dump(exclude_none=True)


def is_host(text: str) -> bool:
    """Is it a host name or an address?"""
    return _is_address(text, networks=False) or bool(_NAME.fullmatch(text))


def is_endpoint(text: str, *, networks: bool = False) -> bool:
    """Is it `host:port`, with IPv6 addresses in brackets; `networks`: also `network/bits:port`?"""
    found = _ENDPOINT.fullmatch(text)
    if found is None or not 0 < int(found[3]) < 2**16:
        return False
    if found[1] is not None:
        return ":" in found[1] and _is_address(found[1], networks=networks)
    return _is_address(found[2], networks=networks) or bool(_NAME.fullmatch(found[2]))


def _is_address(text: str, *, networks: bool) -> bool:
    try:
        if networks:
            ipaddress.ip_network(text, strict=False)
        else:
            ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
