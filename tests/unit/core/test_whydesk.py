"""A desktop in words: one state each, and sentences with the rule, the numbers, the way out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.desk import Rule
from officegrid.core.vm import VmState
from officegrid.core.whydesk import DeskFacts, DeskState, desk_state, starts_in_s, why_desk

WORKING = DeskFacts(
    name="pc-7", heard_ago_s=4.0, silent=False, decision="run", rule="away",
    sentence="Nobody has used this PC for 12 min.",
    change="Yields at once when somebody uses this PC.", vm="running", health="good",
    health_sentence="QEMU 7.2 works.", worker="pc-7/vm", worker_online=True, units=2,
    claimable_jobs=1,
)  # fmt: skip
YIELDS = replace(
    WORKING, decision="yield", vm="off", rule="input", units=0,
    sentence="Somebody used this PC 3 s ago.", change="Starts in 4 min 57 s.",
)  # fmt: skip


def waiting(rule: str, **numbers: float | str) -> DeskFacts:
    return replace(YIELDS, rule=rule, numbers=numbers)


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        (WORKING, "working", "working"),
        (replace(WORKING, vm="starting"), "starting", "starting"),
        (replace(WORKING, vm="saved"), "starting", "starting"),
        (YIELDS, "user here", "user here"),
        (replace(YIELDS, vm="saved"), "user here", "user here"),
        (replace(YIELDS, vm="paused"), "paused", "paused: user here"),
        (waiting("presenting"), "user here", "user here, presenting"),
        (waiting(Rule.NOT_YET, needed_s=300, idle_s=176), "idle", "idle, starts in 2 min"),
        (waiting("settling", needed_s=10, well_s=1), "idle", "idle, starts in 5 s"),
        (waiting("cpu_busy", needed_s=30, quiet_for_s=4), "idle", "idle, starts in 22 s"),
        (waiting("cpu_busy", foreign_cpu=0.9), "waits", "waits: other programs are busy"),
        (
            waiting("not_idle_long_enough", needed_s=300, idle_s=1, also="on_battery"),
            "idle", "idle, but something else is in the way",
        ),
        (replace(waiting("on_battery"), vm="saved", rule="battery"), "saved", "saved: on battery"),
        (waiting("hours"), "waits", "waits: outside its hours"),
        (waiting("a rule of the future"), "waits", "waits"),
        (replace(WORKING, drain=True), "drained", "drained"),
        (replace(WORKING, trouble="The disk is full."), "trouble", "trouble"),
        (replace(YIELDS, health="unusable"), "trouble", "trouble"),
        (replace(WORKING, vm="broken"), "trouble", "trouble"),
        (
            replace(WORKING, silent=True, heard_ago_s=700.0, worker_online=False),
            "silent", "silent for 11 min 40 s",
        ),
        (replace(WORKING, silent=True), "working", "working, its agent is silent"),
        (replace(WORKING, heard_ago_s=None, worker_online=False), "silent", "silent"),
    ],
)  # fmt: skip
def test_states_for_a_list(facts: DeskFacts, state: str, words: str) -> None:
    assert desk_state(facts) == (state, words)


_numbers = st.dictionaries(
    st.sampled_from(["needed_s", "idle_s", "well_s", "quiet_for_s", "also"]),
    st.none() | st.booleans() | st.text(max_size=3) | st.integers(-5, 900) | st.floats(-5, 900),
)
_facts = st.builds(
    DeskFacts,
    name=st.just("pc-7"),
    heard_ago_s=st.none() | st.floats(0, 1e6),
    silent=st.booleans(),
    drain=st.booleans(),
    decision=st.sampled_from(["run", "yield", ""]),
    rule=st.sampled_from([*Rule, "", "new"]),
    sentence=st.sampled_from(["", "Something is so"]),
    change=st.sampled_from(["", "It may change."]),
    numbers=_numbers,
    vm=st.sampled_from([*VmState, "new"]),
    health=st.sampled_from(["", "good", "degraded", "unusable"]),
    health_sentence=st.sampled_from(["", "No VM works here"]),
    trouble=st.sampled_from(["", "The disk is full"]),
    worker=st.sampled_from(["", "pc-7/vm"]),
    worker_online=st.booleans(),
    units=st.integers(0, 3),
    claimable_jobs=st.integers(0, 2),
    below_floor=st.booleans(),
)


@given(_facts)
def test_whatever_is_known_there_is_a_state_and_whole_sentences(facts: DeskFacts) -> None:
    state, words = desk_state(facts)
    assert state in get_args(DeskState)
    assert words
    assert all(re.search(r"[.!?]$", sentence) for sentence in why_desk(facts))
    left_s = starts_in_s(facts)
    assert left_s is None or left_s >= 0


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (YIELDS, ["pc-7: Somebody used this PC 3 s ago.", "Starts in 4 min 57 s."]),
        (WORKING, ["Nobody has used this PC", "Yields at once", "working on 2 units"]),
        (replace(WORKING, units=0, claimable_jobs=0), ["no job has records pending"]),
        (replace(WORKING, units=0), ["should ask for a unit"]),
        (replace(WORKING, worker=""), ["has not joined yet"]),
        (
            replace(WORKING, worker_online=False, worker_heard_ago_s=400.0),
            ["has not been heard of for 6 min 40 s", "the VM is running"],
        ),
        (
            replace(YIELDS, silent=True, heard_ago_s=7500.0, worker_online=False),
            ["not been heard of for 2 h 5 min", "Its last word was: Somebody used"],
        ),
        (
            replace(WORKING, silent=True, heard_ago_s=500.0),
            ["agent of pc-7", "its worker still is"],
        ),
        (replace(YIELDS, heard_ago_s=None), ["has not reported yet", "officegrid agent"]),
        (replace(YIELDS, drain=True), ["officegrid drain pc-7 --off"]),
        (replace(YIELDS, trouble="The disk is full"), ["in trouble: The disk is full."]),
        (
            replace(YIELDS, health="unusable", health_sentence="VirtualBox is missing"),
            ["can run no VM: VirtualBox is missing."],
        ),
        (
            replace(YIELDS, health="degraded", health_sentence="Hyper-V slows it down."),
            ["works, but not as it should: Hyper-V slows it down."],
        ),
    ],
)
def test_why_says_the_reason_and_what_would_change_it(facts: DeskFacts, wanted: list[str]) -> None:
    whole = " ".join(why_desk(facts))
    for words in wanted:
        assert words in whole


def test_a_silent_desktop_promises_nothing() -> None:
    facts = replace(YIELDS, silent=True, heard_ago_s=7500.0, worker_online=False)
    assert "Starts in" not in " ".join(why_desk(facts))


def test_a_desktop_below_the_floor_is_not_said_to_get_a_unit_soon() -> None:
    idle = replace(WORKING, units=0)
    assert why_desk(idle) == [*why_desk(replace(idle, below_floor=True)), why_desk(idle)[-1]]
    assert "should ask for a unit" in why_desk(idle)[-1]
