"""Hyper-V's states, by name and by number."""

from __future__ import annotations

import pytest

from officegrid.agent.drivers.hyperv.states import NUMBERS, name_of, sentence_of, state_of
from officegrid.core.vm import VmState


@pytest.mark.parametrize(
    ("number", "name", "state"),
    [
        (2, "Running", VmState.RUNNING),
        (3, "Off", VmState.OFF),
        (4, "Stopping", VmState.STOPPING),
        (6, "Saved", VmState.SAVED),
        (9, "Paused", VmState.PAUSED),
        (10, "Starting", VmState.STARTING),
        (32773, "Saving", VmState.SAVING),
        (32776, "Pausing", VmState.RUNNING),
        (32777, "Resuming", VmState.STARTING),
        (32779, "FastSaved", VmState.SAVED),
        (32780, "FastSaving", VmState.SAVING),
    ],
)
def test_names_and_numbers_mean_the_same(number: int, name: str, state: VmState) -> None:
    assert name_of(number) == name_of(str(number)) == name_of(name) == name
    assert state_of(name) is state


def test_all_critical_states_are_broken_with_a_sentence() -> None:
    critical = range(32783, 32795)
    assert {NUMBERS[number][-8:] for number in critical} == {"Critical"}
    for number in critical:
        assert state_of(name_of(number)) is VmState.BROKEN
        assert sentence_of(name_of(number)).endswith(".")


@pytest.mark.parametrize("value", [0, 1, 99999, "", "Dreaming", None])
def test_what_is_not_known_is_never_taken_for_off(value: object) -> None:
    assert state_of(name_of(value)) is VmState.UNKNOWN
