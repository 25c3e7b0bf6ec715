"""One line in, one answer out: what every transport does with a request it has received."""

from __future__ import annotations

import json
from typing import Any

from officegrid.agent.channel.hub import MOST_REQUEST_BYTES, Hub, Peer
from officegrid.core.errors import OfficeGridError


def answer_line(hub: Hub, peer: Peer, line: bytes) -> bytes:
    """The hub's answer to one request line, as a line. Never raises."""
    return json.dumps(_answer(hub, peer, line)).encode() + b"\n"


def _answer(hub: Hub, peer: Peer, line: bytes) -> dict[str, Any]:
    if len(line) > MOST_REQUEST_BYTES:
        most = f"A request has at most {MOST_REQUEST_BYTES} bytes."
        return _refusal("This request is too long.", most)
    try:
        request = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return _refusal("This is not a request.", "It is not one JSON object on one line.")
    try:
        return hub.handle(peer, request)
    except OfficeGridError as error:
        return _refusal(error.what, error.why, error.fix)
    except Exception as error:  # the door must outlive a fault behind it
        return _refusal("The agent failed to answer.", f"{type(error).__name__}: {error}")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")  # NaN and Infinity are not JSON


def _refusal(what: str, why: str, fix: str = "") -> dict[str, Any]:
    return {"ok": False, "error": {"what": what, "why": why, "fix": fix}}
