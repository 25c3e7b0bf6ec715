"""What is wrong with a file is said in the words of its keys, never in those of a library."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from officegrid.agent.config import AgentConfig
from officegrid.coordinator.config import CoordinatorConfig, load_config
from officegrid.core.errors import UsageError
from officegrid.wire.jobfile import JobFile, parse_job_file
from officegrid.wire.mistakes import mistakes

JOB = {
    "name": "clean", "python": "m:f", "input": {"path": "a.csv"}, "output": {},
    "policy": {}, "env": {"A": "b"}, "data": {"codes": {"path": "a"}},
}  # fmt: skip
COORDINATOR: dict[str, Any] = {
    "sources": {"crm": {"url": "sqlite:////a.db"}}, "data": {"codes": {"path": "/a"}},
    "git": {}, "keep": {},
}  # fmt: skip
AGENT: dict[str, Any] = {"vm": {"guest": {}}, "images": {}, "sensors": {}}
NEVER = re.compile(r"[Ii]nput should|Value error|valid (string|integer|number|list|dict)|pydantic")
ODD: list[object] = [
    5, -1, 10**30, 0.5, float("inf"), True, "", "x", "?" * 300, [], [5], {}, {"?": 1}, ["?"] * 1000
]  # fmt: skip


def _sections(raw: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield at
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from _sections(value, (*at, key))


@pytest.mark.parametrize(
    ("model", "good"), [(JobFile, JOB), (CoordinatorConfig, COORDINATOR), (AgentConfig, AGENT)]
)
def test_no_key_with_no_value_is_answered_in_words_of_a_library(
    model: type[BaseModel], good: dict[str, Any]
) -> None:
    model.model_validate(good)
    refused = 0
    for section in _sections(good):
        keys = set(_fields(model, section)) | {"surprise"}
        for key in keys:
            for value in ODD:
                raw: dict[str, Any] = copy.deepcopy(good)
                inside = raw
                for part in section:
                    inside = inside[part]
                inside[key] = value
                try:
                    model.model_validate(raw)
                except ValidationError as error:
                    refused += 1
                    for one in mistakes(error, raw):
                        assert not NEVER.search(one.sentence), (key, value, one)
                        assert not one.sentence[0].islower(), one
                        assert one.place[: len(section)] == section[: len(one.place)], one
    assert refused > 200


def _fields(model: type[BaseModel], section: tuple[str, ...]) -> list[str]:
    """Keys of that section, by what the schema says."""
    schema = model.model_json_schema()
    here = schema
    for part in section:
        here = here.get("properties", {}).get(part) or here.get("additionalProperties") or {}
        if not isinstance(here, dict):
            return []
        here = schema["$defs"][here["$ref"].rpartition("/")[2]] if "$ref" in here else here
    return list(here.get("properties", {}))


@pytest.mark.parametrize(
    ("line", "section", "told"),
    [
        ('attempts = "1 or 2"', "policy", "attempts: must be a whole number, without quotes"),
        ("attempts = 1.5", "policy", "[policy] attempts: must be a whole number"),
        ("attempts = 0", "policy", "[policy] attempts: must be at least 1"),
        ("priority = 1000", "policy", "[policy] priority: must be at most 100"),
        ("unit_seconds = 0", "policy", "[policy] unit_seconds: must be more than 0"),
        ('follow_latest = "yes and no"', "policy", "must be true or false, without quotes"),
        ('format = "xlsx"', "output", "must be 'csv', 'ndjson', 'lines' or 'parquet'"),
        ('columns = "a,b"', "output", '[output] columns: must be a list, like ["a", "b"]'),
        ('columns = ["a", 2]', "output", "[output] columns.1: must be text in quotes"),
        ('delimiter = ";;"', "input", "[input] delimiter: must have at most 1 character"),
        ("path = 5", "input", 'must be text in quotes, or a list, like ["a", "b"]'),
        ("env = {A = 1}", "", "env.A: must be text in quotes"),
        ("policy = 3", "", "policy: must be a table of keys and values"),
        ('name = "?"', "", "must begin with a letter or a digit, and have nothing but letters, "
                           "digits and . _ - in it"),
        ('data = {"1x" = "a"}', "", "data.1x: as a name it must begin with a letter, and have"),
    ],
)  # fmt: skip
def test_a_job_file_is_told_what_is_allowed(line: str, section: str, told: str) -> None:
    lines = {"": ['name = "clean"', 'python = "m:f"'], "input": ['path = "a.csv"']}
    lines.setdefault(section, [])
    key = line.split()[0]
    lines[section] = [one for one in lines[section] if one.split()[0] != key] + [line]
    text = ""
    for name, each in lines.items():
        text += (f"[{name}]\n" if name else "") + "\n".join(each) + "\n"
    with pytest.raises(UsageError) as caught:
        parse_job_file(text, "night.toml")
    assert caught.value.what.startswith("night.toml has a mistake:\n  - ")
    assert told in caught.value.what


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("[keep]\nversions = 0", "keep.versions", "It must be at least 1."),
        ("[keep]\nversions = 'ten'", "keep.versions", "It must be a whole number, without quotes."),
        ("[keep]\nobjects = '5s'", "keep.objects", "It must be at least 60."),
        ("[keep]\nversons = 1", "keep.versons", "It is no key that is known here."),
        ("[sources.crm]\nurl = 5", "sources.crm.url", "It must be text in quotes."),
        ("[sources.crm]\nwrite = true", "sources.crm.url", "It is missing."),
        ("[data.x]\npath = 5", "data.x.path", "It must be a path in quotes."),
        ("[data.x]\npath = '/a'\nurl = 'b'", "data.x", "Give exactly one of 'path', 'url' and"),
        ("[data.'a.b']\npath = '/a'\nformat = 'x'", 'data."a.b".format', "'csv' or 'ndjson'."),
        ("[sources.'c r m']\nurl = 'x'", 'sources."c r m"', "As a name it must begin with a"),
        ("git = 5", "git", "It must be a table of keys and values."),
    ],
)
def test_the_coordinators_settings_are_told_what_is_allowed(
    tmp_path: Path, text: str, place: str, why: str
) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert caught.value.what == f"The coordinator's settings in {path} are wrong at {place!r}."
    assert why in caught.value.why


ADDRESS = "mysql://u:hunter2@h/db"


@pytest.mark.parametrize(
    "text",
    [
        f'[data.x]\nsource = "{ADDRESS}"\nsql = "select 1"',
        f'[sources]\n"{ADDRESS}" = {{ url = "sqlite:////a.db" }}',
        f'[sources."{ADDRESS}"]\nurl = 5',
        f'[keep]\nobjects = "{ADDRESS}"',
        f'[git]\nevery = "{ADDRESS}"',
        f'[peers]\nnetworks = ["{ADDRESS}"]',
        f'[data.x]\npath = "/a"\nschedule = "{ADDRESS}"',
        f'"{ADDRESS}" = 1',
    ],
)
def test_what_stands_in_the_settings_is_never_shown(text: str, tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    error = caught.value
    assert "hunter2" not in f"{error.what} {error.why} {error.fix}"
    assert error.why


@pytest.mark.parametrize(
    "text",
    ['[input]\nsource = "my db"\ntable = "t"', '[input]\nsource = "crm"\nsql = ""',
     '[input]\npath = "a"\n[output]\nsource = "crm"\ntable = ""'],
)  # fmt: skip
def test_what_no_query_and_no_table_can_be_is_a_mistake_of_the_file(text: str) -> None:
    with pytest.raises(UsageError, match="mistake"):
        parse_job_file(f'name = "a"\nrun = ["cat"]\n{text}')


def test_a_list_with_a_wrong_entry_is_one_mistake() -> None:
    with pytest.raises(UsageError) as caught:
        parse_job_file('name = "a"\nrun = ["cat"]\n[input]\npath = ["a", 5]')
    assert "has a mistake" in caught.value.what


def test_an_unknown_key_of_a_data_set_suggests_one_of_its_own() -> None:
    with pytest.raises(UsageError, match="did you mean 'path'"):
        parse_job_file('name = "a"\nrun = ["cat"]\n[input]\npath = "a"\n[data.x]\npth = "b"')
