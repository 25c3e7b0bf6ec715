"""Rollouts of images, by examples and by properties over any office and any story."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from officegrid.core.errors import ConflictError
from officegrid.core.rollout import (
    ASKED,
    UNTRIED_S,
    Desk,
    Offer,
    Rollout,
    RolloutPolicy,
    advance,
    begin,
    changed,
    chosen,
    from_plain,
    is_member,
    place,
    restarts,
    tally,
    to_plain,
    words,
)

SOAK_S = 1800.0
POLICY = RolloutPolicy()
IMAGE = "a" * 64


def office(count: int, image: str = IMAGE) -> list[Desk]:
    """Desktops in the order of their places."""
    desks = [Desk(f"m{n}", place(image, f"m{n}")) for n in range(count)]
    return sorted(desks, key=lambda desk: desk.place)


def said(desks: list[Desk], use: str, *numbers: int, at: float = 0.0) -> list[Desk]:
    return [replace(d, use=use, at=at) if n in numbers else d for n, d in enumerate(desks)]


def away(desks: list[Desk], *numbers: int) -> list[Desk]:
    return [replace(d, reachable=False) if n in numbers else d for n, d in enumerate(desks)]


def members(rollout: Rollout, desks: list[Desk]) -> int:
    return sum(is_member(rollout, desk.place) for desk in desks)


def step(rollout: Rollout, desks: list[Desk], now: float) -> Rollout:
    return advance(rollout, POLICY, desks, now, has_before=True)


# --- stages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "sizes"), [(10, [1, 1, 10]), (500, [5, 50, 500]), (1, [1] * 3)])
def test_small_and_large_offices_go_by_the_same_stages(count: int, sizes: list[int]) -> None:
    desks = office(count)
    rollout, now, seen = begin(POLICY, desks, 0, has_base=True), 0.0, []
    while rollout.state == "rolling":
        seen.append(members(rollout, desks))
        desks = said(desks, "good", *range(seen[-1]), at=now)
        assert step(rollout, desks, now + SOAK_S - 1) == rollout
        now += SOAK_S
        rollout = step(rollout, desks, now)
    assert seen == sizes
    assert (rollout.state, now) == ("current", 3 * SOAK_S)


def test_the_very_first_image_goes_to_all_at_once() -> None:
    desks = office(30)
    assert members(begin(POLICY, desks, 0, has_base=False), desks) == 30
    assert members(begin(POLICY, desks, 0, has_base=True), desks) == 1


def test_a_stage_needs_something_new_that_is_good() -> None:
    desks = said(office(100), "good", 0)
    rollout = step(begin(POLICY, desks, 0, has_base=True), desks, SOAK_S)
    assert members(rollout, desks) == 10
    assert step(rollout, desks, 20 * SOAK_S) == rollout, "the nine newcomers have not tried"
    assert members(step(rollout, said(desks, "good", 0, 9), 20 * SOAK_S), desks) == 100


def test_a_stage_waits_for_trials_but_not_for_ever() -> None:
    desks = said(said(office(500), "good", 0), "trial", 1, 2, at=SOAK_S)
    rollout = begin(POLICY, desks, 0, has_base=True)
    assert step(rollout, desks, SOAK_S) == rollout, "one of three is not 80 %"
    assert members(step(rollout, desks, 3 * SOAK_S), desks) == 50


def test_desktops_that_are_off_hold_nothing_up() -> None:
    desks = away(office(10), 0, 1)
    rollout = begin(POLICY, desks, 0, has_base=True)
    assert members(rollout, desks) == 3, "the first that is on is a member"
    desks = said(away(office(10), *range(10)), "ready", 0)
    rollout = begin(POLICY, desks, 0, has_base=True)
    assert members(rollout, desks) == 1
    assert step(rollout, desks, SOAK_S) == rollout, "nobody else is there either"
    some_on = [replace(desk, reachable=n == 4) for n, desk in enumerate(desks)]
    assert step(rollout, some_on, SOAK_S - 1) == rollout
    assert members(step(rollout, some_on, SOAK_S), desks) == 5


def test_who_joined_a_stage_because_others_were_off_stays() -> None:
    desks = away(office(10), 0, 1)
    rollout = begin(POLICY, desks, 0, has_base=True)
    assert members(rollout, desks) == 3
    after = step(rollout, said(desks, "good", 2), SOAK_S)
    assert (after.share, members(after, desks)) == (0.10, 3)


def test_a_busy_day_does_not_make_everybody_a_member() -> None:
    desks = office(10)
    rollout = begin(POLICY, desks, 0, has_base=True)
    for minute in range(int(UNTRIED_S / 60)):
        assert step(rollout, desks, 60.0 * minute) == rollout
    after = step(rollout, desks, UNTRIED_S)
    assert members(after, desks) == 2
    assert step(after, desks, UNTRIED_S + 3600) == after


def test_a_stage_that_lost_its_desktops_gets_others() -> None:
    nobody = begin(POLICY, [], 0, has_base=True)
    assert step(nobody, [], 10 * SOAK_S) == nobody
    desks = office(10)
    rollout = step(nobody, desks, 60)
    assert members(rollout, desks) == 1
    rest = desks[1:]
    assert members(step(rollout, rest, 120), rest) == 1
    assert step(rollout, rest, 120).since == 120


def test_a_clock_that_was_set_back_only_begins_the_stage_anew() -> None:
    desks = said(office(10), "good", 0)
    rollout = begin(POLICY, desks, 1e9, has_base=True)
    waited = step(rollout, desks, 100.0)
    assert (waited.since, waited.share) == (100.0, rollout.share)
    assert step(waited, desks, 100.0 + SOAK_S).share == 0.10


# --- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "good", "failed", "state"),
    [
        (0.01, 0, 1, "rolled_back"),  # the only one that tried
        (0.01, 1, 1, "rolled_back"),
        (0.01, 4, 1, "rolling"),  # 20 % are not more than 20 %
        (0.01, 3, 1, "rolled_back"),
        (1.0, 1, 1, "rolling"),  # its trouble may be its own
        (1.0, 1, 2, "rolled_back"),
        (1.0, 0, 2, "rolled_back"),
        (1.0, 8, 2, "rolling"),
        (1.0, 7, 2, "rolled_back"),
    ],
)
def test_failures_roll_back(share: float, good: int, failed: int, state: str) -> None:
    policy = replace(POLICY, stages=(share, 1.0))
    desks = office(1000)
    rollout = begin(policy, desks, 0, has_base=share < 1)
    desks = said(said(desks, "good", *range(good)), "failed", *range(good, good + failed))
    after = advance(rollout, policy, desks, 1, has_before=True)
    assert after.state == state
    assert (f"{failed} of {good + failed}" in after.why) == (state == "rolled_back")


def test_one_desktop_alone_is_enough_in_an_office_of_one() -> None:
    desks = said(office(1), "failed", 0)
    assert step(begin(POLICY, desks, 0, has_base=False), desks, 1).state == "rolled_back"


def test_a_current_image_goes_back_only_if_there_is_one_before() -> None:
    desks = said(office(10), "failed", 1, 2, 3)
    rollout = Rollout("current", 1.0, 1.0)
    assert step(rollout, desks, 1).state == "rolled_back"
    assert advance(rollout, POLICY, desks, 1, has_before=False) == rollout


@pytest.mark.parametrize(
    ("count", "bad", "ends"),
    [(4, [2], True), (2, [1], True), (3, [0], True), (4, [], True), (4, [1, 2], False)],
)
def test_a_small_office_finishes_although_one_pc_failed(
    count: int, bad: list[int], ends: bool
) -> None:
    """3 of 4 are not 80 %, but one failure alone in the last stage undoes nothing."""
    desks = said(office(count), "good", *(n for n in range(count) if n not in bad))
    rollout = replace(Rollout("rolling", 1.0, 1.0), earlier_cutoff=desks[0].place)
    desks = said(desks, "failed", *bad)
    assert step(rollout, desks, SOAK_S - 1).state == ("rolling" if ends else "rolled_back")
    assert step(rollout, desks, SOAK_S).state == ("current" if ends else "rolled_back")
    if ends:
        assert "the next step follows within a minute" in say(rollout, desks, SOAK_S)


def test_one_failure_is_forgiven_in_the_last_stage_only_and_others_are_waited_for() -> None:
    desks = said(said(office(8), "good", 0, 1), "failed", 2)
    earlier = Rollout("rolling", 0.5, desks[3].place)
    policy = replace(POLICY, failed_share=0.5)
    after = advance(earlier, policy, desks, SOAK_S, has_before=True)
    assert after == earlier, "2 of 3 are not 80 %"
    last = Rollout("rolling", 1.0, 1.0)
    trials = said(desks, "trial", 3, 4, at=SOAK_S)
    assert advance(last, policy, trials, SOAK_S, has_before=True) == last
    newcomers = replace(last, earlier_cutoff=desks[1].place)
    assert advance(newcomers, policy, desks, SOAK_S, has_before=True) == newcomers, (
        "five newcomers have not tried"
    )
    assert advance(last, policy, desks, SOAK_S, has_before=True).state == "current"


# --- an admin ----------------------------------------------------------------------------------


def act(rollout: Rollout, action: str, desks: list[Desk], now: float = 5.0) -> Rollout:
    return changed(rollout, action, POLICY, desks, now, has_base=True, by="ann")  # type: ignore[arg-type]


def test_what_an_admin_can_do() -> None:
    desks = office(10)
    rolling = begin(POLICY, desks, 0, has_base=True)
    paused = act(rolling, "pause", desks)
    assert (paused.state, paused.why) == ("paused", "paused by ann")
    assert act(paused, "resume", desks) == rolling
    everybody = act(rolling, "finish", desks)
    assert (everybody.state, members(everybody, desks)) == ("rolling", 10)
    current = act(everybody, "finish", desks)
    assert current.state == "current"
    back = act(current, "roll_back", desks)
    assert (back.state, back.why) == ("rolled_back", "rolled back by ann")
    assert restarts(back, "resume")
    assert members(act(back, "resume", desks), desks) == 1
    assert members(act(back, "finish", desks), desks) == 10
    assert act(rolling, "retry", desks) == rolling


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("rolling", "resume"), ("paused", "pause"), ("current", "pause"), ("current", "resume"),
        ("current", "finish"), ("rolled_back", "roll_back"), ("replaced", "retry"),
        ("replaced", "pause"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(state: str, action: str) -> None:
    with pytest.raises(ConflictError, match=state.replace("_", " ")):
        act(Rollout(state), action, office(3))


# --- what a desktop is told --------------------------------------------------------------------


def offer(version: int, state: str, cutoff: float = 1.0, formats: str = "qcow2 ova") -> Offer:
    rollout = Rollout(state, cutoff=cutoff)
    return Offer(str(version), version, f"grid-{version}", formats.split(), rollout)


def told(offers: list[Offer], machine: str = "m1", running: str | None = None, file_format="ova",
         **tried: str) -> int | None:  # fmt: skip
    uses = {version.removeprefix("v"): state for version, state in tried.items()}
    found = chosen(offers, machine=machine, file_format=file_format, tried=uses, running=running)
    return None if found is None else found.version


def test_members_get_the_new_image_and_others_the_one_before() -> None:
    where = place("2", "m1")
    assert told([offer(2, "rolling", where), offer(1, "current")]) == 2
    assert told([offer(2, "rolling", where - 0.001), offer(1, "current")]) == 1
    assert told([offer(2, "rolling", where - 0.001)]) is None
    assert told([]) is None


def test_an_image_that_failed_here_is_told_again_only_when_asked() -> None:
    offers = [offer(2, "current"), offer(1, "replaced")]
    assert told(offers, v2="failed") == 1
    assert told(offers, v2="failed", v1="failed") is None
    assert told(offers, v2=ASKED) == 2


def test_a_pause_keeps_those_that_started_and_takes_no_more() -> None:
    offers = [offer(2, "paused"), offer(1, "current")]
    assert told(offers) == told(offers, v2="fetching") == told(offers, v2="ready") == 1
    assert told(offers, v2="trial") == told(offers, v2="good") == told(offers, running="2") == 2
    assert told(offers, v2="failed", running="2") == 1


def test_only_what_the_driver_can_use_is_told() -> None:
    offers = [offer(2, "current", formats="qcow2"), offer(1, "replaced")]
    assert (told(offers), told(offers, file_format="qcow2")) == (1, 2)
    assert told(offers, file_format="vhdx") is None


# --- words -------------------------------------------------------------------------------------


def say(rollout: Rollout, desks: list[Desk], now: float) -> str:
    return words(rollout, POLICY, tally(rollout, POLICY, desks, now), now)


def test_words_say_what_it_waits_for() -> None:
    desks = said(office(300), "good", 0)
    rollout = begin(POLICY, desks, 0, has_base=True)
    assert say(rollout, desks, 600) == (
        "1 of 3 desktops of this stage runs it well; 2 have not been idle yet; "
        "next stage in 20 min at the earliest."
    )
    fetching = said(said(away(office(300), 1), "fetching", 0), "trial", 2)
    assert say(rollout, fetching, SOAK_S) == (
        "0 of 3 desktops of this stage run it well; 1 tries it; 1 fetches it; "
        "1 is off or drained; it waits for the next stage until one more desktop runs it well."
    )
    trials = said(desks, "trial", 1, 2, at=SOAK_S)
    assert "until 80 % of those that tried it run it well" in say(rollout, trials, SOAK_S)
    assert say(act(rollout, "pause", desks), desks, 1).startswith("Paused by ann. ")
    assert say(Rollout("current", 1.0, 1.0), said(desks, "failed", 1), 1) == (
        "For all desktops. 1 of 300 desktops runs it well; 1 failed; 298 have not been idle yet."
    )
    assert say(Rollout("rolled_back", why="rolled back by ann"), desks, 1) == (
        "Out of use: rolled back by ann."
    )
    assert say(begin(POLICY, [], 0, has_base=True), [], 1).startswith("No desktop")


def test_storage_keeps_everything_and_reads_other_releases() -> None:
    rollout = replace(begin(POLICY, office(10), 7.5, has_base=True), before="b" * 64, why="x")
    plain = to_plain(rollout)
    assert "state" not in plain
    assert from_plain("rolling", {**plain, "of a later release": 1}) == rollout
    assert from_plain("paused", {}) == Rollout("paused")


# --- properties --------------------------------------------------------------------------------

USES = ["", "fetching", "ready", "trial", "good", "failed", ASKED]
policies = st.builds(
    RolloutPolicy,
    stages=st.sets(st.floats(0.001, 0.999), max_size=4).map(lambda x: (*sorted(x), 1.0)),
    soak_s=st.sampled_from([0.0, 60.0, 1800.0]),
    good_share=st.floats(0, 1),
    failed_share=st.floats(0, 1),
)
moves = st.tuples(
    st.integers(0, 11),  # which desktop
    st.sampled_from(USES),
    st.booleans(),  # is it on
    st.sampled_from([1.0, 60.0, 1800.0, 90_000.0]),  # time that passes
    st.sampled_from([None, None, None, "pause", "resume"]),
)


@settings(max_examples=150, deadline=None)
@given(policies, st.integers(1, 12), st.lists(moves, max_size=25), st.booleans())
def test_any_story(policy: RolloutPolicy, count: int, story: list, has_base: bool) -> None:
    now, desks = 1000.0, office(count)
    rollout = begin(policy, desks, now, has_base=has_base)
    assert members(rollout, desks) >= 1
    for who, use, reachable, passes_s, action in story:
        now += passes_s
        index = who % count
        desks[index] = replace(desks[index], use=use, at=now, reachable=reachable)
        if (action, rollout.state) in (("pause", "rolling"), ("resume", "paused")):
            rollout = changed(rollout, action, policy, desks, now, has_base=has_base)
        before, found = rollout, tally(rollout, policy, desks, now)
        rollout = advance(before, policy, desks, now, has_before=has_base)
        is_told = {desk.machine for desk in desks if is_member(rollout, desk.place)}
        assert is_told >= {desk.machine for desk in desks if is_member(before, desk.place)}
        assert is_told, "each stage has a desktop"
        assert rollout.share >= before.share
        if before.state == "paused":
            assert rollout == before
        if rollout.share > before.share or (before.state, rollout.state) == ("rolling", "current"):
            assert found.good >= 1
            assert now - before.since >= policy.soak_s
            alone = before.share == 1 and found.newcomers == found.failed == 1
            assert found.newcomers_good >= 1 or not found.newcomers or alone
        tried = found.good + found.failed
        if rollout.state == "rolled_back" != before.state:
            assert found.failed > policy.failed_share * tried
        if before.state == "rolling" and tried and not found.good and policy.failed_share < 1:
            assert rollout.state == "rolled_back" or (before.share == 1 and found.failed == 1)
        assert say_something(rollout, policy, desks, now)
        if rollout.state == "rolled_back":
            break


def say_something(rollout: Rollout, policy: RolloutPolicy, desks: list[Desk], now: float) -> bool:
    text = words(rollout, policy, tally(rollout, policy, desks, now), now)
    return text.endswith(".") and ".." not in text


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rolling", "paused", "current", "replaced"]), st.floats(-1, 1),
            st.sampled_from(["qcow2", "ova", "qcow2 ova"]), st.sampled_from(USES),
        ),
        max_size=4,
    ),
    st.sampled_from(["qcow2", "ova", "vhdx"]),
)  # fmt: skip
def test_no_desktop_is_told_what_failed_on_it_or_what_it_cannot_use(
    images: list[tuple[str, float, str, str]], file_format: str
) -> None:
    offers = [offer(n, state, cut, fmt) for n, (state, cut, fmt, _) in enumerate(images)]
    tried = {str(n): use for n, (*_, use) in enumerate(images)}
    found = chosen(offers, machine="m7", file_format=file_format, tried=tried, running=None)
    if found is None:
        usable = [o for o in offers if file_format in o.formats and tried[o.id] != "failed"]
        assert all(o.rollout.state in ("rolling", "paused") for o in usable)
    else:
        assert tried[found.id] != "failed"
        assert file_format in found.formats
        assert found.rollout.state != "rolling" or place(found.id, "m7") <= found.rollout.cutoff


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 10**6))
def test_places_are_spread_and_differ_by_image(image: str, number: int) -> None:
    assert 0 <= place(image, f"m{number}") < 1
    assert place(image, f"m{number}") == place(image, f"m{number}")
    canaries = {min(range(50), key=lambda n: place(f"{image}{i}", f"m{n}")) for i in range(8)}
    assert len(canaries) > 1, "not the same PC is the first each time"
