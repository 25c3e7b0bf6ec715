"""Versions sort as Python packages do; requirements are met or named."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from officegrid.core.errors import UsageError
from officegrid.core.requirements import unmet
from officegrid.core.versions import checked, is_older, key, satisfies

IN_ORDER = [
    "0.1.0.dev1", "0.1.0a1.dev2", "0.1.0a1", "0.1.0a2", "0.1.0b1", "0.1.0rc1", "0.1.0",
    "0.1.0+local", "0.1.0+2", "0.1.0.post1.dev1", "0.1.0.post1", "0.1.1", "0.2", "0.10", "1.0",
    "1!0.1",
]  # fmt: skip
NONSENSE = ["", "newest", "1.x", "1..2", "v", "1.0-", "1.0 2", "1.0\n2", "-1", "1.0+", "1" * 65]

numbers = st.integers(0, 30)
versions = st.builds(
    lambda release, pre, post, dev: ".".join(map(str, release)) + pre + post + dev,
    st.lists(numbers, min_size=1, max_size=4),
    st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["a", "b", "rc"]), numbers)),
    st.one_of(st.just(""), st.builds(".post{}".format, numbers)),
    st.one_of(st.just(""), st.builds(".dev{}".format, numbers)),
)


def test_the_order_of_versions() -> None:
    for older, newer in itertools.combinations(IN_ORDER, 2):
        assert is_older(older, newer), (older, newer)
        assert not is_older(newer, older), (newer, older)


@given(versions, versions)
def test_any_two_versions_sort_as_packaging_sorts_them(one: str, other: str) -> None:
    assert is_older(one, other) == (Version(one) < Version(other))


@given(st.text(max_size=20))
def test_what_is_read_as_a_version_is_one(text: str) -> None:
    if key(text) is None:
        with pytest.raises(UsageError, match="is not a version"):
            checked(text, "floor")
        return
    try:
        Version(text)
    except InvalidVersion:
        pytest.fail(f"{text!r} is not a version to packaging")


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_older_than_all_and_refused_when_set(text: str) -> None:
    assert is_older(text, "0.0.1.dev0")
    assert not is_older("0.1", text)
    with pytest.raises(UsageError, match="is not a version") as caught:
        checked(text, "floor for workers")
    assert caught.value.exit_code == 2


@given(versions, st.sampled_from([">=", "<=", ">", "<", "==", "!="]), versions)
def test_conditions_hold_as_packaging_says(text: str, operator: str, limit: str) -> None:
    if operator in "<>" and (Version(limit).is_prerelease or Version(limit).is_postrelease):
        return  # where packaging has exceptions that no requirement of ours uses
    if operator in "<>" and (Version(text).is_prerelease or Version(text).is_postrelease):
        return
    wanted = SpecifierSet(f"{operator}{limit}").contains(text, prereleases=True)
    assert satisfies(text, [(operator, limit)]) == wanted


@pytest.mark.parametrize(
    ("text", "conditions", "met"),
    [
        ("2.14.1", [(">=", "2.14"), ("<", "3")], True),
        ("3.0", [(">=", "2.14"), ("<", "3")], False),
        ("1.4.5", [("~=", "1.4")], True),
        ("2.0", [("~=", "1.4")], False),
        ("1.4.5", [("==", "1.4.*")], True),
        ("1.5", [("!=", "1.4.*")], True),
        ("1.2+ubuntu1", [("==", "1.2")], True),
        ("odd", [(">=", "1")], None),
        ("1.0", [("===", "1.0")], None),
        ("1.0", [], True),
    ],
)
def test_conditions(text: str, conditions: list[tuple[str, str]], met: bool | None) -> None:
    assert satisfies(text, conditions) is met


def test_what_is_missing_is_named() -> None:
    have = {"click": "8.5", "pydantic": "2.13", "odd-one": "nonsense"}
    requires = [
        "click>=8.5", "pydantic>=2.14,<3", "httpx2", "odd-one>1", "duckdb>=1; extra == 'parquet'",
        "winonly; sys_platform == 'win32'", 'old; python_version < "3.11"',
        "strange @ file:///x", "either; sys_platform == 'linux' or python_version < '3'",
    ]  # fmt: skip
    missing = unmet(requires, have.get, python="3.11.7", requires_python=">=3.12")
    assert missing == [
        "Python >=3.12 (3.11.7 is installed)",
        "pydantic>=2.14,<3 (2.13 is installed)",
        "httpx2 (not installed)",
        "odd-one>1 (nonsense is installed)",
        "strange @ file:///x (not understood)",
        "either; sys_platform == 'linux' or python_version < '3' (not understood)",
    ]


def test_what_this_very_program_requires_is_understood() -> None:
    from importlib.metadata import requires

    lines = requires("officegrid") or []
    assert lines
    plain = [Requirement(line) for line in lines]
    base = {one.name for one in plain if one.marker is None}
    assert unmet(lines, lambda name: None, python="3.11.1") == [
        f"{one.name}{one.specifier} (not installed)" for one in plain if one.name in base
    ]
