"""The repair ladder: every rung once, in order, then a growing rest; incurable trouble rests."""

from __future__ import annotations

import itertools

import pytest

from officegrid.core.repair import (
    INCURABLE,
    REST_FIRST_S,
    REST_MOST_S,
    RUNGS,
    URGENT_REST_MOST_S,
    URGENT_RUNGS,
    Ladder,
    climbed,
    explain,
    failed,
    healed,
)
from officegrid.core.vm import RepairStep, Trouble

ALL = frozenset(RepairStep)


def climb(ladder: Ladder, at_s: float, available: frozenset[RepairStep] = ALL) -> Ladder:
    return failed(ladder, Trouble.FAILED, "It failed.", at_s, available)


def rungs_until_rest(ladder: Ladder, available: frozenset[RepairStep]) -> tuple[list[str], Ladder]:
    steps, at_s = [], 0.0
    for at_s in itertools.count():
        ladder = climb(ladder, float(at_s), available)
        if ladder.step is None:
            return steps, ladder
        steps.append(ladder.step)
        ladder = climbed(ladder)
    raise AssertionError


@pytest.mark.parametrize("available", [
    ALL, frozenset({RepairStep.RETRY}), frozenset(),
    frozenset({RepairStep.RETRY, RepairStep.DISCARD, RepairStep.REIMPORT}),
])  # fmt: skip
def test_every_rung_the_driver_has_is_climbed_once_in_order(
    available: frozenset[RepairStep],
) -> None:
    steps, ladder = rungs_until_rest(Ladder(), available)
    assert steps == [rung for rung in RUNGS if rung in available]
    assert ladder.rests == 1


def test_the_urgent_ladder_only_frees_memory() -> None:
    steps, _ = rungs_until_rest(Ladder(urgent=True), ALL)
    assert steps == list(URGENT_RUNGS)
    assert RepairStep.REIMPORT not in steps


def test_the_whole_ladder_is_climbed_within_a_minute() -> None:
    ladder, at_s = Ladder(), 0.0
    while True:
        ladder = climb(ladder, at_s)
        if ladder.step is None:
            break
        assert not ladder.is_due(ladder.due_s - 0.01)
        assert ladder.is_due(ladder.due_s)
        at_s = ladder.due_s
        ladder = climbed(ladder)
    assert at_s < 60


def test_rests_grow_to_an_hour_and_no_further() -> None:
    ladder, rests, at_s = Ladder(), [], 0.0
    for _ in range(8):
        _, ladder = rungs_until_rest(ladder, ALL)
        rests.append(ladder.rest_until_s)
        assert ladder.is_resting(ladder.rest_until_s - 1)
        assert not ladder.is_resting(ladder.rest_until_s)
        at_s = ladder.rest_until_s
    assert at_s > 0
    gaps = [rest - 5 for rest in rests]  # the fifth failure, at second 5, begins the rest
    assert gaps[:4] == [REST_FIRST_S, 2 * REST_FIRST_S, 4 * REST_FIRST_S, 8 * REST_FIRST_S]
    assert max(gaps) == REST_MOST_S


def test_urgent_rests_stay_short() -> None:
    ladder = Ladder(urgent=True)
    for _ in range(20):
        _, ladder = rungs_until_rest(ladder, ALL)
    assert ladder.rest_until_s <= len(URGENT_RUNGS) + URGENT_REST_MOST_S


@pytest.mark.parametrize("trouble", sorted(INCURABLE))
def test_what_no_rung_cures_rests_at_once_and_says_when_it_looks_again(trouble: Trouble) -> None:
    ladder = failed(Ladder(), trouble, "The image is missing.", 100.0, ALL)
    assert ladder.step is None
    assert ladder.is_resting(100.0 + REST_FIRST_S - 1)
    assert explain(ladder, 100.0) == "The image is missing. The next look is in 5 min."
    assert explain(ladder, 100.0 + REST_FIRST_S) == ""


def test_what_goes_by_by_itself_is_no_reason_to_climb() -> None:
    assert Trouble.CANCELLED not in INCURABLE
    assert Trouble.LOCKED not in INCURABLE


def test_a_healed_ladder_begins_at_the_first_rung() -> None:
    _, ladder = rungs_until_rest(Ladder(), ALL)
    ladder = climb(climbed(climb(ladder, 0.0)), 1.0)
    assert ladder.step is RepairStep.EMERGENCY_STOP
    assert climb(healed(ladder), 2.0).step is RepairStep.RETRY
    assert healed(Ladder(urgent=True, rests=3)) == Ladder(urgent=True)


def test_the_next_step_is_explained() -> None:
    ladder = climb(Ladder(), 0.0)
    assert explain(ladder, 0.0) == "It failed. Next repair step: retry."
