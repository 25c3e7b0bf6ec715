"""The idle policy: every rule, every boundary, and what it remembers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from officegrid.core.desk import (
    FOREVER_S,
    Decision,
    DeskPolicy,
    Rule,
    Sample,
    Session,
    Verdict,
)
from officegrid.core.deskrules import parse_hours
from officegrid.core.idle import IdleMemory, decide
from officegrid.core.idle_rules import LOCK_SCREEN_S

POLICY = DeskPolicy()
WALL_S = 1_790_000_000.0
NAN, INF = float("nan"), float("inf")


def session(idle_s: float | None = 3600.0, **changes: Any) -> Session:
    return replace(Session("2", 0.5, idle_s, locked=False, presenting=False), **changes)


def sample(*sessions: Session, at_s: float = 1000.0, **changes: Any) -> Sample:
    """A quiet PC on Wednesday at 10:00; nobody is logged on unless sessions are given."""
    base = Sample(
        at_s=at_s,
        wall_s=WALL_S + at_s,
        weekday=2,
        minute=600,
        sessions=sessions,
        foreign_cpu=0.02,
        on_battery=False,
        memory_free_mb=8000,
    )
    return replace(base, **changes)


def quiet_memory(at_s: float = 1000.0, **changes: Any) -> IdleMemory:
    """Of an agent that has watched a quiet PC for a long time, and has not run."""
    base = IdleMemory(at_s=at_s - 1, wall_s=WALL_S + at_s - 1, cpu_quiet_since_s=0.0)
    return replace(base, **changes)


def judge(policy: DeskPolicy, what: Sample, *, running: bool = False, vm_mb: int = 0) -> Verdict:
    memory = quiet_memory(what.at_s, running=running)
    return decide(policy, memory, what, vm_memory_mb=vm_mb)[1]


class Desk:
    """Feeds samples one second apart and keeps the memory."""

    def __init__(self, policy: DeskPolicy = POLICY, memory: IdleMemory | None = None) -> None:
        self.policy = policy
        self.memory = memory or IdleMemory()
        self.at_s = 1000.0
        self.wall_s = WALL_S

    def see(self, *sessions: Session, step_s: float = 1.0, **changes: Any) -> Verdict:
        self.at_s += step_s
        self.wall_s += changes.pop("wall_step_s", step_s)
        what = sample(*sessions, at_s=self.at_s, wall_s=self.wall_s, **changes)
        self.memory, verdict = decide(self.policy, self.memory, what)
        return verdict

    def watch(
        self, seconds: int, *, idle_from_s: float | None = None, **changes: Any
    ) -> list[Verdict]:
        """One unlocked session whose idle time grows from `idle_from_s`; None: no session."""
        out = []
        for second in range(seconds):
            who = [] if idle_from_s is None else [session(idle_from_s + second)]
            out.append(self.see(*who, **changes))
        return out

    def run(self) -> None:
        """Brings it to a run with one unlocked session that has been idle for an hour."""
        assert self.watch(60, idle_from_s=3600)[-1].decision is Decision.RUN


def first_run(verdicts: Iterable[Verdict]) -> int | None:
    return next((n for n, v in enumerate(verdicts) if v.decision is Decision.RUN), None)


# --- each rule alone

REMOTE_OK = replace(POLICY, remote_session=True)
NO_LOCK = replace(POLICY, lock_counts=False)
QUIET = replace(POLICY, quiet_hours=(parse_hours("mon-fri 08:00-18:00"),))
NIGHTS = replace(POLICY, run_hours=(parse_hours("20:00-06:00"),))

RUN, YIELD = Decision.RUN, Decision.YIELD
TABLE: list[tuple[str, DeskPolicy, Sample, Decision, Rule]] = [
    ("nobody", POLICY, sample(), RUN, Rule.NOBODY),
    ("idle exactly long enough", POLICY, sample(session(300.0)), RUN, Rule.AWAY),
    ("a breath too short", POLICY, sample(session(299.9)), YIELD, Rule.NOT_YET),
    ("a minute ago", POLICY, sample(session(60.0)), YIELD, Rule.NOT_YET),
    ("just now", POLICY, sample(session(59.9)), YIELD, Rule.INPUT),
    ("locked", POLICY, sample(session(0.2, locked=True)), RUN, Rule.LOCKED),
    ("locked, idle unknown", POLICY, sample(session(None, locked=True)), RUN, Rule.LOCKED),
    ("locked, presenting unknown", POLICY, sample(session(9.0, locked=True, presenting=None)),
     RUN, Rule.LOCKED),
    ("locked, presenting", POLICY, sample(session(9.0, locked=True, presenting=True)),
     RUN, Rule.LOCKED),
    ("locks do not count", NO_LOCK, sample(session(9.0, locked=True)),
     YIELD, Rule.INPUT),
    ("locks do not count, idle unknown", NO_LOCK, sample(session(None, locked=True)),
     YIELD, Rule.SILENT),
    ("locks do not count, but idle", NO_LOCK, sample(session(300.0, locked=True)),
     RUN, Rule.AWAY),
    ("lock unknown", POLICY, sample(session(9.0, locked=None)), YIELD, Rule.INPUT),
    ("lock unknown, idle", POLICY, sample(session(300.0, locked=None)), RUN, Rule.AWAY),
    ("one of two is here", POLICY, sample(session(), session(4.0, id="3")),
     YIELD, Rule.INPUT),
    ("two are away", POLICY, sample(session(), session(4.0, id="3", locked=True)),
     RUN, Rule.AWAY),
    ("remote", POLICY, sample(session(remote=True)), YIELD, Rule.REMOTE),
    ("remote allowed", REMOTE_OK, sample(session(remote=True)), RUN, Rule.AWAY),
    ("remote allowed, typing", REMOTE_OK, sample(session(3.0, remote=True)),
     YIELD, Rule.INPUT),
    ("remote and locked", POLICY, sample(session(remote=True, locked=True)),
     RUN, Rule.LOCKED),
    ("remote and locked, locks do not count", NO_LOCK, sample(session(remote=True, locked=True)),
     RUN, Rule.AWAY),
    ("presenting", POLICY, sample(session(presenting=True)), YIELD, Rule.PRESENTING),
    ("presenting unknown", POLICY, sample(session(presenting=None)),
     YIELD, Rule.SILENT),
    ("sessions unknown", POLICY, sample(sessions=None), YIELD, Rule.SILENT),
    ("idle unknown", POLICY, sample(session(None)), YIELD, Rule.SILENT),
    ("idle is no number", POLICY, sample(session(NAN)), YIELD, Rule.SILENT),
    ("idle is endless", POLICY, sample(session(INF)), YIELD, Rule.SILENT),
    ("idle is negative", POLICY, sample(session(-5.0)), YIELD, Rule.INPUT),
    ("reading just young enough", POLICY, sample(session(age_s=15.0)), RUN, Rule.AWAY),
    ("reading too old", POLICY, sample(session(age_s=15.1)), YIELD, Rule.SILENT),
    ("locked, but silent", POLICY, sample(session(locked=True, age_s=15.1)),
     YIELD, Rule.SILENT),
    ("age is no number", POLICY, sample(session(age_s=NAN)), YIELD, Rule.SILENT),
    ("CPU unknown", POLICY, sample(foreign_cpu=None), YIELD, Rule.SILENT),
    ("CPU is no number", POLICY, sample(foreign_cpu=NAN), YIELD, Rule.SILENT),
    ("battery unknown", POLICY, sample(on_battery=None), YIELD, Rule.SILENT),
    ("memory unknown", POLICY, sample(memory_free_mb=None), YIELD, Rule.SILENT),
    ("on battery", POLICY, sample(on_battery=True), YIELD, Rule.BATTERY),
    ("battery allowed", replace(POLICY, on_battery=True), sample(on_battery=True),
     RUN, Rule.NOBODY),
    ("quiet hours", QUIET, sample(), YIELD, Rule.HOURS),
    ("last quiet minute", QUIET, sample(minute=18 * 60 - 1), YIELD, Rule.HOURS),
    ("quiet hours are over", QUIET, sample(minute=18 * 60), RUN, Rule.NOBODY),
    ("no quiet day", QUIET, sample(weekday=5), RUN, Rule.NOBODY),
    ("outside run hours", NIGHTS, sample(), YIELD, Rule.HOURS),
    ("in run hours", NIGHTS, sample(minute=5 * 60 + 59), RUN, Rule.NOBODY),
    ("CPU at the limit", POLICY, sample(foreign_cpu=0.15), RUN, Rule.NOBODY),
    ("CPU above it", POLICY, sample(foreign_cpu=0.16), YIELD, Rule.CPU),
    ("memory at the limit", POLICY, sample(memory_free_mb=1024), RUN, Rule.NOBODY),
    ("memory below it", POLICY, sample(memory_free_mb=1023), YIELD, Rule.MEMORY),
    ("paused a little longer", POLICY, sample(pause_until_s=WALL_S + 1000.1),
     YIELD, Rule.USER_PAUSE),
    ("pause is over", POLICY, sample(pause_until_s=WALL_S + 1000.0),
     RUN, Rule.NOBODY),
    ("paused for ever", POLICY, sample(pause_until_s=FOREVER_S), YIELD, Rule.USER_PAUSE),
    ("pause is no number", POLICY, sample(pause_until_s=NAN), YIELD, Rule.USER_PAUSE),
    ("drained", POLICY, sample(drain=True), YIELD, Rule.DRAIN),
    ("never", replace(POLICY, never=True), sample(), YIELD, Rule.NEVER),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "what", "decision", "rule"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_each_rule_and_its_boundary(
    policy: DeskPolicy, what: Sample, decision: Decision, rule: Rule
) -> None:
    verdict = judge(policy, what)
    assert (verdict.decision, verdict.rule) == (decision, rule), verdict.sentence


def test_the_table_shows_every_rule() -> None:
    # Settling is nothing that one sample alone can show.
    assert {row[4] for row in TABLE} == set(Rule) - {Rule.SETTLING}


def test_of_several_reasons_the_most_important_is_named() -> None:
    """Take away the top reason, one by one, and the next one must come forward."""
    policy = replace(QUIET, never=True)
    what = sample(
        session(3.0, remote=True, presenting=True),
        session(None, id="3"),
        foreign_cpu=0.9,
        on_battery=True,
        memory_free_mb=10,
        pause_until_s=FOREVER_S,
        drain=True,
    )
    here, gone = session(3.0, remote=True, presenting=True), session(remote=True, presenting=True)
    cures: list[tuple[Rule, Callable[[DeskPolicy, Sample], tuple[DeskPolicy, Sample]]]] = [
        (Rule.NEVER, lambda p, s: (QUIET, s)),
        (Rule.DRAIN, lambda p, s: (p, replace(s, drain=False))),
        (Rule.USER_PAUSE, lambda p, s: (p, replace(s, pause_until_s=None))),
        (Rule.SILENT, lambda p, s: (p, replace(s, sessions=(here,)))),
        (Rule.INPUT, lambda p, s: (p, replace(s, sessions=(gone,)))),
        (Rule.REMOTE, lambda p, s: (REMOTE_QUIET, s)),
        (Rule.PRESENTING, lambda p, s: (p, replace(s, sessions=(session(),)))),
        (Rule.BATTERY, lambda p, s: (p, replace(s, on_battery=False))),
        (Rule.HOURS, lambda p, s: (POLICY, s)),
        (Rule.CPU, lambda p, s: (p, replace(s, foreign_cpu=0.0))),
        (Rule.MEMORY, lambda p, s: (p, replace(s, memory_free_mb=9000))),
    ]
    for rule, cure in cures:
        assert judge(policy, what).rule is rule
        policy, what = cure(policy, what)
    assert judge(policy, what).decision is Decision.RUN


REMOTE_QUIET = replace(QUIET, remote_session=True)


def test_lesser_reasons_are_told_too() -> None:
    verdict = judge(QUIET, sample(session(3.0), on_battery=True))
    assert verdict.rule is Rule.INPUT
    assert verdict.numbers["also"] == "battery, hours"
    assert verdict.change.endswith("Also in the way: battery power, the hours.")


# --- what it says


def test_the_sentence_for_somebody_at_the_keyboard() -> None:
    verdict = judge(POLICY, sample(session(3.0)))
    expected = "Somebody used this PC 3 s ago; the grid starts after 5 min without input."
    assert verdict.sentence == expected
    assert verdict.change == (
        "Starts in 4 min 57 s if nobody touches it, or at once when the session is locked."
    )
    assert verdict.numbers["idle_s"] == 3.0
    assert verdict.numbers["needed_s"] == 300.0


def test_no_lock_is_advised_where_locks_do_not_count() -> None:
    verdict = judge(NO_LOCK, sample(session(3.0)))
    assert verdict.change == "Starts in 4 min 57 s if nobody touches it."


def test_the_sentence_while_running() -> None:
    verdict = judge(POLICY, sample(session(725.0)), running=True)
    assert verdict.sentence == "Nobody has used this PC for 12 min 5 s."
    assert verdict.change == "Yields at once when somebody uses this PC."


def test_quiet_hours_say_when_they_end() -> None:
    verdict = judge(QUIET, sample())
    assert verdict.sentence == "These are quiet hours (mon-fri 08:00-18:00)."
    assert verdict.change == "Starts on wed 18:00 at the earliest, in 8 h."


def test_hours_that_leave_no_minute_say_so() -> None:
    policy = replace(QUIET, run_hours=(parse_hours("mon-fri 09:00-17:00"),))
    assert "they leave no hour to run in" in judge(policy, sample()).change


def test_a_pause_says_how_long_it_lasts() -> None:
    verdict = judge(POLICY, sample(pause_until_s=WALL_S + 1000 + 2400))
    assert verdict.sentence == "The user of this PC paused the grid here; 40 min are left."


@pytest.mark.parametrize(
    ("policy", "what", "discard"),
    [
        (replace(POLICY, never=True), sample(), True),
        (POLICY, sample(drain=True), True),
        (POLICY, sample(pause_until_s=FOREVER_S), True),
        (POLICY, sample(pause_until_s=WALL_S + 1000 + 8 * 3600), False),
        (POLICY, sample(pause_until_s=WALL_S + 1001 + 8 * 3600), True),
        (POLICY, sample(session(1.0)), False),
        (QUIET, sample(), False),
    ],
)
def test_a_vm_that_is_not_wanted_for_long_is_discarded(
    policy: DeskPolicy, what: Sample, discard: bool
) -> None:
    assert judge(policy, what).discard is discard


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_every_verdict_explains_itself_and_fits_a_message(
    row: tuple[str, DeskPolicy, Sample, Decision, Rule],
) -> None:
    verdict = judge(row[1], row[2])
    for text in (verdict.sentence, verdict.change):
        assert text.endswith(".")
        assert len(text) < 500
        assert not {"None", "nan", "inf", "True", "False"} & set(text.replace(".", " ").split())
    json.dumps(dict(verdict.numbers), allow_nan=False)


# --- memory of the VM


def test_the_memory_of_the_vm_comes_on_top() -> None:
    needed = 2048 + 1024
    assert judge(POLICY, sample(memory_free_mb=needed), vm_mb=2048).decision is Decision.RUN
    verdict = judge(POLICY, sample(memory_free_mb=needed - 72), vm_mb=2048)
    assert verdict.rule is Rule.MEMORY
    assert verdict.change == "Starts when 72 MB more are free."


def test_a_run_goes_on_until_half_of_the_spare_memory_is_gone() -> None:
    for free_mb, expected in ((2048 + 512, Decision.RUN), (2048 + 511, Decision.YIELD)):
        verdict = judge(POLICY, sample(memory_free_mb=free_mb), running=True, vm_mb=2048)
        assert verdict.decision is expected, free_mb


# --- lock and unlock


def test_a_lock_counts_at_once_and_an_unlock_too() -> None:
    desk = Desk()
    assert {v.decision for v in desk.watch(60, idle_from_s=0)} == {Decision.YIELD}
    assert desk.see(session(0.1, locked=True)).decision is Decision.RUN
    verdict = desk.see(session(0.4))
    assert (verdict.decision, verdict.rule) == (Decision.YIELD, Rule.INPUT)


def test_an_unlock_without_a_key_is_somebody_too() -> None:
    """A face or a card unlocks without any input: the idle time goes on growing."""
    desk = Desk()
    for second in range(60):
        desk.see(session(600.0 + second, locked=True))
    assert desk.memory.running
    verdict = desk.see(session(660.0))
    assert (verdict.decision, verdict.rule) == (Decision.YIELD, Rule.INPUT)
    assert verdict.sentence.startswith("This PC was unlocked just now;")
    later = [desk.see(session(661.0 + second)) for second in range(320)]
    assert first_run(later) == 299


def test_a_lock_that_can_no_longer_be_told_is_an_unlock() -> None:
    desk = Desk()
    for second in range(60):
        desk.see(session(600.0 + second, locked=True))
    assert desk.see(session(660.0, locked=None)).decision is Decision.YIELD


def test_an_unlock_while_the_sensors_were_silent_is_noticed_afterwards() -> None:
    desk = Desk()
    for second in range(60):
        desk.see(session(600.0 + second, locked=True))
    desk.see(sessions=None)
    assert desk.see(session(662.0)).rule is Rule.INPUT


def test_a_lock_that_comes_and_goes_starts_nothing() -> None:
    desk = Desk()
    for second in range(60):
        desk.see(session(600.0 + second, locked=True))
    verdicts = [
        desk.see(session(660.0 + second, locked=None if second % 2 == 0 else True))
        for second in range(100)
    ]
    assert first_run(verdicts) is None


def test_a_touch_at_the_lock_screen_gives_the_pc_back_for_a_while() -> None:
    desk = Desk()
    for second in range(60):
        desk.see(session(0.2 + second, locked=True))
    assert desk.memory.running
    verdict = desk.see(session(0.1, locked=True))
    assert (verdict.decision, verdict.rule) == (Decision.YIELD, Rule.INPUT)
    assert "Somebody touched this locked PC just now" in verdict.sentence
    later = [desk.see(session(1.0 + second, locked=True)) for second in range(60)]
    assert first_run(later) == LOCK_SCREEN_S - 1


def test_who_types_under_a_lock_that_is_not_true_is_left_alone() -> None:
    """The desktop says locked, and is not: the idle time never falls, for it never grows."""
    desk = Desk()
    for second in range(60):
        desk.see(session(0.2 + second, locked=True))
    assert desk.memory.running
    typing = [desk.see(session(0.4, locked=True), step_s=0.1) for _ in range(1200)]
    assert {v.decision for v in typing} == {Decision.YIELD}
    # And when the agent starts while it is so, after the seconds that belong to locking.
    desk = Desk()
    typing = [desk.see(session(1.9, locked=True)) for _ in range(100)]
    assert first_run(typing) is None
    later = [desk.see(session(3.0 + second, locked=True)) for second in range(60)]
    assert first_run(later) == 28  # half a minute after the last touch


def test_the_key_that_locks_is_no_touch_even_when_its_reading_comes_late() -> None:
    desk = Desk()
    desk.run()
    desk.see(session(0.1))
    for second in range(100):
        desk.see(session(1.0 + second))
    assert desk.see(session(101.0, locked=True, age_s=1.0)).decision is Decision.RUN
    assert desk.see(session(1.5, locked=True)).decision is Decision.RUN


def test_a_new_session_is_somebody_even_if_it_claims_to_be_idle() -> None:
    desk = Desk()
    desk.watch(60)
    assert desk.memory.running
    verdict = desk.see(session(9000.0, id="5"))
    assert verdict.decision is Decision.YIELD
    assert verdict.sentence.startswith("Somebody logged on to this PC just now;")


def test_a_restarted_agent_believes_the_idle_time_of_the_sessions_it_finds() -> None:
    assert first_run(Desk().watch(60, idle_from_s=3600)) == POLICY.cpu_idle_s


def test_idle_time_never_grows_faster_than_the_clock() -> None:
    """Two sensors that contradict each other: the one that saw somebody is right."""
    desk = Desk()
    desk.run()
    assert desk.see(session(0.5)).decision is Decision.YIELD
    verdict = desk.see(session(4000.0))
    assert verdict.rule is Rule.INPUT
    assert verdict.numbers["idle_s"] == 2.0  # half a second, the reading's age, and this step
    assert first_run(desk.watch(320, idle_from_s=4001)) == 297


def test_an_ageing_reading_loses_no_idle_time_for_good() -> None:
    desk = Desk()
    for second in range(0, 290, 10):
        for age_s in range(10):
            desk.see(session(float(second), age_s=float(age_s)))
    verdicts = [desk.see(session(290.0 + second, age_s=0.0)) for second in range(20)]
    assert first_run(verdicts) == 10


# --- CPU


def test_foreign_cpu_must_stay_high_to_end_a_run_and_low_to_allow_one() -> None:
    desk = Desk()
    desk.run()
    busy = desk.watch(12, idle_from_s=4000, foreign_cpu=0.26)
    assert [v.decision for v in busy] == [Decision.RUN] * 10 + [Decision.YIELD] * 2
    assert busy[10].rule is Rule.CPU
    assert busy[10].sentence == (
        "Other programs have used more than 25 % of the CPU for 10 s (26 % now)."
    )
    quiet = desk.watch(60, idle_from_s=4100, foreign_cpu=0.15)
    assert first_run(quiet) == POLICY.cpu_idle_s


def test_cpu_at_the_busy_limit_is_not_above_it() -> None:
    desk = Desk()
    desk.run()
    verdicts = desk.watch(60, idle_from_s=4000, foreign_cpu=0.25)
    assert {v.decision for v in verdicts} == {Decision.RUN}


def test_a_short_burst_does_not_end_a_run() -> None:
    desk = Desk()
    desk.run()
    for _ in range(5):
        verdicts = desk.watch(10, idle_from_s=4000, foreign_cpu=1.0)
        verdicts += desk.watch(1, idle_from_s=4010, foreign_cpu=0.2)
        assert {v.decision for v in verdicts} == {Decision.RUN}


def test_cpu_between_the_two_limits_keeps_what_is() -> None:
    running, waiting = Desk(), Desk()
    running.run()
    assert {v.decision for v in running.watch(120, idle_from_s=4000, foreign_cpu=0.2)} == {
        Decision.RUN
    }
    verdicts = waiting.watch(120, idle_from_s=4000, foreign_cpu=0.2)
    assert {v.rule for v in verdicts} == {Rule.CPU}


def test_limits_the_wrong_way_round_do_not_flap() -> None:
    """A busy limit below the idle one would start what it ends at once."""
    desk = Desk(replace(POLICY, cpu_busy_share=0.1, cpu_idle_share=0.5))
    assert {v.decision for v in desk.watch(300, foreign_cpu=0.2)} == {Decision.YIELD}


def test_cpu_that_was_not_known_was_not_quiet() -> None:
    desk = Desk()
    desk.watch(29)
    desk.watch(1, foreign_cpu=None)
    assert first_run(desk.watch(60)) == POLICY.cpu_idle_s


# --- settling


@pytest.mark.parametrize(
    "trouble",
    [
        {"sessions": None},
        {"on_battery": True},
        {"memory_free_mb": 10},
        {"pause_until_s": FOREVER_S},
        {"drain": True},
    ],
    ids=lambda trouble: next(iter(trouble)),
)
def test_after_an_end_without_input_all_must_be_well_for_a_while(trouble: dict[str, Any]) -> None:
    desk = Desk()
    desk.run()
    assert desk.see(session(3700.0), **trouble).decision is Decision.YIELD
    settling = desk.watch(5, idle_from_s=3701)
    assert {v.rule for v in settling} == {Rule.SETTLING}
    assert settling[2].change == "Starts in 8 s if it stays so."
    assert desk.see(session(3706.0), **trouble).decision is Decision.YIELD, "begins anew"
    assert first_run(desk.watch(30, idle_from_s=3707)) == POLICY.settle_s


def test_after_input_a_lock_needs_no_settling() -> None:
    desk = Desk()
    desk.run()
    desk.see(session(0.5))
    assert desk.see(session(1.5, locked=True)).decision is Decision.RUN


# --- clocks


def test_a_person_who_opens_the_lid_is_not_mistaken_for_hours_of_idleness() -> None:
    desk = Desk()
    desk.run()
    verdict = desk.see(session(30_000.0), step_s=28_800.0)
    assert verdict.decision is Decision.YIELD
    assert verdict.sentence.startswith("This PC woke up or its clock jumped just now;")
    later = [desk.see(session(30_001.0 + second)) for second in range(320)]
    assert first_run(later) == 299


def test_sleep_that_only_the_wall_clock_saw() -> None:
    desk = Desk()
    desk.run()
    verdict = desk.see(session(4000.0), step_s=1.0, wall_step_s=28_800.0)
    assert verdict.decision is Decision.YIELD
    assert verdict.rule is Rule.NOT_YET


@pytest.mark.parametrize("who", [(), (session(5000.0, locked=True),)], ids=["nobody", "locked"])
def test_after_sleep_a_locked_pc_settles_first(who: tuple[Session, ...]) -> None:
    desk = Desk()
    for _ in range(60):
        desk.see(*who)
    assert desk.memory.running
    assert desk.see(*who, step_s=61.0).rule is Rule.CPU
    # The quiet of the CPU is void too, and takes longer than settling.
    assert first_run(desk.see(*who) for _ in range(60)) == POLICY.cpu_idle_s - 1
    desk.policy = replace(POLICY, cpu_idle_s=0.0)
    assert desk.see(*who, step_s=61.0).rule is Rule.SETTLING
    assert first_run(desk.see(*who) for _ in range(60)) == POLICY.settle_s - 1


def test_sleep_makes_settling_begin_anew() -> None:
    desk = Desk(replace(POLICY, cpu_idle_s=0.0))
    assert desk.see().decision is Decision.RUN
    desk.see(on_battery=True)
    for _ in range(8):
        assert desk.see().rule is Rule.SETTLING
    assert desk.see(step_s=61.0).rule is Rule.SETTLING
    assert first_run(desk.see() for _ in range(60)) == POLICY.settle_s - 1


def test_even_without_any_waiting_time_the_first_sample_after_sleep_does_not_run() -> None:
    desk = Desk(replace(POLICY, cpu_idle_s=0.0, settle_s=0.0))
    assert desk.see().decision is Decision.RUN
    assert desk.see(step_s=61.0).decision is Decision.YIELD
    assert desk.see().decision is Decision.RUN


def test_a_slow_sample_is_no_sleep() -> None:
    desk = Desk()
    desk.run()
    assert desk.see(session(3720.0), step_s=60.0).decision is Decision.RUN


def test_a_wall_clock_set_back_changes_nothing_while_nobody_is_here() -> None:
    desk = Desk()
    desk.run()
    assert desk.see(session(3661.0), wall_step_s=-86_400.0).decision is Decision.RUN


def test_a_wall_clock_set_back_prolongs_a_pause() -> None:
    desk = Desk()
    until_s = desk.wall_s + 3600
    assert desk.see(pause_until_s=until_s).rule is Rule.USER_PAUSE
    verdict = desk.see(pause_until_s=until_s, wall_step_s=-3601.0)
    assert verdict.rule is Rule.USER_PAUSE
    assert "2 h are left" in verdict.sentence


def test_a_wall_clock_that_leaps_over_the_end_of_a_pause_starts_nothing_at_once() -> None:
    desk = Desk()
    desk.run()
    until_s = desk.wall_s + 3600
    desk.see(session(4000.0), pause_until_s=until_s)
    verdict = desk.see(session(4001.0), pause_until_s=until_s, wall_step_s=7200.0)
    assert verdict.rule is Rule.NOT_YET
    assert first_run(desk.watch(320, idle_from_s=4002)) == 299


def test_a_monotonic_clock_that_goes_back_starts_nothing() -> None:
    desk = Desk()
    desk.run()
    assert desk.see(session(0.1)).decision is Decision.YIELD
    assert desk.see(session(4000.0), step_s=-500.0).decision is Decision.YIELD
    assert first_run(desk.watch(320, idle_from_s=4001)) == 299


# --- restart


def test_an_agent_that_finds_its_vm_running_lets_it_run() -> None:
    desk = Desk(memory=IdleMemory(running=True))
    assert desk.see(session(3600.0), foreign_cpu=0.2).decision is Decision.RUN


def test_but_not_while_somebody_is_here() -> None:
    desk = Desk(memory=IdleMemory(running=True))
    assert desk.see(session(3.0)).decision is Decision.YIELD


# --- a day


def test_an_office_day() -> None:
    """One desktop from 08:00 to the next morning, a sample every five seconds."""

    def clock(text: str) -> int:
        hour, minute, *second = (int(part) for part in text.split(":"))
        return hour * 3600 + minute * 60 + (second[0] if second else 0)

    typing = [("08:30", "10:00"), ("10:04", "12:00"), ("12:45", "14:00"), ("15:00", "17:30")]
    locked = [("12:00", "12:45")]
    meeting = ("14:00", "15:00")
    backup = ("22:00", "22:10")

    def state(now_s: int) -> tuple[Session, float]:
        last_s = clock("08:00") - 3600
        for begin, end in typing:
            if now_s >= clock(begin):
                last_s = min(now_s, clock(end))
        who = session(
            float(now_s - last_s),
            locked=any(clock(a) <= now_s < clock(b) for a, b in locked),
            presenting=clock(meeting[0]) <= now_s < clock(meeting[1]),
        )
        load = 0.9 if clock(backup[0]) <= now_s < clock(backup[1]) else 0.05
        return who, load

    memory, turns, last = IdleMemory(), [], None
    for now_s in range(clock("08:00"), clock("24:00"), 5):
        who, load = state(now_s)
        what = sample(who, at_s=float(now_s), wall_s=WALL_S + now_s, foreign_cpu=load)
        memory, verdict = decide(POLICY, memory, what)
        if verdict.decision is not last:
            turns.append((now_s, verdict.decision.value, verdict.rule.value))
            last = verdict.decision
    assert turns == [
        (clock("08:00"), "yield", "cpu_busy"),
        (clock("08:00:30"), "run", "away"),
        (clock("08:30"), "yield", "input"),
        (clock("12:00"), "run", "locked"),
        (clock("12:45"), "yield", "input"),
        (clock("17:35"), "run", "away"),
        (clock("22:00:10"), "yield", "cpu_busy"),
        (clock("22:10:30"), "run", "away"),
    ]
