"""Join codes: text a person can paste that lets one machine join, and only the right grid.

    og1-<secret>-<fingerprint>-<check>
    og1-abcdef-ghijkl-mnopqr-stuvwx-<52 characters>-<4 characters>

`secret` is the one-time proof that the machine may join (100 bits or more), `fingerprint` the
SHA-256 of the coordinator's CA certificate (DER), and `check` tells a typo from a code that the
coordinator does not know. All are base32 in lower case, which survives being read out loud.
Parsing counts from the end, so lost, added or prettified dashes, line breaks and capitals do
no harm.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from officegrid.core.errors import InternalError, UsageError

SECRET_BYTES = 15  # 120 bits: four even groups of six characters
SECRET_LEAST_BYTES = 13  # 104 bits
SECRET_MOST_BYTES = 64
FINGERPRINT_BYTES = 32
_VERSION = "og1"
_GROUP = 6
_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_FINGERPRINT_CHARS = 52
_CHECK_CHARS = 4
_SECRET_LEAST_CHARS = 21
# What mail programs, word processors and chat windows put around or between the groups.
_IGNORED = frozenset("-_.,;:'\"`<>()[]\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u2018\u2019")
_INVISIBLE = frozenset("\u200b\u200c\u200d\u2060\ufeff")
_MISREAD = {"0": "the letter o", "1": "the letter l or i", "8": "the letter b", "9": "the letter g"}
_FIX = "Copy the whole code again, exactly as `officegrid join-code` printed it."


@dataclass(frozen=True, slots=True)
class JoinCodeParts:
    """`secret_text` is what the machine sends to the coordinator, `fingerprint` 32 bytes."""

    secret_text: str = field(repr=False)
    fingerprint: bytes


def format_code(secret: bytes, fingerprint: bytes) -> str:
    """The code for `secret` (13 to 64 random bytes) and the CA's SHA-256 (32 bytes).

    Raises InternalError when a length is wrong: no person chooses either.
    """
    if not SECRET_LEAST_BYTES <= len(secret) <= SECRET_MOST_BYTES:
        raise InternalError(f"A join secret has {len(secret)} bytes, not 13 to 64.")
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise InternalError(f"A CA fingerprint has {len(fingerprint)} bytes, not 32.")
    secret_text, fingerprint_text = _base32(secret), _base32(fingerprint)
    groups = [secret_text[i : i + _GROUP] for i in range(0, len(secret_text), _GROUP)]
    check = _check(secret_text + fingerprint_text)
    return "-".join([_VERSION, *groups, fingerprint_text, check])


def parse_code(text: str) -> JoinCodeParts:
    """Take a pasted code apart. Raises UsageError that says what is wrong with it."""
    body = _without_version(_squeeze(text))
    for char in body:
        if char not in _ALPHABET:
            hint = f" Perhaps it is {_MISREAD[char]}." if char in _MISREAD else ""
            raise UsageError(
                "The join code has a typo.",
                f"The character {char!r} never occurs in a join code.{hint}",
                _FIX,
            )
    shortest = _SECRET_LEAST_CHARS + _FINGERPRINT_CHARS + _CHECK_CHARS
    if len(body) < shortest:
        raise UsageError(
            "The join code is incomplete.",
            f"After `{_VERSION}-` it has {len(body)} letters and digits; "
            f"a whole code has at least {shortest}.",
            _FIX,
        )
    payload, check = body[:-_CHECK_CHARS], body[-_CHECK_CHARS:]
    if _check(payload) != check:
        raise UsageError(
            "The join code has a typo.",
            "Its check characters do not fit: a character is wrong, missing or one too many.",
            _FIX,
        )
    secret_text = payload[:-_FINGERPRINT_CHARS]
    fingerprint_text = payload[-_FINGERPRINT_CHARS:]
    return JoinCodeParts(secret_text, base64.b32decode(fingerprint_text.upper() + "===="))


def _squeeze(text: str) -> str:
    kept = (c for c in text if not (c.isspace() or c in _IGNORED or c in _INVISIBLE))
    return "".join(kept).lower()


def _without_version(squeezed: str) -> str:
    if squeezed.startswith(_VERSION):
        return squeezed[len(_VERSION) :]
    if squeezed.startswith("og") and squeezed[2:3].isdigit():
        raise UsageError(
            "This join code is of a kind that this release does not know.",
            f"It starts with {squeezed[:3]!r}, and this release reads codes "
            f"that start with {_VERSION!r}.",
            "Install the release of Office Grid that the coordinator runs.",
        )
    raise UsageError(
        "This is not a join code.",
        f"A join code starts with `{_VERSION}-`.",
        "Ask the grid admin for a code, who makes it with `officegrid join-code`.",
    )


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _check(payload: str) -> str:
    digest = hashlib.sha256(f"{_VERSION}-{payload}".encode()).digest()
    return _base32(digest)[:_CHECK_CHARS]
