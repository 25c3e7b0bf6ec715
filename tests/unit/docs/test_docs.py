"""The documents keep step with the code: what exists is described, what is described exists.

Everything is read from the code itself; there is no list here to forget.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

import officegrid
from officegrid.cli.main import COMMANDS, cli
from officegrid.coordinator.api import metrics
from officegrid.coordinator.app import make_app, open_coordinator
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import OfficeGridError
from officegrid.core.jobs import JobState
from officegrid.core.model import CommitOutcome, LeaseState, SpanState
from officegrid.core.roles import Permission, Role
from officegrid.core.vm import DriverError, Trouble
from officegrid.wire.jobfile import (
    DataSection,
    InputSection,
    JobFile,
    OutputSection,
    PolicySection,
    parse_job_file,
)
from officegrid.wire.work import MachineEvent

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*/README.md")])
SOURCES = sorted((ROOT / "src" / "officegrid").rglob("*.py"))
JOB_SECTIONS: dict[str, type[BaseModel]] = {
    "Top of the file": JobFile,
    "[input]": InputSection,
    "[output]": OutputSection,
    "[policy]": PolicySection,
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """From a second-level heading to the next one."""
    start = text.index(f"\n## {heading}\n") + 1
    end = text.find("\n## ", start)
    return text[start : end if end >= 0 else None]


def table_rows(text: str) -> list[list[str]]:
    """Cells of all table rows whose first cell is code."""
    rows = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in row] for row in rows]
    return [row for row in cells if row[0].startswith("`")]


def first_cells(text: str) -> list[str]:
    """The code words in the first column of all tables."""
    return [word for row in table_rows(text) for word in re.findall(r"`([^`]+)`", row[0])]


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


# --- job files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("heading", JOB_SECTIONS)
def test_job_file_keys_are_those_of_the_code(heading: str) -> None:
    model = JOB_SECTIONS[heading]
    sections = {"input", "output", "policy", "data"} if model is JobFile else set()
    written = first_cells(section(text_of("job-files.md"), heading))
    assert sorted(written) == sorted(set(model.model_fields) - sections)


def test_keys_of_a_data_entry_are_those_of_the_code() -> None:
    written = first_cells(section(text_of("job-files.md"), "[data]"))
    assert sorted(written) == sorted(DataSection.model_fields)


@pytest.mark.parametrize("heading", JOB_SECTIONS)
def test_job_file_defaults_are_those_of_the_code(heading: str) -> None:
    model = JOB_SECTIONS[heading]
    for key, default, *_ in table_rows(section(text_of("job-files.md"), heading)):
        name = key.strip("`")
        field = model.model_fields[name]
        if default == "required":
            assert field.is_required(), name
        elif default == "none":
            assert field.default is None, name
        else:
            stated = tomllib.loads(f"value = {default.strip('`')}")["value"]
            given = parsed_with(heading, {name: stated})
            assert getattr(given, name) == getattr(parsed_with(heading, {}), name), name
            assert not field.is_required(), name


def parsed_with(heading: str, values: dict[str, Any]) -> BaseModel:
    """The section of a minimal job file with `values` in it."""
    job: dict[str, Any] = {"name": "x", "python": "m:f", "input": {"path": "x.csv"}}
    place = heading.strip("[]") if heading.startswith("[") else ""
    target = job.setdefault(place, {}) if place else job
    target.update(values)
    parsed = JobFile.model_validate(job)
    found = getattr(parsed, place) if place else parsed
    assert isinstance(found, BaseModel)
    return found


def fences(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind == language:
                yield str(page.relative_to(ROOT)), body


def test_toml_in_documents_is_right() -> None:
    complete = 0
    for page, body in fences("toml"):
        tomllib.loads(body)
        if body.startswith("# job.toml"):
            parse_job_file(body, page)
            complete += 1
    assert complete >= 3


def test_python_and_json_in_documents_are_right() -> None:
    programs = list(fences("python"))
    assert programs
    for page, body in programs:
        compile(body, page, "exec")
    for _, body in fences("json"):
        json.loads(body)


# --- commands ----------------------------------------------------------------------------------


def command(words: str) -> click.Command:
    """The command, or in a group the sub-command, of that name: "submit", "agent run"."""
    found: click.Command | None = cli
    for word in words.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)
    assert found is not None
    return found


def every_command() -> list[str]:
    names = []
    for name in COMMANDS:
        found = command(name)
        below = found.list_commands(click.Context(found)) if isinstance(found, click.Group) else []
        names += [f"{name} {sub}" for sub in below] or [name]
    return names


def options_of(of: click.Command) -> set[str]:
    found: set[str] = set()
    for parameter in of.params:
        if isinstance(parameter, click.Option):
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_every_command_has_a_section_and_no_other_has() -> None:
    headings = re.findall(r"^## officegrid (.+)$", text_of("commands.md"), re.MULTILINE)
    assert sorted(headings) == sorted(every_command())


@pytest.mark.parametrize("name", every_command())
def test_every_option_is_described_and_no_other_is(name: str) -> None:
    text = section(text_of("commands.md"), f"officegrid {name}")
    known = options_of(command(name))
    stated = set(re.findall(r"`(--?[a-z][a-z-]*)`", text))
    assert known - stated == set()
    assert stated - known == set()


def test_common_options_are_described() -> None:
    intro = text_of("commands.md").partition("\n## ")[0]
    for option in options_of(cli) - {"-h", "--help"}:
        assert option in intro


def test_commands_in_documents_exist() -> None:
    """Words after `officegrid` in code, and the options that follow them."""
    seen, known = 0, set(every_command())
    for page in PAGES:
        for line in re.findall(r"officegrid ([a-z][^`\n]*)", page.read_text(encoding="utf-8")):
            words = line.split()
            name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
            if name not in known:
                continue
            seen += 1
            stated = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line.partition("#")[0]))
            assert stated <= options_of(command(name)) | {"--help"}, (page.name, line)
    assert seen > 50


# --- states, roles, metrics, routes, errors ----------------------------------------------------


@pytest.mark.parametrize(
    ("page", "heading", "words"),
    [
        ("ledger.md", "A job is an interval", SpanState),
        ("ledger.md", "Lease states", LeaseState),
        ("ledger.md", "Job states", JobState),
        ("operations.md", "Roles and join codes", Role),
        ("protocol.md", "Working", CommitOutcome),
    ],
)
def test_states_and_roles_are_described(page: str, heading: str, words: type[StrEnum]) -> None:
    assert first_cells(section(text_of(page), heading)) == [str(word) for word in words]


def test_permissions_and_machine_events_are_described() -> None:
    roles = section(text_of("operations.md"), "Roles and join codes")
    for permission in Permission:
        assert f"`{permission}`" in roles
    working = section(text_of("protocol.md"), "Working")
    for kind in get_args(MachineEvent.model_fields["kind"].annotation):
        assert f"`{kind}`" in working


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    opened = open_coordinator(tmp_path / "data", names=[])
    yield opened
    opened.writer.stop()
    opened.storage.close()


def test_every_metric_is_described(coordinator: Coordinator) -> None:
    registry = coordinator.storage.read(lambda tx: metrics._collect(coordinator, tx))
    measured = {family.name for family in registry.collect()}
    written = first_cells(section(text_of("operations.md"), "Metrics"))
    stated = {cell.partition("{")[0] for cell in written}
    assert stated == measured


def test_every_route_is_described(coordinator: Coordinator) -> None:
    paths: dict[str, dict[str, Any]] = make_app(coordinator).openapi()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert set(first_cells(section(text_of("protocol.md"), "Routes"))) == served


def error_codes() -> dict[str, int | None]:
    """Codes of all error classes, and those given where an error is raised (status None)."""
    for module in pkgutil.walk_packages(officegrid.__path__, "officegrid."):
        skipped = ("__main__", "migrations", "officegrid.testing", "warden")
        if not any(part in module.name for part in skipped):
            # A module for another system says so by an assertion, which type checkers know.
            with contextlib.suppress(AssertionError):
                importlib.import_module(module.name)
    codes: dict[str, int | None] = {}
    kinds: list[type[OfficeGridError]] = [OfficeGridError]
    while kinds:
        kind = kinds.pop()
        # Errors of drivers stay on the desktop: docs/drivers.md has them.
        if kind.__module__.startswith("officegrid.") and kind is not DriverError:
            codes[kind.code] = kind.http_status
            kinds += kind.__subclasses__()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                value = node.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    codes.setdefault(value.value, None)
    return codes


def test_every_error_code_is_described() -> None:
    codes = error_codes()
    rows = table_rows(section(text_of("protocol.md"), "Errors"))
    stated = {row[0].strip("`"): row[1] for row in rows}
    assert sorted(stated) == sorted(codes)
    for code, status in codes.items():
        if status is not None:
            assert stated[code] == str(status), code


def test_every_trouble_of_a_driver_is_described() -> None:
    assert {f"driver_{trouble}" for trouble in Trouble} <= set(first_cells(text_of("drivers.md")))


def test_every_environment_variable_is_described() -> None:
    used: set[str] = set()
    for source in SOURCES:
        if "testing" in source.parts:
            continue
        used |= set(re.findall(r"OFFICEGRID_[A-Z_]+", source.read_text(encoding="utf-8")))
    stated = set(first_cells(text_of("operations.md"))) | set(first_cells(text_of("programs.md")))
    assert used - stated == set()


# --- links and form ----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = without_fences(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_every_page_says_what_it_is_for() -> None:
    for page in DOCS.glob("*.md"):
        lines = page.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# "), page
        assert lines[2].startswith("After this page"), page


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        text = without_fences(page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            todo.append((page.parent / target).resolve())
    missing = [str(page.relative_to(ROOT)) for page in PAGES if page not in seen]
    assert missing == []


def test_the_licence_is_the_whole_one() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
