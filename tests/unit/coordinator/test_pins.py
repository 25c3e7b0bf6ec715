"""Which version a job runs: at its start, while it follows, in a retry, in a rerun."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from office_kit import Office

from officegrid.coordinator.service import inputs, lifecycle, lineage, pins, versions
from officegrid.core.errors import ConflictError, NotFoundError
from officegrid.core.jobs import JobState
from officegrid.storage.api import Job, Tx
from officegrid.wire.sql import QueryInput

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.storage.close()


def _push(office: Office, name: str, digest: str, kind: str = "code") -> list[str]:
    def push(grid: object, tx: Tx) -> list[str]:
        versions.push(tx, kind, name, digest, by="ann", origin="", now=office.now)
        return pins.switch_followers(office.grid, tx, kind, name, office.now)

    return office.do(push)


def _newest(office: Office, name: str) -> str | None:
    found = office.storage.read(lambda tx: tx.version("code", name))
    return None if found is None else found.digest


def test_another_submit_is_followed_like_a_push(office: Office) -> None:
    job = office.submit(bundle=A, follow=True)
    unit = office.claim()[0]
    office.submit(bundle=B, follow=True)
    assert office.job(job).bundle == B
    assert office.commit(unit) == "committed", "a unit under way ends under the old one"
    assert office.claim()[0].bundle == B


def test_a_retry_of_a_job_that_follows_runs_what_is_newest_then(office: Office) -> None:
    job = office.submit(bundle=A, follow=True)
    assert office.work(job, [30]).state is JobState.FINISHED
    assert _push(office, "job", B) == [], "it runs no more"
    office.retry(job)
    assert office.claim()[0].bundle == B


def test_a_retry_with_a_version_that_is_there_does_not_make_it_the_newest(office: Office) -> None:
    _push(office, "clean", A)
    _push(office, "clean", B)
    job = office.submit(code={"name": "clean", "n": 2})
    office.work(job, [30])
    office.retry(job, A)
    assert _newest(office, "clean") == B
    assert office.claim()[0].bundle == A
    assert office.job(job).spec["code"] == {"name": "clean", "n": 1}


def test_corrected_code_of_a_job_that_names_a_program_is_kept_under_the_jobs_name(
    office: Office,
) -> None:
    _push(office, "clean", A)
    job = office.submit(code={"name": "clean"})
    office.work(job, [30])
    office.retry(job, C)
    assert (_newest(office, "clean"), _newest(office, "job")) == (A, C)


def test_a_rerun_changes_nothing_for_others(office: Office) -> None:
    job = office.submit(bundle=A)
    office.work(job)

    def as_of_before_versions(_: object, tx: Tx) -> None:
        tx.update_job(job.id, spec={**office.job(job).spec, "code": None})

    office.do(as_of_before_versions)
    _push(office, "job", B)
    again = office.do(lambda grid, tx: lineage.rerun(grid, tx, office.job(job), "me", office.now))
    assert _newest(office, "job") == B
    assert office.job(again).bundle == A


def test_data_is_followed_too_and_an_exact_version_is_never_left(office: Office) -> None:
    _push(office, "codes", A, "data")
    data = {"data": {"codes": {"name": "codes"}}}
    following = office.submit("f", follow=True, **data)
    exact = office.submit("e", follow=True, data={"codes": {"name": "codes", "n": 1}})
    still = office.submit("s", **data)
    assert _push(office, "codes", B, "data") == [following.id]

    def digest(job: Job) -> str:
        pin = office.storage.read(lambda tx: tx.pin(job.id))
        assert pin is not None
        return pin.data["codes"].digest

    assert [digest(job) for job in (following, exact, still)] == [B, A, A]


def test_a_version_that_was_cleaned_up_holds_the_job_with_a_way_out(office: Office) -> None:
    _push(office, "clean", A)
    _push(office, "clean", B)
    office.submit("first")
    waiting = office.submit("second", code={"name": "clean", "n": 1}, after=["first"])
    office.do(lambda grid, tx: tx.set_version_gone("code", "clean", 1))
    while units := office.claim():
        office.commit(units[0])
    held = office.job(waiting)
    assert held.state is JobState.HELD
    assert "Version 1 of clean is gone" in held.reason
    with pytest.raises(ConflictError, match="is gone"):
        office.submit("third", code={"name": "clean", "n": 1})
    with pytest.raises(NotFoundError, match="no version 7"):
        office.submit("third", code={"name": "clean", "n": 7})


def test_a_worker_that_does_not_say_its_version_gets_no_job_with_data(office: Office) -> None:
    from officegrid.coordinator.service import claims
    from officegrid.wire.work import ClaimRequest

    _push(office, "codes", A, "data")
    office.submit(data={"codes": {"name": "codes"}})
    old = ClaimRequest(session_id="s", units=1)
    assert (
        office.do(lambda grid, tx: claims.claim(grid, tx, office.worker, old, office.now)).units
        == []
    )
    assert office.claim()[0].data["codes"].digest == A


def test_only_the_job_that_was_released_accepts_other_columns(office: Office) -> None:
    columns = [{"name": "b", "kind": "integer", "declared": "int"}]
    query = QueryInput(source="crm", table="people")
    first = office.submit(dataset=None, query=query)
    office.do(lambda grid, tx: inputs.refuse(tx, office.job(first), columns, "b", office.now))
    assert office.job(first).state is JobState.HELD
    second = office.submit(dataset=None, query=query)

    def accepts(job: Job) -> bool:
        return office.storage.read(lambda tx: inputs.accepts(tx, job, columns))

    assert (accepts(first), accepts(second)) == (True, False)
    office.do(
        lambda grid, tx: lifecycle.release_hold(grid, tx, office.job(first), None, office.now)
    )
    assert office.job(first).state is JobState.WAITING
    assert [job.id for job in office.storage.read(inputs.to_read)] == [first.id, second.id]
