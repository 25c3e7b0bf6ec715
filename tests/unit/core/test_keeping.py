"""Which versions stay: the rules one by one, and what holds for any mixture of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.jobs import ENDED, JobState
from officegrid.core.keeping import (
    DAY_S,
    JobFacts,
    Keep,
    Reason,
    VersionFacts,
    may_remove,
    need_of,
    sort_out,
)

NOW = 1000 * DAY_S
KEEP = Keep(versions=2, days=30)


def versions(*digests: str, name: str = "clean", kind: str = "code") -> list[VersionFacts]:
    """Version 1, 2, … with these contents."""
    return [VersionFacts(kind, name, n, digest) for n, digest in enumerate(digests, 1)]


def job(
    state: JobState = JobState.FINISHED, *uses: str, days_ago: float | None = 100, bad: int = 0,
    names: Iterable[tuple[str, str, int]] = (),
) -> JobFacts:  # fmt: skip
    ended = None if days_ago is None or state not in ENDED else NOW - days_ago * DAY_S
    return JobFacts(state, ended, bad, frozenset(uses), frozenset(names))


def reasons(known: list[VersionFacts], *jobs: JobFacts) -> list[str]:
    """Of versions 1, 2, …: why each stays; "" for one that goes."""
    found = sort_out(known, jobs, KEEP, NOW)
    assert {one.key for one in found.go} == {one.key for one in known} - found.stay.keys()
    return [found.stay[one.key].name if one.key in found.stay else "" for one in known]


@pytest.mark.parametrize("state", [s for s in JobState if s not in ENDED])
def test_what_a_job_runs_that_has_not_ended_stays(state: JobState) -> None:
    known = versions(*"abcd")
    assert reasons(known) == ["", "", "NEWEST", "NEWEST"]
    assert reasons(known, job(state, "a")) == ["RUNS", "", "NEWEST", "NEWEST"]


@pytest.mark.parametrize("state", sorted(ENDED))
def test_what_an_ended_job_ran_stays_for_days_or_for_its_quarantine(state: JobState) -> None:
    known = versions(*"abcd")
    for days_ago, bad, expected in (
        (29.9, 0, "RECENT"), (30, 0, "RECENT"), (30.1, 0, ""), (5000, 1, "QUARANTINE"),
        (1, 1, "QUARANTINE"), (-5, 0, "RECENT"), (None, 0, "RECENT"),
    ):  # fmt: skip
        assert reasons(known, job(state, "b", days_ago=days_ago, bad=bad))[1] == expected


def test_what_is_named_exactly_stays_while_the_job_has_not_ended() -> None:
    known = versions(*"abcd") + versions(*"efgh", kind="data")
    names = [("code", "clean", 1), ("data", "clean", 2), ("code", "other", 1), ("code", "clean", 9)]
    expected = ["NAMED", "", "NEWEST", "NEWEST", "", "NAMED", "NEWEST", "NEWEST"]
    for state in JobState:
        want = expected if state not in ENDED else [r.replace("NAMED", "") for r in expected]
        assert reasons(known, job(state, names=names)) == want


def test_one_content_under_many_numbers_stays_or_goes_as_one() -> None:
    assert reasons(versions(*"abca")) == ["SHARED", "", "NEWEST", "NEWEST"]
    assert reasons(versions(*"aabcd")) == ["", "", "", "NEWEST", "NEWEST"]
    both = versions(*"abcd") + versions("a", name="other")
    assert reasons(both) == ["SHARED", "", "NEWEST", "NEWEST", "NEWEST"]
    twice = versions(*"aabcd")
    assert reasons(twice, job(JobState.HELD, "a")) == ["RUNS", "RUNS", "", "NEWEST", "NEWEST"]


def test_each_name_and_kind_counts_for_itself() -> None:
    known = versions(*"abc") + versions(*"def", name="other") + versions(*"ghi", kind="data")
    assert reasons(known) == ["", "NEWEST", "NEWEST"] * 3


def test_the_first_reason_is_told() -> None:
    jobs = [job(JobState.FINISHED, "a", days_ago=1), job(JobState.FINISHED, "a", bad=3)]
    assert reasons(versions(*"abcd"), *jobs)[0] == "QUARANTINE"
    assert reasons(versions(*"abcd"), *jobs, job(JobState.RUNNING, "a"))[0] == "RUNS"


def test_content_that_a_job_needs_stays_without_a_version_too() -> None:
    found = sort_out([], [job(JobState.RUNNING, "x"), job(JobState.FINISHED, "y")], KEEP, NOW)
    assert (found.digests, found.go) == (frozenset("x"), ())


def test_whole_jobs_go_only_when_that_is_wished_and_long_after_their_end() -> None:
    for state in JobState:
        ended = state in ENDED
        for limit, at, expected in (
            (None, 0.0, False), (10.0, 89.0, ended), (10.0, 90.0, False), (10.0, 200.0, False),
            (10.0, None, False),
        ):  # fmt: skip
            assert may_remove(state, at, older_than_s=limit, now=100.0) is expected


_names = st.tuples(
    st.sampled_from(["code", "data"]), st.sampled_from(["a", "b"]), st.integers(1, 9)
)
_digests = st.sampled_from("uvwxyz")
_versions = st.dictionaries(_names, _digests, max_size=16).map(
    lambda found: [VersionFacts(*key, digest) for key, digest in found.items()]
)
_jobs = st.lists(
    st.builds(
        JobFacts,
        st.sampled_from(list(JobState)),
        st.none() | st.floats(NOW - 100 * DAY_S, NOW + DAY_S),
        st.integers(0, 2),
        st.frozensets(_digests, max_size=3),
        st.frozensets(_names, max_size=3),
    ),
    max_size=6,
)


@given(_versions, _jobs, st.integers(1, 4), st.floats(0, 60))
def test_any_mixture(
    known: list[VersionFacts], jobs: list[JobFacts], newest: int, days: float
) -> None:
    keep = Keep(newest, days)
    found = sort_out(known, jobs, keep, NOW)
    left = {one.key: one.digest for one in known if one not in found.go}
    assert found.stay.keys() == left.keys()
    assert not {one.digest for one in found.go} & found.digests
    assert set(left.values()) <= found.digests
    for one in jobs:
        if one.state not in ENDED:
            assert one.uses <= found.digests
            assert {v.key for v in known} & one.names <= left.keys()
        if need_of(one.state, one.ended_at, one.quarantined, days=days, now=NOW):
            assert one.uses <= found.digests
    for kind, name in {(one.kind, one.name) for one in known}:
        numbers = sorted(one.n for one in known if (one.kind, one.name) == (kind, name))
        assert {(kind, name, n) for n in numbers[-newest:]} <= left.keys()
    # Nothing goes that has a reason, and what went once changes nothing for the rest.
    again = sort_out([one for one in known if one.key in left], jobs, keep, NOW)
    assert (again.go, again.stay) == ((), found.stay)
    # A stricter rule never keeps more.
    fewer = sort_out(known, jobs, Keep(1, 0), NOW)
    assert fewer.stay.keys() <= found.stay.keys()
    assert all(isinstance(reason, Reason) for reason in found.stay.values())
