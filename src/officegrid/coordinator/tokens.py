"""Tokens of machines and people, and the secrets of join codes. Only hashes are ever stored.

Why plain SHA-256 and not a slow password hash: a slow hash makes guessing *weak* secrets dear.
Tokens carry 256 random bits and join secrets 120, which nobody guesses at any speed, so
slowness would buy nothing and would cost the coordinator its time on each request.

Why no constant-time comparison: a token is looked up by its hash. What a lookup's timing could
tell about is the hash of the guess, which a guesser can neither steer nor turn back into
a token.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

from officegrid.core.joincode import SECRET_BYTES, format_code, parse_code
from officegrid.core.roles import ROLES

__all__ = ["ROLES", "NewSecret", "hash_token", "new_join_code", "new_token"]

_TOKEN_BYTES = 32
_TOKEN_PREFIX = "ogt_"  # lets secret scanners, and people reading a leak, tell what it is


class NewSecret(NamedTuple):
    """`text` goes to its owner once and is then forgotten; `hash` is stored (64 hex digits)."""

    text: str
    hash: str


def new_token() -> NewSecret:
    """A fresh token with 256 random bits, made of letters, digits, `-` and `_`."""
    text = _TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    return NewSecret(text, hash_token(text))


def new_join_code(fingerprint: bytes) -> NewSecret:
    """A fresh join code for the CA with this SHA-256 (32 bytes).

    `hash` is `hash_token` of the code's `secret_text`, which is what a joining machine sends.
    """
    text = format_code(secrets.token_bytes(SECRET_BYTES), fingerprint)
    return NewSecret(text, hash_token(parse_code(text).secret_text))


def hash_token(text: str) -> str:
    """SHA-256 of a token or of a join code's `secret_text`, as 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
