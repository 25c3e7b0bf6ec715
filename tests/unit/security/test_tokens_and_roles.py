"""Tokens, roles, and the waiting rule that retries use."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.coordinator.tokens import ROLES, hash_token, new_join_code, new_token
from officegrid.core.backoff import delay_s
from officegrid.core.joincode import parse_code
from officegrid.core.roles import PERMISSIONS, Permission, Role, allows, role_with

EXPECTED = {
    "worker": "work",
    "agent": "work host",
    "submitter": "submit read_jobs control_jobs read_output read_machines",
    "viewer": "read_jobs read_machines",
    "admin": "submit read_jobs control_jobs read_output read_machines manage",
}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_do_exactly_this(role: str) -> None:
    allowed = {str(p) for p in Permission if allows(role, p)}
    assert allowed == set(EXPECTED[role].split())


def test_every_role_is_in_the_table() -> None:
    assert set(PERMISSIONS) == set(Role) == set(ROLES)


@pytest.mark.parametrize(
    ("role", "permission"), [("root", "manage"), ("admin", "fly"), ("", ""), ("Admin", "manage")]
)
def test_the_unknown_is_denied(role: str, permission: str) -> None:
    assert not allows(role, permission)


def test_tokens_differ_and_are_stored_hashed() -> None:
    made = [new_token() for _ in range(200)]
    assert len({token.text for token in made}) == 200
    for text, stored in made:
        assert stored == hash_token(text) == hashlib.sha256(text.encode()).hexdigest()
        assert text not in stored
        assert len(text) >= 43  # 256 bits in base64
        assert text.isascii()
        assert " " not in text


def test_hashing_takes_anything_a_header_may_hold() -> None:
    assert hash_token("\udcff") != hash_token("")


def test_a_join_code_is_stored_as_the_hash_of_what_machines_send() -> None:
    fingerprint = bytes(range(32))
    first, second = new_join_code(fingerprint), new_join_code(fingerprint)
    assert first.text != second.text
    parts = parse_code(first.text)
    assert parts.fingerprint == fingerprint
    assert hash_token(parts.secret_text) == first.hash


@given(
    attempt=st.integers(-5, 10_000),
    base_s=st.floats(0.001, 10),
    cap_s=st.floats(0.001, 600),
    random01=st.floats(0, 1),
)
def test_delays_stay_within_their_bounds(
    attempt: int, base_s: float, cap_s: float, random01: float
) -> None:
    delay = delay_s(attempt, base_s=base_s, cap_s=cap_s, random01=random01)
    assert 0 <= delay <= cap_s
    assert delay <= base_s * 2 ** min(max(attempt, 0), 62)


def test_delays_double_up_to_the_cap_and_spread_down_to_zero() -> None:
    longest = [delay_s(n, base_s=1, cap_s=10, random01=1.0) for n in range(6)]
    assert longest == [1, 2, 4, 8, 10, 10]
    assert delay_s(3, base_s=1, cap_s=10, random01=0.0) == 0
    assert delay_s(3, base_s=1, cap_s=10, random01=0.5) == 4


def test_a_refusal_names_a_role_that_would_do() -> None:
    assert all(allows(role_with(one), one) for one in Permission)
    assert role_with(Permission.SUBMIT) == "submitter"
    assert role_with(Permission.MANAGE) == "admin"
    assert role_with(Permission.WORK) == "worker"
    assert role_with(Permission.READ_JOBS) == role_with(Permission.READ_MACHINES) == "viewer"
