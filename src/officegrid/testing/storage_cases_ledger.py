"""Conformance cases: jobs, ledgers, leases."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from operator import methodcaller

import pytest

from officegrid.core.errors import ConflictError, InternalError, NotFoundError
from officegrid.core.jobs import JobState
from officegrid.core.model import Edit, LeaseState, Span, SpanState
from officegrid.storage.api import Storage, Tx
from officegrid.testing import storage_edits as edits

_PENDING, _LEASED, _DONE = SpanState.PENDING, SpanState.LEASED, SpanState.DONE


class LedgerCases:
    """Jobs and what `apply` does to them."""

    def test_a_job_comes_back_as_it_was_added(self, storage: Storage) -> None:
        job = edits.new_job(
            "j",
            7,
            dataset="d",
            bundle="b",
            priority=3,
            reason="why",
            started_at=2.5,
            ended_at=3.5,
            template="t",
            spec={"é": [1, None, {"x": True}]},
        )
        storage.write(lambda tx: tx.add_job(job))
        assert storage.read(lambda tx: tx.job("j")) == replace(job, pending=7)
        assert storage.read(lambda tx: tx.job("other")) is None
        with pytest.raises(ConflictError):
            storage.write(lambda tx: tx.add_job(job))

    def test_jobs_are_listed_newest_first_and_filtered(self, storage: Storage) -> None:
        def add(tx: Tx) -> None:
            tx.add_job(edits.new_job("a", 1, created_at=1.0, name="x"))
            tx.add_job(edits.new_job("b", 1, created_at=3.0, state=JobState.HELD))
            tx.add_job(edits.new_job("c", 1, created_at=2.0, name="x", state=JobState.HELD))

        storage.write(add)

        def ids(**filters: object) -> list[str]:
            return [job.id for job in storage.read(lambda tx: tx.jobs(**filters))]  # type: ignore[arg-type]

        assert ids() == ["b", "c", "a"]
        assert ids(limit=2) == ["b", "c"]
        assert ids(name="x") == ["c", "a"]
        assert ids(states=[JobState.HELD]) == ["b", "c"]
        assert ids(states=[JobState.HELD, JobState.RUNNING], name="x", limit=1) == ["c"]
        assert ids(states=[]) == []

    def test_update_job_sets_columns_but_no_counters(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 5)))
        changes = {"state": JobState.HELD, "reason": "r", "spec": {"new": 1}, "ended_at": 9.0}
        storage.write(lambda tx: tx.update_job("j", **changes))
        job = storage.read(lambda tx: tx.job("j"))
        assert job == edits.new_job("j", 5, pending=5, **changes)
        for refused in ("pending", "live_leases", "units", "id", "nonsense"):
            with pytest.raises(InternalError):
                storage.write(methodcaller("update_job", "j", **{refused: 1}))
        with pytest.raises(NotFoundError):
            storage.write(lambda tx: tx.update_job("nowhere", reason="x"))

    def test_setting_total_starts_an_empty_ledger_only(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 0)))
        assert storage.read(lambda tx: list(tx.spans("j"))) == []
        assert storage.read(lambda tx: tx.ledger("j").largest_pending()) is None

        def start(tx: Tx) -> Span:
            assert tx.ledger("j").total == 0
            tx.update_job("j", total=30, dataset="d")
            assert tx.ledger("j").total == 30
            return tx.ledger("j").span_at(29)

        assert storage.write(start) == Span(0, 30, _PENDING)
        job = storage.read(lambda tx: tx.job("j"))
        assert job is not None
        assert (job.total, job.pending, job.dataset) == (30, 30, "d")
        storage.write(lambda tx: tx.update_job("j", total=30))
        with pytest.raises(InternalError):
            storage.write(lambda tx: tx.update_job("j", total=31))

    def test_claimable_jobs_run_and_have_something_left(self, storage: Storage) -> None:
        def add(tx: Tx) -> None:
            tx.add_job(edits.new_job("low", 5, priority=0, created_at=1.0))
            tx.add_job(edits.new_job("high", 5, priority=9, created_at=2.0))
            tx.add_job(edits.new_job("held", 5, state=JobState.HELD))
            tx.add_job(edits.new_job("empty", 0))
            tx.add_job(edits.new_job("leased", 5, created_at=3.0))
            whole = Span(0, 5, _PENDING)
            tx.apply("leased", edits.claim(whole, edits.new_lease("l", 0, 5)))
            tx.add_job(edits.new_job("done", 5))
            tx.apply("done", Edit((whole,), (Span(0, 5, _DONE),)))

        storage.write(add)
        found = storage.read(lambda tx: [job.id for job in tx.claimable_jobs()])
        assert found == ["high", "low", "leased"]

    def test_the_view_of_a_ledger(self, storage: Storage) -> None:
        spans = (
            Span(0, 10, _DONE),
            Span(10, 20, _PENDING, 2),
            Span(20, 25, _LEASED),
            Span(25, 35, _PENDING),
            Span(35, 40, SpanState.QUARANTINED),
        )
        lease = edits.new_lease("l", 20, 25)

        def build(tx: Tx) -> None:
            tx.add_job(edits.new_job("j", 40))
            tx.apply("j", Edit((Span(0, 40, _PENDING),), spans, (lease,)))

        storage.write(build)

        def look(tx: Tx) -> None:
            view = tx.ledger("j")
            assert view.total == 40
            for span in spans:
                assert view.span_at(span.start) == view.span_at(span.end - 1) == span
            assert view.spans_over(9, 21) == list(spans[:3])
            assert view.spans_over(10, 20) == [spans[1]]
            assert view.spans_over(12, 12) == []
            assert view.largest_pending() == spans[1]  # the lowest start among equals
            assert view.lease("l") == lease
            assert view.lease("m") is None
            assert view.live_leases_over(24, 30) == [lease]
            assert view.live_leases_over(25, 30) == view.live_leases_over(0, 20) == []
            with pytest.raises(InternalError):
                view.span_at(40)
            with pytest.raises(InternalError):
                view.span_at(-1)

        storage.read(look)
        with pytest.raises(NotFoundError):
            storage.read(lambda tx: tx.ledger("nowhere"))

    @pytest.mark.parametrize(
        "wrong",
        [
            Span(0, 99, _PENDING),
            Span(0, 100, _LEASED),
            Span(0, 100, _PENDING, 1),
            Span(1, 100, _PENDING),
        ],
    )
    def test_apply_refuses_a_span_that_is_not_exactly_there(
        self, storage: Storage, wrong: Span
    ) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 100)))
        lease = edits.new_lease("l", 1, 9)
        insert = (Span(wrong.start, wrong.end, _DONE),)
        with pytest.raises(InternalError):
            storage.write(lambda tx: tx.apply("j", Edit((wrong,), insert, (lease,))))
        assert storage.read(lambda tx: list(tx.spans("j"))) == [(0, 100, "pending", 0)]
        assert storage.read(lambda tx: tx.lease_owner("l")) is None

    def test_spans_of_a_long_ledger_come_in_order_once(self, storage: Storage) -> None:
        pieces = tuple(Span(i, i + 1, _DONE if i % 2 else _PENDING) for i in range(5000))
        edit = Edit((Span(0, 5000, _PENDING),), pieces)

        def build(tx: Tx) -> None:
            tx.add_job(edits.new_job("j", 5000))
            tx.apply("j", edit)

        storage.write(build)
        found = storage.read(lambda tx: list(tx.spans("j")))
        assert found == [(s.start, s.end, s.state.value, 0) for s in pieces]


class _LeaseCases:
    """Leases across jobs."""

    def _two_jobs(self, tx: Tx) -> None:
        for job, machine, at in (("a", "m1", 10.0), ("b", "m2", 5.0), ("c", "m1", 20.0)):
            tx.add_job(edits.new_job(job, 10))
            lease = edits.new_lease(f"l-{job}", 0, 10, machine, at)
            tx.apply(job, edits.claim(Span(0, 10, _PENDING), lease))

    def test_leases_are_found_by_id_machine_and_deadline(self, storage: Storage) -> None:
        storage.write(self._two_jobs)

        def look(tx: Tx) -> None:
            assert tx.lease_owner("l-b") == ("b", edits.new_lease("l-b", 0, 10, "m2", 5.0))
            assert tx.lease_owner("l-x") is None
            assert [job for job, _ in tx.live_leases_of("m1")] == ["a", "c"]
            assert tx.live_leases_of("m3") == []
            assert [x.id for _, x in tx.expired_leases(100.0)] == ["l-b", "l-a", "l-c"]
            assert [job for job, _ in tx.expired_leases(100.0, limit=1)] == ["b"]
            assert [job for job, _ in tx.expired_leases(70.0)] == ["b"]  # a ends at 70.0 sharp

        storage.read(look)

    def test_a_lease_that_ended_is_remembered_but_not_live(self, storage: Storage) -> None:
        storage.write(self._two_jobs)

        def end(tx: Tx) -> None:
            view = tx.ledger("a")
            lease = view.live_leases()[0]
            tx.apply("a", edits.release(view, lease, LeaseState.EXPIRED, 1))

        storage.write(end)

        def look(tx: Tx) -> None:
            owner = tx.lease_owner("l-a")
            assert owner is not None
            assert owner[1].state == LeaseState.EXPIRED
            assert [x.id for _, x in tx.expired_leases(100.0)] == ["l-b", "l-c"]
            assert [job for job, _ in tx.live_leases_of("m1")] == ["c"]
            assert list(tx.spans("a")) == [(0, 10, "pending", 1)]

        storage.read(look)

    def test_touch_renews_only_live_leases_of_the_machine(self, storage: Storage) -> None:
        storage.write(self._two_jobs)
        asked = ["l-c", "l-x", "l-b", "l-a"]
        renewed = storage.write(lambda tx: tx.touch_leases(asked, "m1", 50.0, 500.0))
        assert renewed == ["l-c", "l-a"]

        def look(tx: Tx) -> None:
            for lease_id, times in (("l-a", (50.0, 500.0)), ("l-b", (5.0, 65.0))):
                owner = tx.lease_owner(lease_id)
                assert owner is not None
                assert (owner[1].renewed_at, owner[1].deadline) == times

        storage.read(look)

    def test_a_lease_may_come_back_to_life_and_is_counted(self, storage: Storage) -> None:
        storage.write(self._two_jobs)

        def flip(tx: Tx, state: LeaseState) -> int:
            lease = tx.ledger("a").lease("l-a")
            assert lease is not None
            tx.apply("a", Edit(leases=(replace(lease, state=state),)))
            job = tx.job("a")
            assert job is not None
            return job.live_leases

        for state, live in (("live", 1), ("expired", 0), ("released", 0), ("live", 1)):
            assert storage.write(partial(flip, state=LeaseState(state))) == live


class AllLedgerCases(LedgerCases, _LeaseCases):
    """Jobs, ledgers and leases."""
