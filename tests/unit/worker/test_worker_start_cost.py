"""A worker loads what it needs and little else: an emulated processor pays dearly for each module.

What is loaded is compared, not time. The figures are in `python -m bench start`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from program_runs import numbers, runner_for, text_of

from officegrid.coordinator.pki import ensure_pki
from officegrid.transport.profile import Profile, save_profile
from officegrid.wire.work import Program

SERVER_SIDE = (
    "alembic", "cryptography", "cronsim", "duckdb", "fastapi", "prometheus_client", "sqlalchemy",
    "starlette", "structlog", "uvicorn",
)  # fmt: skip
OTHER_PROGRAMS = tuple(
    f"officegrid.{name}" for name in ("agent", "client", "coordinator", "demo", "guest", "image",
                                      "storage", "testing")
)  # fmt: skip
OTHER_MESSAGES = tuple(f"officegrid.wire.{name}" for name in ("agent", "images", "jobfile", "jobs"))
SELDOM = (
    "asyncio", "difflib", "multiprocessing", "rich", "sqlite3", "tomllib", "psutil",
    "officegrid.bundles.pack", "officegrid.bundles.delta", "officegrid.wire.catalogue",
    "officegrid.worker.fetching", "officegrid.worker.mariadb", "officegrid.data.convert",
    "officegrid.data.parquet",
    "officegrid.worker.exec_program", "officegrid.worker.python_program",
)  # fmt: skip
WAITS_WITHIN_S = 60


def within(loaded: set[str], forbidden: tuple[str, ...]) -> list[str]:
    """Those of `loaded` that are forbidden, or lie in a forbidden package."""
    return sorted(
        name for name in loaded if any(name == f or name.startswith(f"{f}.") for f in forbidden)
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All modules of an `officegrid worker` that has got as far as its first claim."""
    home = tmp_path_factory.mktemp("home")
    pki = ensure_pki(tmp_path_factory.mktemp("pki"), [], 1_800_000_000.0)
    # Nobody listens on port 1: the worker asks, and goes on waiting.
    profile = Profile("https://127.0.0.1:1", pki.ca_pem, "t" * 40, "m1", "worker", "w")
    save_profile(profile, home)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OFFICEGRID", "PYTHON"))}
    worker = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "officegrid", "worker"],
        env={**env, "OFFICEGRID_HOME": str(home)}, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = ""
    deadline = threading.Timer(WAITS_WITHIN_S, worker.kill)
    deadline.start()
    try:
        assert worker.stderr is not None
        for line in worker.stderr:
            said += line
            if "link.coordinator_away" in line:
                break
        else:
            raise AssertionError(f"the worker ended:\n{said}")
    finally:
        deadline.cancel()
        worker.kill()
        worker.communicate()
    return set(re.findall(r"^import time: .*\| +([\w.]+)$", said, re.MULTILINE))


def test_what_a_worker_does_load_is_seen(loaded: set[str]) -> None:
    """Or else the other tests here could not fail."""
    wanted = {"officegrid.worker.worker", "officegrid.wire.work", "httpx2", "httpcore2", "pydantic"}
    assert wanted <= loaded


@pytest.mark.parametrize("forbidden", [SERVER_SIDE, OTHER_PROGRAMS, OTHER_MESSAGES, SELDOM])
def test_a_worker_does_not_load_what_it_does_not_need(
    loaded: set[str], forbidden: tuple[str, ...]
) -> None:
    assert within(loaded, forbidden) == []


def test_the_systems_list_of_authorities_is_not_read(loaded: set[str]) -> None:
    """Only the grid's own one is believed, and to read 150 others takes a while."""
    assert within(loaded, ("certifi",)) == []


LOOK = """
import sys
LOADED = sorted(sys.modules)
import decimal, helper, os
def record(row):
    children = os.environ["PYTHONPYCACHEPREFIX"]
    return {"loaded": " ".join(LOADED), "own": sys.pycache_prefix or "", "children": children}
"""


def test_a_program_starts_with_little_and_compiles_only_what_is_its_own(tmp_path: Path) -> None:
    program = Program(python="work:record")
    for _ in range(2):  # the second start finds what the first one compiled
        with runner_for(tmp_path, program, work=LOOK, helper="VALUE = 1") as runner:
            names, own, children = text_of(runner.process(numbers(1))).split(",")
        assert within(set(names.split()), ("dataclasses", "inspect", "pathlib", "officegrid")) == []
        assert own == ""
        compiled = tmp_path / "scratch" / "pycache"
        assert children == f"{compiled}\n", "other Pythons cannot be told otherwise"
        bundle = tmp_path / "bundle"
        found = {path.name.partition(".")[0]: path for path in compiled.rglob("*.pyc")}
        assert all(str(path).startswith(f"{compiled}{bundle}") for path in found.values()), found
        assert set(found) == {"work", "helper"}
        assert not list(bundle.rglob("*.pyc"))


@pytest.mark.parametrize("asked", ["", ".", "kept", "/proc/nowhere"])
def test_a_job_cannot_have_its_bundle_written_to(tmp_path: Path, asked: str) -> None:
    """Neither by its own process, nor by another Python that it starts: "" means "beside the
    source" to Python, and a relative folder one in the bundle."""
    program = Program(python="work:record", env={"PYTHONPYCACHEPREFIX": asked, "OTHER": "x"})
    work = """
import helper, os, subprocess, sys
def record(row):
    subprocess.run([sys.executable, "-c", "import alone"], check=True)
    return {"own": sys.pycache_prefix or "", "other": os.environ["OTHER"]}
"""
    modules = {"work": work, "helper": "VALUE = 1", "alone": "VALUE = 2"}
    with runner_for(tmp_path, program, **modules) as runner:
        assert text_of(runner.process(numbers(1))) == ",x\n"
    bundle = tmp_path / "bundle"
    assert sorted(path.name for path in bundle.iterdir()) == ["alone.py", "helper.py", "work.py"]
    compiled = tmp_path / "scratch" / "pycache"
    kept = {path.name.partition(".")[0] for path in (compiled / str(bundle)[1:]).rglob("*.pyc")}
    assert kept == {"alone", "helper", "work"}


def test_a_changed_module_is_compiled_again(tmp_path: Path) -> None:
    """Two bundles never share a folder, but a person's clock and editor may do anything."""
    program = Program(python="work:record")
    for number, name in ((1, "one"), (2, "three")):
        work = f"import helper\ndef record(row): return {{'n': helper.{name}}}"
        with runner_for(tmp_path, program, work=work, helper=f"{name} = {number}") as runner:
            assert text_of(runner.process(numbers(1))) == f"{number}\n"


def test_code_that_was_compiled_by_a_broken_disk_is_compiled_again(tmp_path: Path) -> None:
    program = Program(python="work:record")
    work = "def record(row): return {'n': 1}"
    for _ in range(2):
        with runner_for(tmp_path, program, work=work) as runner:
            assert text_of(runner.process(numbers(1))) == "1\n"
        kept = list((tmp_path / "scratch" / "pycache").rglob("work*.pyc"))
        assert len(kept) == 1
        kept[0].write_bytes(b"")
