"""Quantities as people write them, and the sentences that say why."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.errors import UsageError
from officegrid.core.jobs import JobState
from officegrid.core.quantities import (
    duration_text,
    parse_duration_s,
    parse_limit,
    parse_size_bytes,
    percent_text,
)
from officegrid.core.why import GridFacts, JobFacts, Resting, why_job, why_machine


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25), ("10s", 10.0), (" 1.5 h ", 5400.0), ("5m", 300.0), ("5 min", 300.0),
        ("2d", 172_800.0), (30, 30.0), (0.5, 0.5), ("7", 7.0), ("3H", 10_800.0),
    ],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("2GiB", 2 * 2**30), ("1.5kb", 1500), (4096, 4096), ("3 b", 3)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "total", "records"),
    [
        ("1%", 1000, 10), ("1%", 7, 1), ("0%", 1000, 0), ("0", 1000, 0), (500, 10, 500),
        ("100%", 42, 42), (" 2.5 %", 1000, 25), ("25", 10**9, 25),
    ],
)  # fmt: skip
def test_limits(text: object, total: int, records: int) -> None:
    assert parse_limit(text).records(total) == records


@pytest.mark.parametrize("parse", [parse_duration_s, parse_size_bytes, parse_limit])
@pytest.mark.parametrize(
    "text",
    ["", "ten", "-5s", "5 lightyears", "1,5h", None, True, [], "1e999h", "nan%", "101%", "²", "s"],
)
def test_nonsense_is_refused_with_an_example(parse: object, text: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)  # type: ignore[operator]
    assert caught.value.fix


@pytest.mark.parametrize("parse", [parse_duration_s, parse_size_bytes])
def test_a_number_beyond_all_measure_is_refused(parse: object) -> None:
    with pytest.raises(UsageError):
        parse("9" * 400)  # type: ignore[operator]


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_usage_error(text: str) -> None:
    for parse in (parse_duration_s, parse_size_bytes, parse_limit):
        with contextlib.suppress(UsageError):
            parse(text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (-3, "0 s"), (8.4, "8 s"), (60, "1 min"), (200, "3 min 20 s"),
        (7500, "2 h 5 min"), (86400, "24 h"), (200_000, "2 d 7 h"), (172_800, "2 d"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float, words: str) -> None:
    assert duration_text(seconds) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100 %"), (0.5, "50 %"), (0.0123, "1.2 %"), (0.000004, "0.0004 %"), (0.0, "0 %")],
)
def test_shares_for_people(share: float, words: str) -> None:
    assert percent_text(share) == words


JOB = JobFacts(
    id="j7", name="clean", state=JobState.RUNNING, reason="", total=1000, pending=600, leased=0,
    done=390, quarantined=10, quarantine_allowance=10, live_leases=0, priority=3,
)  # fmt: skip
GRID = GridFacts(workers_joined=4, workers_online=2)
LACKS = "There is no MariaDB client on this machine."


def _resting(names: str, job: str = "") -> list[Resting]:
    return [Resting(name, LACKS, 20.0, job) for name in names]


@pytest.mark.parametrize(
    ("job", "grid", "wanted"),
    [
        (replace(JOB, leased=50, live_leases=2), GRID, ["390 of 1,000", "2 units", "50 records"]),
        (JOB, GridFacts(0, 0), ["600 left", "No worker has joined", "officegrid join-code"]),
        (JOB, GridFacts(4, 0), ["None of the 4 workers", "officegrid worker"]),
        (JOB, GridFacts(1, 0), ["The only worker", "is not online"]),
        (JOB, GridFacts(2, 0, (), {"user here": 2}), ["2 desktops: 2 user here"]),
        (JOB, replace(GRID, busier_jobs=["big"]), ["higher priority: big", "priority 3"]),
        (JOB, GRID, ["2 workers are online"]),
        (
            JOB, replace(GRID, resting=_resting("ab")),
            ["All 2 workers online could not", f"a, b: {LACKS}", "no units for 20 s, then try"],
        ),
        (
            JOB, GridFacts(1, 1, resting=_resting("a")),
            ["The only worker online could not", f"a: {LACKS}", "a takes no units for 20 s"],
        ),
        (
            replace(JOB, leased=50, live_leases=2), replace(GRID, resting=_resting("a")),
            ["50 records being worked on.", "1 of the 2 workers online could not", f"a: {LACKS}"],
        ),
        (
            JOB, GridFacts(9, 9, workers_stale=2, resting=_resting("abcdefg")),
            [f"a, b, c, d, e and 2 more: {LACKS}", "The others are below the floor"],
        ),
        (
            JOB, replace(GRID, resting=_resting("a", "big (j1)")),
            [f"a could not run big (j1): {LACKS}", "1 other worker is online"],
        ),
        (JOB, GridFacts(4, 1), ["1 worker is online"]),
        (
            replace(JOB, state=JobState.FINISHED, done=990, pending=0), GRID,
            ["990 of 1,000", "10 quarantined", "officegrid retry j7"],
        ),
        (
            replace(JOB, state=JobState.FINISHED, done=1000, quarantined=0, pending=0), GRID,
            ["1,000 of 1,000 records done."],
        ),
        (replace(JOB, state=JobState.CANCELLED, reason="by ann"), GRID, ["cancelled: by ann"]),
        (
            replace(JOB, state=JobState.HELD, reason="by ann"), GRID,
            ["held: by ann", "officegrid release j7"],
        ),
        (
            replace(JOB, state=JobState.HELD, reason="too many", quarantined=11), GRID,
            ["11 records", "10 allowed", "officegrid quarantine j7", "officegrid retry j7"],
        ),
        (
            replace(
                JOB, state=JobState.HELD,
                reason="the program could not be started on pc-1: no module named x",
            ), GRID, ["Correct the program and submit", "tries the same code once more"],
        ),
        (
            replace(JOB, state=JobState.HELD, reason="its input cannot be read: no table t"), GRID,
            ["mended in the database", "officegrid release j7", "submitted again"],
        ),
        (
            replace(JOB, state=JobState.WAITING, reason="waits for big (running)"), GRID,
            ["clean waits for big (running)"],
        ),
        (
            replace(JOB, state=JobState.SCHEDULED, next_start_in_s=7500.0), GRID,
            ["next run starts in 2 h 5 min"],
        ),
    ],
)  # fmt: skip
def test_why_a_job_says_the_numbers_and_what_to_do(
    job: JobFacts, grid: GridFacts, wanted: list[str]
) -> None:
    sentences = why_job(job, grid)
    whole = " ".join(sentences)
    for words in wanted:
        assert words in whole
    assert all(re.search(r"[.:]$", sentence) for sentence in sentences)


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_gives_a_sentence(state: JobState) -> None:
    assert why_job(replace(JOB, state=state, reason="x"), GRID)[0].startswith("clean")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"revoked": True}, "revoked"),
        ({"role": "viewer"}, "does not process records"),
        ({"online": False, "last_seen_ago_s": 7500.0}, "2 h 5 min ago"),
        ({"units": 3}, "3 units"),
        ({"units": 1}, "1 unit."),
        ({"claimable_jobs": 0}, "no job has records pending"),
        ({"drained": True, "units": 1}, "1 still runs"),
        ({"drained": True, "online": False}, "officegrid drain pc-1 --off"),
        ({}, "should ask for a unit soon"),
    ],
)
def test_why_a_machine(changes: dict[str, object], words: str) -> None:
    facts: dict[str, object] = {
        "revoked": False, "online": True, "last_seen_ago_s": 5.0, "state": "working", "units": 0,
        "claimable_jobs": 1, "role": "worker",
    }  # fmt: skip
    facts |= changes
    sentences = why_machine("pc-1", str(facts.pop("role")), **facts)  # type: ignore[arg-type]
    assert sentences[0].startswith("pc-1")
    assert words in " ".join(sentences)
