"""Jobs that wait, take turns, come first, are held, released and cancelled."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from acceptance.conftest import MakeGrid
from acceptance.grid import Grid, answered, wait_for
from acceptance.projects import double_job, expected_output, write_job
from officegrid.core.errors import ConflictError, OfficeGridError
from officegrid.wire.work import ClaimReply, ClaimRequest, CommitReply, CommitRequest


def test_a_job_waits_for_another_and_takes_its_output_as_input(grid: Grid, tmp_path: Path) -> None:
    first = double_job(tmp_path / "p", records=400, bad_every=100, name="first")
    job = """
        name = "second"
        python = "more:record"
        [input]
        output_of = "first"
        [output]
        path = "out.csv"
        """
    code = "def record(row):\n    return {'id': row['id'], 'four': str(2 * int(row['double']))}\n"
    second = write_job(tmp_path / "q", job, {"more.py": code})
    third = double_job(tmp_path / "r", records=10, name="third")
    third.write_text(third.read_text().replace("[input]", 'after = ["second"]\n[input]', 1))

    grid.join("me", "submitter")
    too_soon = grid.run("submit", str(second), home="me")
    assert too_soon.returncode == 1
    assert "first" in too_soon.stderr

    first_id = grid.submit(first)
    second_id, third_id = grid.submit(second), grid.submit(third)
    assert grid.job(second_id).state == grid.job(third_id).state == "waiting"
    assert "waits for first (running)" in grid.ok("why", second_id)
    assert "waits for second (waiting)" in grid.ok("why", third_id)
    grid.worker("w1")
    views = [grid.wait_job(job_id) for job_id in (first_id, second_id, third_id)]
    assert views[0].ended_at <= views[1].started_at  # type: ignore[operator]
    assert views[1].ended_at <= views[2].started_at  # type: ignore[operator]
    assert views[1].total == 396, "what the first job quarantined is not in its output"
    rows = csv.DictReader(io.StringIO(expected_output(first).output.decode(), newline=""))
    expected = "id,four\n" + "".join(f"{r['id']},{2 * int(r['double'])}\n" for r in rows)
    assert grid.output(second_id, tmp_path / "second.csv").decode() == expected


def test_a_job_that_waits_for_a_cancelled_one_is_held_and_says_so(
    grid: Grid, tmp_path: Path
) -> None:
    first = grid.submit(double_job(tmp_path / "p", records=10, name="first"))
    waiting = double_job(tmp_path / "q", records=10, name="waiting")
    waiting.write_text(waiting.read_text().replace("[input]", 'after = ["first"]\n[input]', 1))
    waiting_id = grid.submit(waiting)
    grid.ok("cancel", first)
    assert grid.job(waiting_id).state == "held"
    assert "waits for first, which was cancelled" in grid.ok("why", waiting_id)


def test_higher_priority_goes_first(grid: Grid, tmp_path: Path) -> None:
    low = double_job(tmp_path / "p", records=500, pause_s=0.004, name="low")
    high = double_job(
        tmp_path / "q", records=500, pause_s=0.004, name="high", policy="priority = 5\n"
    )
    low_id = grid.submit(low)
    grid.worker("w1")
    grid.wait_done(low_id, 16)
    high_id = grid.submit(high)
    low_view, high_view = grid.wait_job(low_id), grid.wait_job(high_id)
    assert high_view.created_at > low_view.created_at
    assert high_view.ended_at < low_view.ended_at  # type: ignore[operator]


def test_equal_jobs_share_one_worker(grid: Grid, tmp_path: Path) -> None:
    one = grid.submit(double_job(tmp_path / "p", records=600, pause_s=0.004, name="one"))
    two = grid.submit(double_job(tmp_path / "q", records=600, pause_s=0.004, name="two"))
    grid.worker("w1")
    wait_for(lambda: grid.job(one).done and grid.job(two).done, "both have begun")
    first = wait_for(
        lambda: next((j for j in (one, two) if grid.job(j).state == "finished"), None),
        "one of them ends",
    )
    other = grid.job(two if first == one else one)
    assert other.done > 300, "while one ran, the other hardly moved"
    assert grid.wait_job(other.id).done == 600


def test_a_held_job_rests_and_goes_on_when_released(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(tmp_path / "p", records=900, pause_s=0.004)
    job_id = grid.submit(job_file)
    grid.worker("w1")
    grid.wait_done(job_id, 30)
    grid.ok("hold", job_id, "--reason", "the lawyers look at it")
    assert "the lawyers look at it" in grid.ok("why", job_id)
    rested = wait_for(
        lambda: view if not (view := grid.job(job_id)).units_running else None, "units end"
    )
    # another job gets the worker meanwhile, and this one does not move
    other = grid.submit(double_job(tmp_path / "q", records=100, name="other"))
    grid.wait_job(other)
    assert grid.job(job_id).done == rested.done < 900
    grid.ok("release", job_id)
    assert grid.wait_job(job_id).done == 900
    assert grid.output(job_id, tmp_path / "out.csv") == expected_output(job_file).output


def test_a_cancelled_job_keeps_what_is_committed_and_refuses_the_rest(
    grid: Grid, tmp_path: Path
) -> None:
    job_file = double_job(tmp_path / "p", records=2000, pause_s=0.004)
    job_id = grid.submit(job_file)
    grid.worker("w1")
    grid.wait_done(job_id, 100)
    grid.ok("cancel", job_id)
    view = grid.job(job_id)
    assert view.state == "cancelled"
    assert view.units_running == 0
    other = grid.submit(double_job(tmp_path / "q", records=100, name="other"))
    grid.wait_job(other)
    assert grid.job(job_id).done == view.done, "a unit of a cancelled job was committed"
    output = grid.output(job_id, tmp_path / "out.csv")
    whole = expected_output(job_file).output
    assert output
    assert whole.startswith(output), "the committed beginning"
    again = grid.run("cancel", job_id)
    assert again.returncode == 1
    assert "it is cancelled" in again.stderr


def test_the_commit_of_a_unit_of_a_cancelled_job_is_refused(grid: Grid, tmp_path: Path) -> None:
    job_id = grid.submit(double_job(tmp_path / "p", records=20))
    grid.join("w1", "worker")
    with grid.connection_of("w1") as machine:
        claim = ClaimRequest(session_id="s1", units=1)
        unit = machine.call("POST", "/v1/claim", body=claim, reply=ClaimReply).units[0]
        grid.ok("cancel", job_id)
        commit = CommitRequest(
            session_id="s1", lease_id=unit.lease_id, job_id=job_id, start=unit.start, end=unit.end
        )
        reply = machine.call("POST", "/v1/commit", body=commit, reply=CommitReply)
        assert reply.outcome == "refused"
        assert "cancelled" in reply.reason
        assert not machine.call("POST", "/v1/claim", body=claim, reply=ClaimReply).units


def test_the_first_commit_wins_repeats_are_answered_alike_and_late_ones_refused(
    make_grid: MakeGrid, tmp_path: Path
) -> None:
    grid = make_grid(lease_s=2)
    grid.start()
    job_id = grid.submit(double_job(tmp_path / "p", records=10))
    for name in ("w1", "w2"):
        grid.join(name, "worker")
    with grid.connection_of("w1") as one, grid.connection_of("w2") as two:
        mine = one.call(
            "POST", "/v1/claim", body=ClaimRequest(session_id="a"), reply=ClaimReply
        ).units[0]
        wait_for(lambda: grid.job(job_id).leased == 0, "the lease of w1 expires", 10)
        theirs = two.call(
            "POST", "/v1/claim", body=ClaimRequest(session_id="b"), reply=ClaimReply
        ).units[0]
        assert theirs.start == mine.start
        assert theirs.lease_id != mine.lease_id

        def commit(who, unit, session: str) -> str:  # type: ignore[no-untyped-def]
            request = CommitRequest(
                session_id=session, lease_id=unit.lease_id, job_id=job_id,
                start=unit.start, end=unit.end,
            )  # fmt: skip
            return str(who.call("POST", "/v1/commit", body=request, reply=CommitReply).outcome)

        assert commit(two, theirs, "b") == "committed"
        assert commit(two, theirs, "b") == "repeated"
        assert commit(one, mine, "a") == "refused"
        stolen = answered(lambda: commit(one, theirs, "a"))
        assert isinstance(stolen, OfficeGridError)
        assert stolen.http_status == 403
    assert grid.job(job_id).units == 1


def test_a_schedule_is_a_template_that_can_be_cancelled(grid: Grid, tmp_path: Path) -> None:
    job_file = double_job(
        tmp_path / "p", records=10, name="nightly", policy='schedule = "0 3 1 1 *"\n'
    )
    job_id = grid.submit(job_file)
    view = grid.job(job_id)
    assert view.state == "scheduled"
    assert view.next_start_at is not None
    assert "its next run starts in" in grid.ok("why", job_id)
    grid.ok("cancel", job_id)
    assert grid.job(job_id).state == "cancelled"
    wrong = double_job(tmp_path / "q", records=10, name="w", policy='schedule = "61 * * * *"\n')
    refused = grid.run("submit", str(wrong), home="me")
    assert refused.returncode == 2
    assert "61 * * * *" in refused.stderr
    assert "minute hour day month weekday" in refused.stderr


@pytest.mark.parametrize("verb", ["hold", "release", "retry"])
def test_what_does_not_fit_the_state_of_a_job_is_refused_with_words(
    shared: Grid, tmp_path: Path, verb: str
) -> None:
    job_id = shared.submit(double_job(tmp_path / "p", records=5, name=f"ended-{verb}"))
    shared.wait_job(job_id)
    before = shared.job(job_id).model_dump()
    done = shared.run(verb, job_id)
    assert done.returncode == ConflictError.exit_code == 1
    assert job_id in done.stderr
    assert shared.job(job_id).model_dump() == before
