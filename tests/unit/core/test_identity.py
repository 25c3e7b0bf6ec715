"""Every guest becomes one machine, and only one, whatever was copied."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.core.identity import (
    Choice,
    Decision,
    KeptIdentity,
    SeedFacts,
    decide,
    hardware_id,
)

HERE, THERE = "a" * 32, "b" * 32
KEPT = KeptIdentity("iid-1", HERE)
FRESH = SeedFacts("iid-2", True)
USED = SeedFacts("iid-1", True)
NO_CODE = SeedFacts("iid-1", False)


@pytest.mark.parametrize(
    ("has_profile", "kept", "hardware", "seed", "choice", "is_copy"),
    [
        # Nothing on the disk: only a code helps.
        (False, None, HERE, None, Choice.WAIT, False),
        (False, None, HERE, NO_CODE, Choice.WAIT, False),
        (False, None, HERE, USED, Choice.JOIN, False),
        # The power went before the profile was written; the code is asked for anew at each boot.
        (False, KEPT, HERE, USED, Choice.JOIN, False),
        (False, KEPT, THERE, USED, Choice.JOIN, True),
        # The same disk on the same computer.
        (True, KEPT, HERE, None, Choice.KEEP, False),
        (True, KEPT, HERE, NO_CODE, Choice.KEEP, False),
        (True, KEPT, HERE, USED, Choice.KEEP, False),
        (True, KEPT, HERE, SeedFacts("iid-2", False), Choice.KEEP, False),
        (True, KEPT, "", None, Choice.KEEP, False),
        # Somebody says that it is a new machine.
        (True, KEPT, HERE, FRESH, Choice.JOIN, False),
        (True, KEPT, THERE, FRESH, Choice.JOIN, True),
        # A copied disk; also with its seed disk, whose code has been used.
        (True, KEPT, THERE, None, Choice.CLONE, True),
        (True, KEPT, THERE, NO_CODE, Choice.CLONE, True),
        (True, KEPT, THERE, SeedFacts("iid-2", False), Choice.CLONE, True),
        (True, KEPT, THERE, USED, Choice.CLONE, True),
        # Joined when nothing was kept about it.
        (True, None, HERE, None, Choice.KEEP, False),
        (True, None, HERE, USED, Choice.KEEP, False),
        (True, KeptIdentity("", ""), HERE, USED, Choice.KEEP, False),
    ],
)
def test_the_rules(
    has_profile: bool, kept: KeptIdentity | None, hardware: str, seed: SeedFacts | None,
    choice: Choice, is_copy: bool,
) -> None:  # fmt: skip
    decision = decide(has_profile, kept, hardware, seed)
    assert (decision.choice, decision.is_copy) == (choice, is_copy)
    assert decision.why.endswith(".")


def test_a_disk_from_before_identities_adopts_what_it_finds() -> None:
    assert decide(True, None, HERE, USED).adopt == KeptIdentity("iid-1", HERE)
    assert decide(True, None, HERE, None).adopt == KeptIdentity("", HERE)
    assert decide(True, KeptIdentity("iid-1", ""), HERE, None).adopt == KEPT
    assert decide(True, KeptIdentity("", HERE), HERE, USED).adopt == KEPT
    assert decide(True, KEPT, HERE, USED).adopt is None
    assert decide(True, KEPT, "", None).adopt is None, "nothing is learnt from nothing"


def test_what_was_adopted_is_kept_and_a_copy_of_it_is_noticed() -> None:
    adopted = decide(True, None, HERE, None).adopt
    assert decide(True, adopted, HERE, USED).choice is Choice.KEEP
    assert decide(True, adopted, THERE, None).choice is Choice.CLONE


IDS = st.sampled_from(["", "1", "2"])


@given(
    st.booleans(),
    st.none() | st.builds(KeptIdentity, IDS, IDS),
    IDS,
    st.none() | st.builds(SeedFacts, st.sampled_from(["1", "2"]), st.booleans()),
)
def test_whatever_is_found(
    has_profile: bool, kept: KeptIdentity | None, hardware: str, seed: SeedFacts | None
) -> None:
    decision = decide(has_profile, kept, hardware, seed)
    assert (decision.choice is Choice.JOIN) <= bool(seed and seed.has_code)
    assert (decision.choice in (Choice.KEEP, Choice.CLONE)) <= has_profile
    # No copy goes on as who it was.
    other = has_profile and kept and kept.hardware_id and hardware
    if other and kept and kept.hardware_id != hardware:
        assert decision.choice in (Choice.CLONE, Choice.JOIN)
        assert decision.is_copy
    # What was decided to be kept is kept at every boot from then on.
    if decision.choice is Choice.KEEP:
        again = decide(True, decision.adopt or kept, hardware, seed)
        assert again == Decision(Choice.KEEP, again.why)


def test_the_hardware_id_follows_the_uuid() -> None:
    one = hardware_id("4C4C4544-0042-3510-8052-B4C04F4A3332\n", ["52:54:00:00:00:01"])
    assert len(one) == 32
    assert set(one) <= set("0123456789abcdef")
    assert one == hardware_id("4c4c4544-0042-3510-8052-b4c04f4a3332", [])
    assert one != hardware_id("4c4c4544-0042-3510-8052-b4c04f4a3333", ["52:54:00:00:00:01"])


@pytest.mark.parametrize(
    "none",
    ["", " \n", "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
     "Not Settable"],
)  # fmt: skip
def test_without_a_uuid_the_network_cards_count(none: str) -> None:
    one = hardware_id(none, ["52:54:00:00:00:02", "52:54:00:00:00:01\n"])
    assert one == hardware_id("", ["52:54:00:00:00:01", "52:54:00:00:00:02"])
    assert one != hardware_id(none, ["52:54:00:00:00:01"])
    assert hardware_id(none, []) == ""
    assert hardware_id(none, ["", "00:00:00:00:00:00"]) == ""


def test_twenty_copies_have_twenty_hardware_ids() -> None:
    uuids = [f"4c4c4544-0042-3510-8052-{number:012x}" for number in range(20)]
    ids = {hardware_id(uuid, []) for uuid in uuids}
    assert len(ids) == 20
    for one, other in itertools.permutations(ids, 2):
        assert decide(True, KeptIdentity("iid-1", one), other, USED).choice is Choice.CLONE
