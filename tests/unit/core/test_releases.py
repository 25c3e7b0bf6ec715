"""Which release is in force, who is told to go to it, and who is below the floor."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.errors import ConflictError
from officegrid.core.floor import (
    OWN_IMAGE,
    Floor,
    Outlook,
    short,
    stale_desk,
    stale_worker,
    told,
    why_stale,
)
from officegrid.core.releases import (
    MOST_KEPT,
    Releases,
    ReleaseState,
    Runs,
    from_plain,
    order_for,
    pushed,
    retried,
    rolled_back,
    to_plain,
)


def push(known: Releases, version: str, digest: str = "") -> Releases:
    digest = digest or version.rjust(64, "0")
    return pushed(known, digest=digest, version=version, size=9, by="ann", now=1.0)


def goes_to(known: Releases, runs: Runs) -> str | None:
    go = order_for(known, runs)
    if go is None:
        return None
    return go.release.version if go.release else "home"


ONE = push(Releases(), "0.2.0")
TWO = push(ONE, "0.3.0")


def at(known: Releases, version: str, failed: tuple[str, int] = ("", 0)) -> Runs:
    """A worker that runs a pushed release."""
    digest = next(one.digest for one in known.all if one.version == version)
    return Runs(version, digest, failed)


def test_who_is_told_to_go_where() -> None:
    assert goes_to(Releases(), Runs("0.1.0")) is None
    assert goes_to(ONE, Runs("0.1.0")) == "0.2.0"
    assert goes_to(ONE, Runs("odd")) == "0.2.0"
    assert goes_to(ONE, Runs("0.2.0")) is None, "the same version, as it was installed there"
    assert goes_to(ONE, Runs("0.5.0")) is None, "newer only"
    assert goes_to(TWO, at(TWO, "0.2.0")) == "0.3.0"
    assert goes_to(TWO, at(TWO, "0.3.0")) is None


def test_what_is_withdrawn_is_left_by_all() -> None:
    back = rolled_back(TWO)
    assert [one.state for one in back.all] == [ReleaseState.IN_FORCE, ReleaseState.WITHDRAWN]
    assert goes_to(back, at(back, "0.3.0")) == "0.2.0"
    assert goes_to(back, Runs("0.3.0")) == "0.2.0", "installed there, and withdrawn all the same"
    assert goes_to(back, Runs("0.4.0")) is None
    home = rolled_back(back)
    assert home.in_force is None
    assert goes_to(home, at(home, "0.3.0")) == "home"
    assert goes_to(home, Runs("0.3.0")) is None, "there is nothing to go to"
    again = push(home, "0.3.0")
    assert again.in_force is not None
    assert again.in_force.number > TWO.in_force.number if TWO.in_force else False
    for change in (rolled_back, retried):
        with pytest.raises(ConflictError, match="There is no release"):
            change(home)


def test_what_failed_is_not_ordered_again_before_another_order() -> None:
    assert ONE.in_force is not None
    failed = (ONE.in_force.digest, ONE.in_force.number)
    assert goes_to(ONE, Runs("0.1.0", failed=failed)) is None
    assert goes_to(retried(ONE), Runs("0.1.0", failed=failed)) == "0.2.0"
    assert goes_to(push(ONE, "0.2.0"), Runs("0.1.0", failed=failed)) == "0.2.0"
    assert goes_to(TWO, Runs("0.1.0", failed=failed)) == "0.3.0"


def test_one_version_is_one_content_and_pushes_only_go_up() -> None:
    with pytest.raises(ConflictError, match="with other content"):
        push(ONE, "0.2.0", "f" * 64)
    with pytest.raises(ConflictError, match="with other content"):
        push(ONE, "0.2", "f" * 64)
    with pytest.raises(ConflictError, match=r"older than 0\.3\.0"):
        push(TWO, "0.2.5")
    assert push(rolled_back(TWO), "0.2.5").in_force is not None


@given(st.lists(st.sampled_from(["push", "back", "retry", "old"]), max_size=60))
def test_whatever_is_done_one_release_at_most_is_in_force(history: list[str]) -> None:
    known, next_version = Releases(), 1
    for what in history:
        before = known
        try:
            if what == "push":
                known, next_version = push(known, f"0.{next_version}"), next_version + 1
            elif what == "old" and known.all:
                known = push(known, known.all[0].version)
            elif what != "old":
                known = rolled_back(known) if what == "back" else retried(known)
        except ConflictError:
            continue
        assert sum(one.state is ReleaseState.IN_FORCE for one in known.all) <= 1
        assert known.number >= before.number
        assert len(known.all) <= MOST_KEPT
        if known.in_force is not None:
            assert known.in_force.number == max(one.number for one in known.all)
        assert from_plain(json.loads(json.dumps(to_plain(known)))) == known


def test_who_is_below_the_floor() -> None:
    floor = Floor("0.2.0", "0.1.5", 3)
    assert stale_worker("0.2.0", floor) == []
    assert stale_worker("", Floor()) == [], "without a floor nobody is too old"
    assert [short(one) for one in stale_worker("", floor)] == [
        "worker of unknown version is below the floor 0.2.0"
    ]
    assert stale_worker("nonsense", floor)
    assert stale_worker("0.2.0rc1", floor)
    assert stale_desk("0.1.5", 3, floor) == []
    assert stale_desk("0.1.5", None, floor) == [], "it has no VM"
    found = [short(one) for one in stale_desk("0.1.4", OWN_IMAGE, floor)]
    assert found == [
        "agent 0.1.4 is below the floor 0.1.5", "image of its own is below the floor 3",
    ]  # fmt: skip


def test_why_says_the_rule_its_version_the_floor_and_what_would_change_it() -> None:
    (stale,) = stale_worker("0.1.0", Floor("0.2.0"))
    assert told(stale) == (
        "The worker runs officegrid 0.1.0, which is below the floor 0.2.0, so this machine gets "
        "no units until it is updated."
    )
    rule, change = why_stale("pc", stale, Outlook())
    assert rule == (
        "pc gets no units: the worker runs officegrid 0.1.0, which is below the floor 0.2.0. "
        "`officegrid floor` shows that rule."
    )
    assert "officegrid update push" in change
    assert "update itself to 0.3.0" in why_stale("pc", stale, Outlook(order="0.3.0"))[1]
    failed = why_stale("pc", stale, Outlook(failed="0.3.0", failed_why="It broke."))[1]
    assert failed == (
        "Its update to 0.3.0 did not work there: It broke. `officegrid update retry` has it try "
        "again."
    )
    agent, image = stale_desk("", 2, Floor(agent="0.2", image=3))
    assert "agent does not say which officegrid it is" in why_stale("pc", agent, Outlook())[0]
    assert "officegrid image list" in why_stale("pc", image, Outlook())[1]
