"""The table of the VM's life: what is done in each state, and what each outcome changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from officegrid.core.vm import (
    HOLDS_MEMORY,
    Capabilities,
    RepairStep,
    Trouble,
    VmState,
    VmStatus,
)
from officegrid.core.vmcycle import TABLE, Row, next_action, validate
from officegrid.core.vmlife import Action, Facts, Limits, Memory, Verb, Want, done, explain, slept

FULL = Capabilities(saves=True, imports=True, repairs=frozenset(RepairStep))
NO_SAVE = Capabilities(saves=False, imports=False, repairs=frozenset({RepairStep.RETRY}))
S, W, V = VmState, Want, Verb


def facts(
    state: VmState, want: Want = W.RUN, at_s: float = 0.0, can: Capabilities = FULL, **more: Any
) -> Facts:
    limits = more.pop("limits", Limits())
    return Facts(at_s, VmStatus(state), want, can, limits, **more)


def verb(memory: Memory, seen: Facts) -> Verb:
    return next_action(memory, seen)[1].verb


def carried_out(
    memory: Memory, seen: Facts, trouble: Trouble | None = None
) -> tuple[Memory, Action]:
    """Decide, and let the verb succeed or fail at the same moment."""
    memory, action = next_action(memory, seen)
    if action.verb is V.WAIT:
        return memory, action
    error = None if trouble is None else (trouble, f"It failed: {trouble}.")
    return done(memory, action, seen, error), action


def test_the_table_is_sound() -> None:
    assert validate() == []


@pytest.mark.parametrize(("state", "want"), sorted(TABLE))
def test_validate_misses_no_row(state: VmState, want: Want) -> None:
    holed = {key: rows for key, rows in TABLE.items() if key != (state, want)}
    assert validate(holed)


def test_validate_finds_what_must_never_be() -> None:
    last = TABLE[S.OFF, W.YIELD][-1]
    starts = {**TABLE, (S.OFF, W.YIELD): (Row(last.guard, V.START, "wrong"),)}
    assert any("starts something" in wrong for wrong in validate(starts))
    keeps = {**TABLE, (S.PAUSED, W.YIELD): (last,)}
    assert any("no way to free the memory" in wrong for wrong in validate(keeps))
    open_end = {**TABLE, (S.RUNNING, W.YIELD): TABLE[S.RUNNING, W.YIELD][:-1]}
    assert any("no row that applies" in wrong for wrong in validate(open_end))
    patient = {**TABLE, (S.RUNNING, W.YIELD): TABLE[S.RUNNING, W.YIELD][2:]}
    assert any("mild ways for ever" in wrong for wrong in validate(patient))
    impossible = {**TABLE, (S.RUNNING, W.RUN): (Row(last.guard, V.RESUME, "wrong"),)}
    assert any("does not allow" in wrong for wrong in validate(impossible))


@pytest.mark.parametrize(("state", "want", "can", "expected"), [
    (S.ABSENT, W.RUN, FULL, V.IMPORT_IMAGE),
    (S.ABSENT, W.RUN, NO_SAVE, V.WAIT),
    (S.OFF, W.RUN, FULL, V.START),
    (S.SAVED, W.RUN, FULL, V.START),
    (S.STARTING, W.RUN, FULL, V.WAIT),
    (S.RUNNING, W.RUN, FULL, V.WAIT),
    (S.PAUSED, W.RUN, FULL, V.RESUME),
    (S.SAVING, W.RUN, FULL, V.WAIT),
    (S.STOPPING, W.RUN, FULL, V.WAIT),
    (S.UNKNOWN, W.RUN, FULL, V.WAIT),
    (S.ABSENT, W.YIELD, FULL, V.WAIT),
    (S.OFF, W.YIELD, FULL, V.WAIT),
    (S.SAVED, W.YIELD, FULL, V.WAIT),
    (S.STARTING, W.YIELD, FULL, V.WAIT),
    (S.RUNNING, W.YIELD, FULL, V.PAUSE),
    (S.RUNNING, W.YIELD, replace(FULL, pauses=False), V.SAVE),
    (S.RUNNING, W.YIELD, replace(NO_SAVE, pauses=False), V.STOP),
    (S.PAUSED, W.YIELD, FULL, V.SAVE),
    (S.PAUSED, W.YIELD, NO_SAVE, V.STOP),
    (S.SAVING, W.YIELD, FULL, V.WAIT),
    (S.STOPPING, W.YIELD, FULL, V.WAIT),
    (S.BROKEN, W.YIELD, FULL, V.STOP),
    (S.UNKNOWN, W.YIELD, FULL, V.WAIT),
    (S.SAVED, W.RELEASE, FULL, V.DISCARD),
    (S.RUNNING, W.RELEASE, FULL, V.PAUSE),
    (S.PAUSED, W.RELEASE, FULL, V.STOP),
    (S.STARTING, W.RELEASE, FULL, V.STOP),
    (S.OFF, W.RELEASE, FULL, V.WAIT),
])  # fmt: skip
def test_with_nothing_remembered(
    state: VmState, want: Want, can: Capabilities, expected: Verb
) -> None:
    assert verb(Memory(), facts(state, want, can=can)) is expected


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("want", list(W))
def test_every_decision_has_a_reason(state: VmState, want: Want) -> None:
    _, action = next_action(Memory(), facts(state, want))
    assert action.reason
    assert action.want is want


# --- yielding


def test_a_short_absence_resumes_from_memory_and_a_save_is_not_called_off() -> None:
    limits = Limits(save_delay_s=60.0)
    memory, action = carried_out(Memory(), facts(S.RUNNING, W.YIELD, limits=limits))
    assert action.verb is V.PAUSE
    memory, action = next_action(memory, facts(S.PAUSED, W.YIELD, 1.0, limits=limits))
    assert action.verb is V.WAIT
    assert verb(memory, facts(S.PAUSED, W.YIELD, 30.0, limits=limits, memory_short=True)) is V.SAVE
    assert verb(memory, facts(S.PAUSED, W.RUN, 30.0, limits=limits)) is V.RESUME
    assert verb(memory, facts(S.PAUSED, W.YIELD, 61.0, limits=limits)) is V.SAVE
    assert verb(memory, facts(S.SAVING, W.RUN, 62.0, limits=limits)) is V.WAIT


def test_saving_too_often_powers_off_and_says_why() -> None:
    limits = Limits(saves_per_hour=2)
    memory = Memory(saves_at_s=(10.0, 20.0))
    _, action = next_action(memory, facts(S.PAUSED, W.YIELD, 100.0, limits=limits))
    assert action.verb is V.STOP
    assert "too often" in action.reason
    assert verb(memory, facts(S.PAUSED, W.YIELD, 3611.0, limits=limits)) is V.SAVE
    assert verb(Memory(), facts(S.PAUSED, W.YIELD, limits=Limits(saves_per_hour=0))) is V.STOP


@pytest.mark.parametrize("trouble", [None, Trouble.FAILED, Trouble.DISK_FULL])
def test_each_save_counts_whether_or_not_it_worked(trouble: Trouble | None) -> None:
    memory, action = carried_out(Memory(), facts(S.PAUSED, W.YIELD, 5.0), trouble)
    assert action.verb is V.SAVE
    assert memory.saves_at_s == (5.0,)


def test_a_full_disk_during_a_save_frees_the_memory_at_once_and_then_rests() -> None:
    memory, _ = carried_out(Memory(), facts(S.PAUSED, W.YIELD, 0.0), Trouble.DISK_FULL)
    memory, action = carried_out(memory, facts(S.PAUSED, W.YIELD, 1.0))
    assert action.verb is V.STOP
    assert verb(memory, facts(S.OFF, W.YIELD, 2.0)) is V.WAIT
    memory, action = next_action(memory, facts(S.OFF, W.RUN, 3.0))
    assert action.verb is V.WAIT
    assert "disk_full" in explain(memory, 3.0)
    assert verb(memory, facts(S.OFF, W.RUN, 301.0)) is V.START


def test_when_pause_fails_it_is_saved_and_when_that_fails_stopped_and_then_ended() -> None:
    memory, verbs = Memory(), []
    for at_s in range(5):
        memory, action = carried_out(memory, facts(S.RUNNING, W.YIELD, float(at_s)), Trouble.FAILED)
        verbs.append(action.step or action.verb)
    assert verbs == [
        V.PAUSE, V.SAVE, V.STOP, RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE,
    ]  # fmt: skip
    memory, action = next_action(memory, facts(S.RUNNING, W.YIELD, 5.0))
    assert action.verb is V.WAIT
    assert verb(memory, facts(S.RUNNING, W.YIELD, 20.0)) is V.STOP  # and so on, without end


@pytest.mark.parametrize("want", [W.YIELD, W.RELEASE])
@pytest.mark.parametrize("held", [S.RUNNING, S.PAUSED])
def test_a_stop_that_only_said_it_worked_climbs_the_urgent_ladder(
    want: Want, held: VmState
) -> None:
    memory, _ = next_action(Memory(), facts(held, want, 0.0))
    stop = Action(V.STOP, "", want)
    memory = done(memory, stop, facts(held, want, 1.0), None)
    memory, action = next_action(memory, facts(S.OFF, want, 1.0, observed=False))
    assert action.verb is V.WAIT  # believed, until somebody looks
    refused = {V.PAUSE: 1e9, V.SAVE: 1e9}
    memory, action = next_action(replace(memory, refused=refused), facts(held, want, 1.5))
    assert action.step is RepairStep.EMERGENCY_STOP
    assert any("had worked, but the VM is" in note for note in memory.notes)
    memory = done(memory, action, facts(held, want, 2.0), None)
    memory, action = next_action(memory, facts(held, want, 2.5))
    assert action.step is RepairStep.RESTART_SERVICE


def test_a_vm_that_keeps_running_while_somebody_is_there_is_ended_whatever_is_tried() -> None:
    memory, verbs = Memory(), []
    for at_s in range(40):
        # Each pause works and is undone from outside before the next look.
        memory, action = next_action(memory, facts(S.RUNNING, W.YIELD, float(at_s)))
        if action.verb is V.PAUSE:
            memory = replace(memory, claimed=None)
        elif action.verb is not V.WAIT:
            memory = done(memory, action, facts(S.RUNNING, W.YIELD, at_s + 0.5), None)
        verbs.append(action.step or action.verb)
    assert verbs[:10] == [V.PAUSE] * 10
    assert verbs[10:13] == [V.STOP, RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE]


def test_a_stop_that_lies_while_nobody_is_there_climbs_too() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    silent = {"reported_in": False, "limits": Limits(boot_deadline_s=100.0)}
    steps = []
    for at_s in range(100, 200):
        memory, action = carried_out(memory, facts(S.RUNNING, at_s=float(at_s), **silent))
        if action.verb is V.REPAIR:
            steps.append(action.step)
    assert steps[:3] == [
        RepairStep.RETRY, RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE,
    ]  # fmt: skip


def test_a_new_visit_tries_everything_again() -> None:
    memory, _ = carried_out(Memory(), facts(S.RUNNING, W.YIELD, 0.0), Trouble.FAILED)
    memory, _ = next_action(memory, facts(S.RUNNING, W.RUN, 1.0))
    assert verb(memory, facts(S.RUNNING, W.YIELD, 2.0)) is V.PAUSE


def test_a_lock_in_the_way_of_a_pause_is_waited_out_briefly() -> None:
    memory, _ = carried_out(Memory(), facts(S.RUNNING, W.YIELD, 0.0), Trouble.LOCKED)
    assert verb(memory, facts(S.RUNNING, W.YIELD, 0.1)) is V.WAIT
    assert verb(memory, facts(S.RUNNING, W.YIELD, 0.21)) is V.PAUSE


def test_while_yielding_a_stuck_vm_is_ended_but_never_made_anew() -> None:
    memory, steps = Memory(), []
    for at_s in range(0, 4000, 1):
        memory, action = carried_out(
            memory, facts(S.UNKNOWN, W.YIELD, float(at_s)), Trouble.TIMEOUT
        )
        if action.verb is not V.WAIT:
            steps.append(action.step or action.verb)
    assert steps[:3] == [V.STOP, RepairStep.EMERGENCY_STOP, RepairStep.RESTART_SERVICE]
    assert set(steps) == set(steps[:3])
    assert len(steps) < 100  # rests grow: the PC of a desk user is not worn down either


@pytest.mark.parametrize("state", sorted(HOLDS_MEMORY))
def test_a_release_never_saves(state: VmState) -> None:
    memory = Memory()
    for at_s in range(0, 700, 1):
        memory, action = carried_out(memory, facts(state, W.RELEASE, float(at_s)), Trouble.FAILED)
        assert action.verb is not V.SAVE


# --- running


def test_an_unusable_saved_state_is_discarded_once_then_the_ladder_is_climbed() -> None:
    memory, action = carried_out(Memory(), facts(S.SAVED, at_s=0.0), Trouble.SAVED_STATE)
    assert action.verb is V.START
    memory, action = carried_out(memory, facts(S.SAVED, at_s=1.0))
    assert action.verb is V.DISCARD
    memory, action = carried_out(memory, facts(S.OFF, at_s=2.0), Trouble.SAVED_STATE)
    assert action.verb is V.START
    memory, action = next_action(memory, facts(S.OFF, at_s=8.0))
    assert (action.verb, action.step) == (V.REPAIR, RepairStep.RETRY)


def test_a_start_that_keeps_failing_climbs_the_ladder_then_gives_up_for_five_minutes() -> None:
    memory, steps, at_s = Memory(), [], 0.0
    while at_s < 299:
        memory, action = carried_out(memory, facts(S.OFF, at_s=at_s), (
            Trouble.FAILED if action_fails(memory, at_s) else None
        ))  # fmt: skip
        if action.verb is not V.WAIT:
            steps.append(action.step or action.verb)
        at_s += 0.5
    wanted: list[object] = [V.START]
    for rung in RepairStep:
        wanted += [rung, V.START]
    assert steps == wanted
    assert "The next look is in" in explain(memory, at_s)


def action_fails(memory: Memory, at_s: float) -> bool:
    """Starts fail, repairs do what they should and do not help."""
    return next_action(memory, facts(S.OFF, at_s=at_s))[1].verb is V.START


def test_a_guest_that_never_reports_in_is_powered_off_and_tried_again() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    silent = {"reported_in": False, "limits": Limits(boot_deadline_s=100.0)}
    assert verb(memory, facts(S.RUNNING, at_s=99.0, **silent)) is V.WAIT
    memory, action = carried_out(memory, facts(S.RUNNING, at_s=100.0, **silent))
    assert action.verb is V.STOP
    assert any("has not reported" in note for note in memory.notes)
    memory, action = carried_out(memory, facts(S.OFF, at_s=106.0))
    assert action.step is RepairStep.RETRY
    assert verb(memory, facts(S.OFF, at_s=107.0)) is V.START


def test_a_guest_that_nobody_can_hear_is_left_in_peace() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    for at_s in (1.0, 500.0, 5000.0):
        memory, action = next_action(memory, facts(S.RUNNING, at_s=at_s))
        assert action.verb is V.WAIT


def test_a_guest_that_was_heard_once_need_not_be_heard_again() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    memory, _ = next_action(memory, facts(S.RUNNING, at_s=10.0, reported_in=True))
    assert verb(memory, facts(S.RUNNING, at_s=10_000.0, reported_in=False)) is V.WAIT


def test_a_worker_that_falls_silent_is_restarted_but_not_while_the_coordinator_is_away() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    memory, _ = next_action(memory, facts(S.RUNNING, at_s=10.0, reported_in=True))
    away = facts(S.RUNNING, at_s=5000.0, reported_in=True, unheard_s=None)
    assert verb(memory, away) is V.WAIT
    assert verb(memory, replace(away, unheard_s=599.0)) is V.WAIT
    memory, action = carried_out(memory, replace(away, unheard_s=600.0))
    assert action.verb is V.STOP
    assert any("has not heard the worker" in note for note in memory.notes)
    memory, action = carried_out(memory, facts(S.OFF, at_s=5010.0))
    assert action.step is RepairStep.RETRY
    memory, action = carried_out(memory, facts(S.OFF, at_s=5011.0))
    # What was silent before this start does not count against it.
    assert verb(memory, facts(S.RUNNING, at_s=5020.0, unheard_s=5000.0)) is V.WAIT


def test_after_a_restore_a_fresh_word_is_demanded() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    memory, _ = next_action(memory, facts(S.RUNNING, at_s=10.0, reported_in=True))
    memory, action = carried_out(memory, facts(S.SAVED, W.YIELD, 100.0))
    memory, action = carried_out(memory, facts(S.SAVED, at_s=200.0))
    assert action.verb is V.START
    memory, action = next_action(memory, facts(S.RUNNING, at_s=500.0, reported_in=False))
    assert action.verb is V.STOP


def test_time_asleep_does_not_count_against_the_guest() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    memory, _ = next_action(memory, facts(S.RUNNING, at_s=10.0, reported_in=False))
    memory = slept(memory, 8000.0)
    assert verb(memory, facts(S.RUNNING, at_s=8020.0, reported_in=False)) is V.WAIT


def test_a_vm_that_dies_is_started_again_and_a_steady_one_resets_the_ladder() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    memory, action = next_action(memory, facts(S.OFF, at_s=10.0))
    assert any("ended by itself" in note for note in memory.notes)
    assert action.verb is V.WAIT
    memory, action = carried_out(memory, facts(S.OFF, at_s=16.0))
    assert action.step is RepairStep.RETRY
    memory, action = carried_out(memory, facts(S.OFF, at_s=16.1))
    assert action.verb is V.START
    memory, _ = next_action(memory, facts(S.RUNNING, at_s=80.0))
    memory, _ = next_action(memory, facts(S.OFF, at_s=90.0))
    assert memory.ladder.step is RepairStep.RETRY


def test_a_vm_that_was_deleted_by_hand_is_imported_without_climbing() -> None:
    memory, _ = carried_out(Memory(), facts(S.OFF, at_s=0.0))
    memory, action = next_action(memory, facts(S.ABSENT, at_s=10.0))
    assert action.verb is V.IMPORT_IMAGE
    assert any("deleted" in note for note in memory.notes)


def test_a_vm_of_unknown_state_is_given_time_before_it_is_repaired() -> None:
    memory, action = next_action(Memory(), facts(S.UNKNOWN, at_s=0.0))
    memory, action = next_action(memory, facts(S.UNKNOWN, at_s=14.0))
    assert (action.verb, memory.ladder.step) == (V.WAIT, None)
    memory, _ = next_action(memory, facts(S.UNKNOWN, at_s=15.0))
    memory, action = next_action(memory, facts(S.UNKNOWN, at_s=20.0))
    assert action.step is RepairStep.RETRY


def test_giving_up_never_leaves_a_paused_vm_in_memory() -> None:
    memory = Memory()
    memory, action = carried_out(memory, facts(S.PAUSED, at_s=0.0), Trouble.MEMORY)
    assert action.verb is V.RESUME
    assert verb(memory, facts(S.PAUSED, at_s=1.0)) is V.STOP


def test_a_start_that_was_called_off_is_no_failure() -> None:
    memory, action = carried_out(Memory(), facts(S.OFF, at_s=0.0), Trouble.CANCELLED)
    assert action.verb is V.START
    assert verb(memory, facts(S.OFF, at_s=0.1)) is V.START


def test_a_locked_start_is_tried_for_half_a_minute_before_it_counts() -> None:
    memory, at_s, tries = Memory(), 0.0, 0
    while memory.ladder.step is None:
        memory, action = next_action(memory, facts(S.OFF, at_s=at_s))
        if action.verb is V.START:
            tries += 1
            locked = (Trouble.LOCKED, "It is locked.")
            memory = done(memory, action, facts(S.OFF, at_s=at_s), locked)
        at_s += 0.25
    assert tries == 6
    assert 25 < at_s < 40
