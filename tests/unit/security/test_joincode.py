"""Join codes: what a person can do to one while pasting it, and what they are told."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.errors import InternalError, UsageError
from officegrid.core.joincode import SECRET_BYTES, format_code, parse_code

FINGERPRINT = hashlib.sha256(b"a certificate").digest()
CODE = format_code(bytes(range(SECRET_BYTES)), FINGERPRINT)
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@given(
    secret=st.binary(min_size=13, max_size=64),
    fingerprint=st.binary(min_size=32, max_size=32),
)
def test_every_code_is_read_back(secret: bytes, fingerprint: bytes) -> None:
    parts = parse_code(format_code(secret, fingerprint))
    assert parts.fingerprint == fingerprint
    assert len(parts.secret_text) * 5 >= len(secret) * 8


def test_different_secrets_give_different_secret_texts() -> None:
    texts = {parse_code(format_code(bytes([n] * 15), FINGERPRINT)).secret_text for n in range(256)}
    assert len(texts) == 256


def test_the_form_is_the_documented_one() -> None:
    groups = CODE.split("-")
    assert groups[0] == "og1"
    assert [len(group) for group in groups[1:]] == [6, 6, 6, 6, 52, 4]


@pytest.mark.parametrize(
    "pasted",
    [
        f"  {CODE}\n",
        CODE.upper(),
        CODE.replace("-", " - "),
        CODE.replace("-", ""),
        CODE.replace("-", "\u2013"),
        f'"{CODE}"',
        f"{CODE[:40]}\r\n    {CODE[40:]}",
        f"\ufeff{CODE}\u200b",
        CODE.replace("-", "\u00a0"),
    ],
    ids=[
        "blanks around",
        "upper case",
        "spaced dashes",
        "no dashes",
        "en dashes",
        "quotes",
        "line break",
        "zero width",
        "no-break spaces",
    ],
)
def test_what_pasting_does_to_a_code_is_tolerated(pasted: str) -> None:
    assert parse_code(pasted) == parse_code(CODE)


@given(position=st.integers(0, len(CODE) - 1), char=st.sampled_from(ALPHABET))
def test_any_single_wrong_character_is_noticed(position: int, char: str) -> None:
    if CODE[position] in ("-", char):
        return
    with pytest.raises(UsageError) as caught:
        parse_code(CODE[:position] + char + CODE[position + 1 :])
    assert caught.value.why
    assert caught.value.fix


def test_swapped_neighbours_are_noticed() -> None:
    for i in range(4, len(CODE) - 1):
        a, b = CODE[i], CODE[i + 1]
        if a == b or "-" in (a, b):
            continue
        with pytest.raises(UsageError):
            parse_code(CODE[:i] + b + a + CODE[i + 2 :])


@pytest.mark.parametrize(
    ("pasted", "told"),
    [
        ("", "not a join code"),
        ("hello", "not a join code"),
        (CODE[4:], "not a join code"),
        (CODE[:50], "incomplete"),
        (CODE[:-1], "typo"),
        (CODE + "a", "typo"),
        ("og2" + CODE[3:], "does not know"),
        (CODE[:6] + "0" + CODE[7:], "typo"),
    ],
)
def test_each_mistake_gets_its_own_sentence(pasted: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        parse_code(pasted)
    assert caught.value.exit_code == 2
    assert caught.value.fix


def test_a_misread_digit_is_pointed_out() -> None:
    with pytest.raises(UsageError, match="letter o"):
        parse_code(CODE[:6] + "0" + CODE[7:])


def test_no_message_quotes_the_secret() -> None:
    secret = parse_code(CODE).secret_text
    for pasted in (CODE[:-1], CODE + "a", CODE[4:], CODE[:50], "og2" + CODE[3:]):
        with pytest.raises(UsageError) as caught:
            parse_code(pasted)
        assert secret[:6] not in str(caught.value)
    assert secret not in repr(parse_code(CODE))


@pytest.mark.parametrize(("secret", "fingerprint"), [(b"x" * 12, b"f" * 32), (b"x" * 15, b"f")])
def test_wrong_lengths_are_a_bug(secret: bytes, fingerprint: bytes) -> None:
    with pytest.raises(InternalError):
        format_code(secret, fingerprint)
