"""Whose rule holds on a machine, and what it says about own rules that do not count."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from officegrid.agent.policy import effective_policy
from officegrid.core.desk import DeskPolicy, Rule
from officegrid.core.deskrules import parse_hours, stricter
from officegrid.core.errors import UsageError
from officegrid.wire.agent import DeskRules

NOTHING = DeskRules()
OFFICE = "mon-fri 08:00-18:00"

hours = st.lists(
    st.sampled_from([OFFICE, "mon 06:00-09:00", "20:00-06:00", "sat,sun 00:00-24:00", "never"]),
    max_size=2,
)
rules = st.builds(
    DeskRules,
    idle_s=st.none() | st.sampled_from([0, 60, 300, 900]),
    lock_counts=st.none() | st.booleans(),
    cpu_busy_share=st.none() | st.floats(0, 1),
    cpu_busy_s=st.none() | st.floats(0, 60),
    cpu_idle_share=st.none() | st.floats(0, 1),
    on_battery=st.none() | st.booleans(),
    remote_session=st.none() | st.booleans(),
    memory_free_mb=st.none() | st.integers(0, 4096),
    quiet_hours=st.none() | hours,
    run_hours=st.none() | hours,
    never=st.none() | st.booleans(),
    saves_per_hour=st.none() | st.integers(0, 20),
)


def test_without_rules_the_defaults_hold() -> None:
    found = effective_policy(NOTHING, NOTHING)
    assert found.policy == DeskPolicy()
    assert set(found.origins) == {field.name for field in fields(DeskPolicy)}
    assert set(found.origins.values()) == {"default"}
    assert found.ignored == ()


def test_rules_and_policy_have_the_same_names() -> None:
    assert set(DeskRules.model_fields) == {field.name for field in fields(DeskPolicy)}


def test_the_coordinator_may_be_laxer_than_the_default() -> None:
    found = effective_policy(DeskRules(idle_s=60, on_battery=True), NOTHING)
    assert (found.policy.idle_s, found.policy.on_battery) == (60, True)
    assert found.origins["idle_s"] == "central"
    assert found.origins["settle_s"] == "default"


def test_an_own_rule_that_is_stricter_holds() -> None:
    found = effective_policy(DeskRules(idle_s=60), DeskRules(idle_s=120, settle_s=60))
    assert (found.policy.idle_s, found.policy.settle_s) == (120, 60)
    assert (found.origins["idle_s"], found.origins["settle_s"]) == ("local", "local")
    assert found.ignored == ()


@pytest.mark.parametrize(
    ("central", "local", "sentence"),
    [
        (
            {"idle_s": 300},
            {"idle_s": 60},
            "idle_s = 60 is laxer than the coordinator's 300 and is ignored.",
        ),
        ({}, {"idle_s": 60}, "idle_s = 60 is laxer than the default 300 and is ignored."),
        (
            {},
            {"on_battery": True},
            "on_battery = true is laxer than the default false and is ignored.",
        ),
        (
            {"quiet_hours": [OFFICE]},
            {"quiet_hours": []},
            f'quiet_hours = [] is laxer than the coordinator\'s ["{OFFICE}"] and is ignored.',
        ),
        (
            {"run_hours": ["20:00-06:00"]},
            {"run_hours": []},
            'run_hours = [] is laxer than the coordinator\'s ["20:00-06:00"] and is ignored.',
        ),
        (
            {"never": True},
            {"never": False},
            "never = false is laxer than the coordinator's true and is ignored.",
        ),
    ],
)
def test_an_own_rule_that_is_laxer_is_ignored_and_said_to_be(
    central: dict[str, object], local: dict[str, object], sentence: str
) -> None:
    given_rules = DeskRules.model_validate(central)
    found = effective_policy(given_rules, DeskRules.model_validate(local))
    assert found.policy == effective_policy(given_rules, NOTHING).policy
    assert found.ignored == (sentence,)
    assert "local" not in found.origins.values()


def test_the_same_rule_twice_is_nothing_to_talk_about() -> None:
    central = DeskRules(idle_s=300, quiet_hours=[OFFICE])
    local = DeskRules(idle_s=300, quiet_hours=["mon-fri 08:00-12:00", "mon-fri 12:00-18:00"])
    found = effective_policy(central, local)
    assert found.ignored == ()
    assert found.origins["quiet_hours"] == "central"


def test_quiet_hours_add_up() -> None:
    found = effective_policy(
        DeskRules(quiet_hours=[OFFICE]), DeskRules(quiet_hours=["sat 10:00-12:00"])
    )
    assert found.policy.quiet_hours == (parse_hours(OFFICE), parse_hours("sat 10:00-12:00"))
    assert found.origins["quiet_hours"] == "local"
    assert found.ignored == ()


def test_own_run_hours_count_only_within_the_given_ones() -> None:
    found = effective_policy(
        DeskRules(run_hours=["20:00-06:00"]), DeskRules(run_hours=["18:00-22:00"])
    )
    assert found.policy.run_hours == (parse_hours("20:00-22:00"),)
    assert found.origins["run_hours"] == "local"
    assert found.ignored == (
        'run_hours = ["18:00-22:00"] is partly outside the coordinator\'s ["20:00-06:00"];'
        ' ["20:00-22:00"] remain.',
    )


def test_an_own_rule_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        effective_policy(NOTHING, DeskRules(quiet_hours=["office hours"]))
    assert caught.value.what.startswith("The rule quiet_hours of this machine is wrong:")
    assert caught.value.fix


@pytest.mark.parametrize("never", [None, False, True])
def test_a_central_rule_that_cannot_be_read_forbids_all(never: bool | None) -> None:
    central = DeskRules(idle_s=60, quiet_hours=["lunch time"], never=never)
    found = effective_policy(central, DeskRules(never=False))
    assert found.policy.never
    assert found.policy.idle_s == 60
    assert len(found.problems) == 1
    assert "'lunch time'" in found.problems[0]


@given(rules, rules)
def test_the_outcome_is_as_strict_as_the_coordinators_whatever_the_own_rules(
    central: DeskRules, local: DeskRules
) -> None:
    base = effective_policy(central, NOTHING).policy
    found = effective_policy(central, local)
    assert stricter(found.policy, base) == stricter(found.policy, found.policy)
    for name, origin in found.origins.items():
        if origin == "local":
            assert getattr(local, name) is not None
        elif origin == "default":
            assert getattr(central, name) is None
            assert getattr(found.policy, name) == getattr(DeskPolicy(), name)
        else:
            assert getattr(central, name) is not None
            assert getattr(found.policy, name) == getattr(base, name)


@given(rules, rules)
def test_every_own_rule_either_holds_or_is_explained(central: DeskRules, local: DeskRules) -> None:
    base = effective_policy(central, NOTHING).policy
    found = effective_policy(central, local)
    stated = {name for name, value in local.model_dump().items() if value is not None}
    silent = {
        name
        for name in stated
        if found.origins[name] != "local"
        and not any(sentence.startswith(f"{name} =") for sentence in found.ignored)
    }
    # What is neither taken nor explained says the same as the rule that holds.
    own = effective_policy(local, NOTHING).policy
    for name in silent:
        as_given, as_own = (getattr(stricter(each, each), name) for each in (base, own))
        assert as_given == as_own


# --- the page for people

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "idle-policy.md").read_text(encoding="utf-8")


def test_the_page_lists_every_rule_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \| ", PAGE, flags=re.MULTILINE))
    empty = {"quiet_hours": "none", "run_hours": "all"}
    expected = {}
    for field in fields(DeskPolicy):
        value = getattr(DeskPolicy(), field.name)
        text = str(value).lower() if isinstance(value, bool) else empty.get(field.name)
        expected[field.name] = text or f"{value:g}"
    assert {name: rows.get(name) for name in expected} == expected


def test_the_page_names_every_reason() -> None:
    missing = [rule.value for rule in Rule if f"`{rule.value}`" not in PAGE]
    assert not missing
