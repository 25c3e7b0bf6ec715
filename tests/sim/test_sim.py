"""Whole grids in virtual time. A failure prints its seed and the command that replays it.

`OFFICEGRID_SIM_SEEDS=1000` runs seeds 1 to 1000 instead of the quick set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from officegrid.coordinator.service import claims, commits, output, pins, returns
from officegrid.core import ledger
from officegrid.core.ledger_view import LedgerView
from officegrid.core.model import CommitOutcome, CommitResult, Edit, LeaseState, SpanState
from officegrid.storage.api import Job, JobPin, Tx
from officegrid.testing.simulator.params import draw
from officegrid.testing.simulator.server import Server, forget_empty_database
from officegrid.testing.simulator.universe import run_seed

QUICK_SEEDS = 60
GROUP = 10
SEEDS = int(os.environ.get("OFFICEGRID_SIM_SEEDS", QUICK_SEEDS))


@pytest.fixture(autouse=True, scope="module")
def _no_leftovers() -> Iterator[None]:
    yield
    forget_empty_database()


@pytest.mark.parametrize("first", range(1, SEEDS + 1, GROUP))
def test_faults_do_no_harm_and_then_everything_finishes(first: int) -> None:
    reports = []
    for seed in range(first, min(first + GROUP, SEEDS + 1)):
        outcome = run_seed(seed)
        print(f"seed {seed}: {outcome.commits} commits, log {outcome.digest[:12]}")
        if not outcome.is_well:
            reports.append(outcome.report)
    assert not reports, "\n\n".join(reports)


def test_the_same_seed_gives_the_same_history() -> None:
    seed = 9
    here = run_seed(seed)
    again = run_seed(seed)
    assert (here.digest, here.steps) == (again.digest, again.steps)
    code = (
        "from officegrid.testing.simulator.universe import run_seed\n"
        "from officegrid.testing.simulator.server import forget_empty_database\n"
        f"print(run_seed({seed}).digest)\n"
        "forget_empty_database()"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == here.digest


def test_seeds_differ_and_every_fault_is_on_in_some_and_off_in_others() -> None:
    drawn = [draw(seed) for seed in range(200)]
    kinds = (
        "lost", "duplicated", "delayed", "worker_crashes", "freezes", "users_back", "clones",
        "cuts", "coordinator_crashes", "clock_steps", "job_orders", "pushes", "revocations",
        "stubborn",
    )  # fmt: skip
    for kind in kinds:
        on = sum(bool(getattr(params, kind)) for params in drawn)
        assert 20 < on < 180, kind
    assert {1, 40} <= {params.machines for params in drawn}
    assert any(params.is_gentle for params in drawn)
    assert any(job.killers for params in drawn for job in params.jobs)
    assert any(job.input_job for params in drawn for job in params.jobs)


# --- the checkers can fail


def _first_report(within: int = 40) -> str:
    """What the first of `within` universes says that finds something."""
    for seed in range(1, within + 1):
        report = run_seed(seed).report
        if report:
            assert f"--seed {seed}" in report
            assert "machines = " in report
            return report
    return ""


def _take_stale(
    honest: Callable[..., CommitResult], view: LedgerView, **asked: Any
) -> CommitResult:
    """A commit that counts although another worker has the records, or has committed them."""
    result = honest(view, **asked)
    lease = view.lease(asked["lease_id"])
    if result.outcome is not CommitOutcome.REFUSED or lease is None:
        return result
    if lease.state not in (LeaseState.EXPIRED, LeaseState.SUPERSEDED):
        return result
    inside = [
        span
        for span in view.spans_over(lease.start, lease.end)
        if lease.start <= span.start and span.end <= lease.end
    ]
    others = view.live_leases_over(lease.start, lease.end)
    losers = [
        replace(other, state=LeaseState.SUPERSEDED)
        for other in others
        if any(span.start == other.start for span in inside)
    ]
    done = tuple(replace(span, state=SpanState.DONE, attempts=0) for span in inside)
    leases = (replace(lease, state=LeaseState.COMMITTED), *losers)
    return CommitResult(CommitOutcome.COMMITTED, Edit(tuple(inside), done, leases))


def test_a_ledger_that_takes_stale_commits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ledger.commit
    monkeypatch.setattr(ledger, "commit", lambda view, **asked: _take_stale(honest, view, **asked))
    report = _first_report()
    assert "committed twice" in report or "have an output already" in report, report


def test_an_acknowledgement_before_the_disk_has_it_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A power cut that takes the log's last writes with it."""
    honest = Server._take_files

    def forgetful(self: Server) -> None:
        honest(self)
        log = self._folder / f"life-{self._lives + 1}.db-wal"
        if log.exists():
            log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])

    monkeypatch.setattr(Server, "_take_files", forgetful)
    assert "VIOLATION" in _first_report()


def test_output_out_of_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = output.slices

    def careless(*args: Any, **asked: Any) -> Iterator[tuple[int, Sequence[Any]]]:
        for end, slices in honest(*args, **asked):
            yield end, slices[::-1]

    monkeypatch.setattr(output, "slices", careless)
    assert "is wrong from line" in _first_report()


def test_a_lost_quarantine_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = commits._quarantined

    def careless(*args: Any) -> Any:
        return replace(honest(*args), raw=b"")

    monkeypatch.setattr(commits, "_quarantined", careless)
    assert "has the bytes b''" in _first_report()


def test_units_that_are_never_taken_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returns, "expire", lambda grid, tx, now: 0)
    monkeypatch.setattr(ledger, "duplicate", lambda view, **asked: None)
    for module in (claims, returns):
        monkeypatch.setattr(module, "give_back", lambda *args, **asked: None)
    assert "No progress" in _first_report(within=15)


def test_a_part_that_names_another_version_than_its_units_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def careless(tx: Tx, job: Job, number: int) -> JobPin:
        return pins.current(tx, job)

    monkeypatch.setattr(pins, "pin_of", careless)
    assert "ran bundle" in _first_report()
