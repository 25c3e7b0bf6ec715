"""Conformance cases: group commit, savepoints, snapshots."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest

from officegrid.core.errors import ConflictError, InternalError, OfficeGridError
from officegrid.core.model import Edit, Span, SpanState
from officegrid.storage.api import Storage, Tx
from officegrid.testing import storage_edits as edits


class TransactionCases:
    """`write`, `write_many`, `read`, `close`."""

    def test_an_operation_that_raises_leaves_no_trace(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 100)))
        before = storage.read(_everything)

        def operation(tx: Tx) -> None:
            lease = edits.new_lease("l", 10, 20)
            tx.apply("j", edits.claim(tx.ledger("j").span_at(0), lease))
            tx.add_part(edits.new_part("j", 10, 20, "l"))
            tx.add_event(1.0, "j", "kind", "text")
            tx.put_setting("k", "v")
            tx.add_job(edits.new_job("other", 5))
            tx.update_job("j", reason="changed")
            job = tx.job("j")
            assert job is not None
            assert (job.leased, job.units) == (10, 1)
            raise ValueError("after all that")

        with pytest.raises(ValueError, match="after all that"):
            storage.write(operation)
        assert storage.read(_everything) == before

    def test_a_raising_operation_in_a_group_is_undone_alone(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 1000)))

        def operation(number: int, tx: Tx) -> int:
            lease = edits.new_lease(f"l{number:03d}", number * 10, number * 10 + 10)
            tx.apply("j", edits.claim(tx.ledger("j").span_at(number * 10), lease))
            tx.add_event(float(number), "j", "claim", f"{number}")
            if number == 50:
                tx.job("j")  # writes what the group has counted so far, inside this savepoint
                raise ConflictError("not this one")
            return number

        done = storage.write_many([partial(operation, n) for n in range(100)])
        assert [x.value for x in done] == [None if n == 50 else n for n in range(100)]
        assert isinstance(done[50].error, ConflictError)
        assert [n for n, x in enumerate(done) if x.error is not None] == [50]
        job = storage.read(lambda tx: tx.job("j"))
        assert job is not None
        assert (job.pending, job.leased, job.live_leases) == (10, 990, 99)
        assert storage.read(lambda tx: tx.ledger("j").largest_pending()) == Span(
            500, 510, SpanState.PENDING
        )
        assert len(storage.read(lambda tx: tx.events("j", limit=1000))) == 99

    def test_a_broken_invariant_undoes_its_operation_even_when_swallowed(
        self, storage: Storage
    ) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("a", 10)))
        storage.write(lambda tx: tx.add_job(edits.new_job("b", 10)))
        whole = Span(0, 10, SpanState.PENDING)
        lease = edits.new_lease("l", 0, 10)
        storage.write(lambda tx: tx.apply("a", edits.claim(whole, lease)))

        def foreign_lease(tx: Tx) -> str:
            try:
                tx.apply("b", edits.claim(whole, lease))
            except InternalError:
                return "swallowed"
            return "applied"

        with pytest.raises(InternalError, match="belongs to job a"):
            storage.write(foreign_lease)
        assert list(storage.read(lambda tx: list(tx.spans("b")))) == [(0, 10, "pending", 0)]
        assert storage.read(lambda tx: tx.lease_owner("l")) == ("a", lease)

    def test_operations_of_a_group_see_each_other_in_order(self, storage: Storage) -> None:
        def append(letter: str, tx: Tx) -> str:
            text = (tx.setting("text") or "") + letter
            tx.put_setting("text", text)
            return text

        done = storage.write_many([partial(append, x) for x in "abc"])
        assert [x.value for x in done] == ["a", "ab", "abc"]
        assert storage.write_many([]) == []

    def test_read_is_a_snapshot(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 100)))
        begun, written = threading.Event(), threading.Event()
        seen: list[Any] = []

        def reader(tx: Tx) -> None:
            seen.append(list(tx.spans("j")))
            begun.set()
            assert written.wait(10)
            seen.append(list(tx.spans("j")))
            seen.append(tx.job("j"))

        thread = threading.Thread(target=lambda: storage.read(reader))
        thread.start()
        assert begun.wait(10)
        span = Span(0, 100, SpanState.PENDING)
        storage.write(lambda tx: tx.apply("j", edits.claim(span, edits.new_lease("l", 0, 50))))
        written.set()
        thread.join(10)
        assert seen[0] == seen[1] == [(0, 100, "pending", 0)]
        assert (seen[2].pending, seen[2].live_leases) == (100, 0)
        assert len(storage.read(lambda tx: list(tx.spans("j")))) == 2

    def test_reads_cannot_write(self, storage: Storage) -> None:
        with pytest.raises(InternalError):
            storage.read(lambda tx: tx.put_setting("a", "b"))
        assert storage.read(lambda tx: tx.setting("a")) is None

    def test_a_ledger_view_ends_with_its_transaction(self, storage: Storage) -> None:
        storage.write(lambda tx: tx.add_job(edits.new_job("j", 100)))
        view = storage.read(lambda tx: tx.ledger("j"))
        with pytest.raises(Exception):  # noqa: B017, PT011 - each driver has its own
            view.span_at(0)

    def test_applying_to_an_unknown_job_is_refused(self, storage: Storage) -> None:
        edit = Edit(leases=(edits.new_lease("l", 0, 1),))
        with pytest.raises(OfficeGridError):
            storage.write(lambda tx: tx.apply("nowhere", edit))
        assert storage.read(lambda tx: tx.lease_owner("l")) is None

    def test_closing_twice_is_harmless_and_a_closed_database_says_so(
        self, storage: Storage
    ) -> None:
        storage.close()
        storage.close()
        with pytest.raises(OfficeGridError, match="closed"):
            storage.read(lambda tx: tx.jobs())
        with pytest.raises(OfficeGridError, match="closed"):
            storage.write(lambda tx: tx.jobs())


def _everything(tx: Tx) -> tuple[Any, ...]:
    ledger = list(tx.spans("j")), tx.ledger("j").live_leases(), tx.lease_owner("l")
    return (tx.jobs(), ledger, tx.parts("j"), tx.events(None), tx.setting("k"))
