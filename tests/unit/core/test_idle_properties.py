"""What the idle policy promises for every sequence of samples, however odd."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from officegrid.core.desk import (
    FOREVER_S,
    Decision,
    DeskPolicy,
    Hours,
    Rule,
    Sample,
    Session,
    Verdict,
)
from officegrid.core.deskrules import hours_allow, stricter
from officegrid.core.idle import IdleMemory, decide

WALL_S = 1_790_000_000.0
Trace = list[tuple[Sample, Verdict]]

# --- what may happen at a desk

maybe = st.none() | st.booleans()
odd = st.sampled_from([None, float("nan"), float("inf"), -1.0])
idle_s = st.sampled_from([0.0, 1.0, 59.0, 299.9, 300.0, 4000.0]) | st.floats(0, 900) | odd
good_session = st.builds(
    Session,
    id=st.sampled_from(["1", "2"]),
    age_s=st.floats(0, 4),
    idle_s=st.sampled_from([0.0, 400.0, 4000.0]),
    locked=st.booleans(),
    presenting=st.just(False),
)
any_session = st.builds(
    Session,
    id=st.sampled_from(["1", "2", "3"]),
    age_s=st.sampled_from([0.0, 5.0, 15.0, 15.1, float("nan")]),
    idle_s=idle_s,
    locked=maybe,
    remote=st.booleans(),
    presenting=maybe,
)
hours = st.builds(
    Hours,
    days=st.frozensets(st.integers(0, 6)),
    start_minute=st.integers(0, 1439),
    end_minute=st.integers(0, 1440),
)
policies = st.builds(
    DeskPolicy,
    idle_s=st.sampled_from([0.0, 5.0, 300.0, 600.0]),
    lock_counts=st.booleans(),
    cpu_busy_share=st.sampled_from([0.1, 0.25, 0.5]),
    cpu_busy_s=st.sampled_from([0.0, 10.0]),
    cpu_idle_share=st.sampled_from([0.05, 0.15, 0.5]),
    cpu_idle_s=st.sampled_from([0.0, 5.0, 30.0]),
    on_battery=st.booleans(),
    remote_session=st.booleans(),
    memory_free_mb=st.sampled_from([0, 1024, 4096]),
    quiet_hours=st.lists(hours, max_size=2).map(tuple),
    run_hours=st.lists(hours, max_size=2).map(tuple),
    sensor_timeout_s=st.sampled_from([5.0, 15.0]),
    settle_s=st.sampled_from([0.0, 10.0, 40.0]),
    never=st.sampled_from([False, False, False, True]),
)
any_sample = st.builds(
    Sample,
    at_s=st.just(0.0),
    wall_s=st.just(WALL_S),
    weekday=st.integers(0, 6),
    minute=st.integers(0, 1439),
    sessions=st.none() | st.lists(any_session, max_size=3).map(tuple),
    foreign_cpu=st.sampled_from([0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 1.7]) | odd,
    on_battery=maybe,
    memory_free_mb=st.none() | st.sampled_from([-1, 0, 500, 1024, 9000]),
    pause_until_s=st.sampled_from(
        [None, None, None, WALL_S - 1, WALL_S + 50, WALL_S + 1e5, FOREVER_S, float("nan")]
    ),
    drain=st.sampled_from([False, False, False, True]),
)
good_sample = st.builds(
    Sample,
    at_s=st.just(0.0),
    wall_s=st.just(WALL_S),
    weekday=st.just(2),
    minute=st.just(600),
    sessions=st.just(()) | st.lists(good_session, min_size=1, max_size=2).map(tuple),
    foreign_cpu=st.just(0.02),
    on_battery=st.just(False),
    memory_free_mb=st.just(9000),
)
step_s = st.sampled_from([0.0, 0.1, 1.0, 5.0, 15.0, 40.0, 60.0, 61.0, 30_000.0, -100.0])
leap_s = st.sampled_from([0.0, 0.0, 0.0, 59.0, 3600.0, -3600.0])
# Each sample is seen several times in a row: things last at a desk, and waiting times pass.
stretch = st.tuples(good_sample | any_sample, st.integers(1, 12), step_s, leap_s)
stories = st.lists(stretch, min_size=1, max_size=12)


def play(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]], vm_mb: int = 0
) -> Trace:
    memory, at_s, wall_s, out = IdleMemory(), 1000.0, WALL_S, []
    for what, times, step, leap in story:
        wall_s += leap
        for _ in range(times):
            at_s, wall_s = at_s + step, wall_s + step
            seen = replace(what, at_s=at_s, wall_s=wall_s)
            memory, verdict = decide(policy, memory, seen, vm_memory_mb=vm_mb)
            out.append((seen, verdict))
    return out


def ran(trace: Trace) -> list[Sample]:
    return [what for what, verdict in trace if verdict.decision is Decision.RUN]


# --- promises


@given(policies, stories)
def test_it_never_runs_on_a_sample_that_shows_somebody(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    for what in ran(play(policy, story)):
        assert what.sessions is not None
        for session in what.sessions:
            if session.locked is True and policy.lock_counts:
                continue
            assert session.idle_s is not None
            assert session.idle_s >= policy.idle_s
            if session.locked is not True:
                assert session.presenting is False
                assert policy.remote_session or not session.remote


hands_s = st.floats(0, 2.9)
at_the_desk = st.tuples(hands_s, maybe, st.integers(1, 40), st.sampled_from([0.1, 1.0, 2.0, 20.0]))


@given(
    st.lists(st.tuples(idle_s, maybe, st.integers(1, 40), st.sampled_from([0.1, 1.0])), max_size=4),
    st.lists(at_the_desk, min_size=1, max_size=8),
    st.booleans(),
)
@example([], [(0.0, True, 40, 1.0)] * 8, False)
@example([(60.0, True, 40, 1.0)], [(0.5, True, 40, 1.0)] * 8, False)
def test_whatever_the_lock_says_a_hand_at_the_desk_is_somebody(
    before: list[tuple[float | None, bool | None, int, float]],
    there: list[tuple[float, bool | None, int, float]],
    running: bool,
) -> None:
    """Only in the first seconds after locking is input no hand: it was the lock's own key."""
    base = Sample(0.0, WALL_S, 2, 600, (), 0.0, False, 9000)
    memory, at_s, locked_since_s = IdleMemory(running=running), 1000.0, None
    for now_s, locked, times, step in [*before, *there]:
        for _ in range(times):
            at_s += step
            since_s = at_s if locked_since_s is None else locked_since_s
            locked_since_s = since_s if locked is True else None
            who = (Session("1", 0.0, now_s, locked, presenting=False),)
            what = replace(base, at_s=at_s, wall_s=WALL_S + at_s, sessions=who)
            memory, verdict = decide(DeskPolicy(cpu_idle_s=0.0), memory, what)
            hand = now_s is not None and 0 <= now_s < 3
            if hand and verdict.decision is Decision.RUN:
                assert locked_since_s is not None
                assert at_s - locked_since_s <= 8  # five seconds, and what a hand may be old


@given(policies, stories)
def test_it_never_runs_on_what_is_not_known(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    for what in ran(play(policy, story)):
        assert what.foreign_cpu is not None
        assert math.isfinite(what.foreign_cpu)
        assert None not in (what.on_battery, what.memory_free_mb, what.sessions)
        for session in what.sessions or ():
            assert session.age_s <= policy.sensor_timeout_s
            if session.locked is not True:
                assert session.idle_s is not None
                assert math.isfinite(session.idle_s)
                assert session.presenting is not None


@given(policies, stories)
def test_it_never_runs_against_a_rule_of_the_moment(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    for what in ran(play(policy, story, vm_mb=512)):
        assert not policy.never
        assert not what.drain
        assert what.pause_until_s is None or what.wall_s >= what.pause_until_s
        assert policy.on_battery or not what.on_battery
        assert hours_allow(policy, what.weekday, what.minute)
        assert (what.memory_free_mb or 0) >= 512 + policy.memory_free_mb / 2 - 1


@given(policies, stories)
def test_it_never_runs_on_the_first_sample_after_a_gap(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    trace = play(policy, story)
    for (before, _), (what, verdict) in pairwise(trace):
        step = what.at_s - before.at_s
        if step > 60 or step < 0 or what.wall_s - before.wall_s - step > 60.5:
            assert verdict.decision is Decision.YIELD


@given(policies, stories)
def test_every_verdict_explains_itself(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    for _, verdict in play(policy, story):
        for text in (verdict.sentence, verdict.change):
            assert text.endswith(".")
            assert len(text) <= 1024
            words = set(text.replace(".", " ").replace(",", " ").lower().split())
            assert not words & {"none", "nan", "inf", "true", "false"}
        json.dumps(dict(verdict.numbers), allow_nan=False)
        runs = verdict.rule in (Rule.AWAY, Rule.LOCKED, Rule.NOBODY)
        assert runs == (verdict.decision is Decision.RUN)
        assert not (runs and verdict.discard)


@given(policies, stories)
def test_two_starts_without_input_are_apart(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    started_s, input_since, running = None, True, False
    for what, verdict in play(policy, story):
        run = verdict.decision is Decision.RUN
        if run and not running:
            if not input_since:
                assert started_s is not None
                # A clock that went back measures nothing.
                assert what.at_s < started_s or what.at_s - started_s >= policy.settle_s
            started_s, input_since = what.at_s, False
        running = run
        idle = [session.idle_s for session in what.sessions or ()]
        input_since |= any(each is not None and each < policy.idle_s for each in idle)


flickers = st.lists(
    st.sampled_from(
        [
            {},
            {"sessions": None},
            {"sessions": (Session("2", 0.0, 4000.0, True, presenting=False),)},
            {"sessions": (Session("2", 0.0, 4000.0, None, presenting=False),)},
            {"sessions": (Session("2", 0.0, 4000.0, False, presenting=True),)},
            {"sessions": ()},
            {"on_battery": True},
            {"foreign_cpu": None},
            {"foreign_cpu": 0.9},
            {"memory_free_mb": 700},
            {"memory_free_mb": 300},
            {"drain": True},
        ]
    ),
    min_size=1,
    max_size=6,
)


@given(flickers, st.integers(1, 5))
def test_sensors_that_flicker_do_not_make_the_vm_flap(
    changes: list[dict[str, object]], samples_each: int
) -> None:
    """Nobody touches this PC, but its sensors jump about for ten minutes."""
    policy = DeskPolicy(idle_s=5.0, cpu_idle_s=0.0, cpu_busy_s=0.0, settle_s=20.0)
    who = (Session("2", 0.0, 4000.0, False, presenting=False),)
    base = Sample(0.0, WALL_S, 2, 600, who, 0.02, False, 9000)
    memory, starts, running = IdleMemory(), [], False
    for second in range(600):
        change = changes[second // samples_each % len(changes)]
        what = replace(base, at_s=float(second), wall_s=WALL_S + second)
        memory, verdict = decide(policy, memory, replace(what, **change))  # type: ignore[arg-type]
        run = verdict.decision is Decision.RUN
        starts += [second] if run and not running else []
        running = run
    assert all(after - before >= policy.settle_s for before, after in pairwise(starts))


@given(
    st.lists(st.sampled_from([0.1, 0.149, 0.15, 0.151, 0.249, 0.25, 0.251, 0.9]), min_size=200)
    | st.lists(st.floats(0, 1), min_size=200)
)
@settings(max_examples=30)
def test_noisy_cpu_turns_the_vm_on_and_off_slowly(shares: list[float]) -> None:
    policy = DeskPolicy(cpu_busy_s=10.0, cpu_idle_s=30.0)
    memory, turns, last = IdleMemory(), 0, Decision.YIELD
    base = Sample(0.0, WALL_S, 2, 600, (), 0.0, False, 9000)
    for second, share in enumerate(shares * 3):
        what = replace(base, at_s=float(second), wall_s=WALL_S + second, foreign_cpu=share)
        memory, verdict = decide(policy, memory, what)
        turns += verdict.decision is not last
        last = verdict.decision
    assert turns <= 1 + 2 * len(shares) * 3 / (policy.cpu_busy_s + policy.cpu_idle_s)


@given(policies, policies, any_sample | good_sample, st.booleans())
def test_a_stricter_policy_runs_only_where_the_milder_ones_do(
    left: DeskPolicy, right: DeskPolicy, what: Sample, running: bool
) -> None:
    both = stricter(left, right)
    what = replace(what, at_s=5000.0, wall_s=WALL_S + 5000)
    memory = IdleMemory(running=running, at_s=4999.0, wall_s=WALL_S + 4999, cpu_quiet_since_s=0.0)
    if decide(both, memory, what)[1].decision is Decision.RUN:
        for policy in (left, right):
            assert decide(policy, memory, what)[1].decision is Decision.RUN


@given(policies, stories)
def test_it_is_a_function_of_its_arguments(
    policy: DeskPolicy, story: list[tuple[Sample, int, float, float]]
) -> None:
    assert repr(play(policy, story)) == repr(play(policy, story))


@given(st.lists(good_sample, min_size=1, max_size=20))
def test_it_does_run_when_nobody_is_there(samples: list[Sample]) -> None:
    """The other promises would hold for a policy that never runs."""
    story = [(what, 1, 1.0, 0.0) for what in samples]
    story.append((replace(samples[-1], sessions=()), 60, 1.0, 0.0))
    assert play(DeskPolicy(), story)[-1][1].decision is Decision.RUN


def test_the_memory_is_bounded_by_the_sessions_of_the_moment() -> None:
    base = Sample(0.0, WALL_S, 2, 600, (), 0.0, False, 9000)
    memory = IdleMemory()
    for number in range(500):
        who = (Session(str(number), 0.0, 5.0, False, presenting=False),)
        memory, _ = decide(DeskPolicy(), memory, replace(base, at_s=float(number), sessions=who))
    assert len(memory.seats or ()) == 1
    assert not any(isinstance(getattr(memory, f.name), list | dict) for f in fields(IdleMemory))
