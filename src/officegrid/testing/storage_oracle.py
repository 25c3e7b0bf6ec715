"""Random edits against a database and against `core.tiling.MemoryLedger`: they must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from officegrid.core.errors import InternalError
from officegrid.core.invariants import check_leases, check_tiling
from officegrid.core.model import Edit, Lease, LeaseState, Span, SpanState
from officegrid.core.tiling import MemoryLedger
from officegrid.storage.api import Storage, Tx
from officegrid.testing import storage_edits as edits

TOTAL = 60
_pick = st.integers(min_value=0, max_value=10_000)


class LedgerMachine(RuleBasedStateMachine):
    """One job per example, in a database that all examples share."""

    storage: Storage
    jobs_made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).jobs_made += 1
        self.job = f"oracle-{self.jobs_made}"
        self.oracle = MemoryLedger(TOTAL)
        self.leases_made = 0
        self.storage.write(lambda tx: tx.add_job(edits.new_job(self.job, TOTAL)))

    def _apply(self, edit: Edit) -> None:
        self.oracle.apply(edit)
        self.storage.write(lambda tx: tx.apply(self.job, edit))

    def _spans(self, state: SpanState) -> list[Span]:
        return [span for span in self.oracle.spans() if span.state == state]

    def _lease_over(self, start: int, end: int, machine: int) -> Lease:
        self.leases_made += 1
        lease_id = f"{self.job}-lease-{self.leases_made}"
        return edits.new_lease(lease_id, start, end, f"m{machine % 3}", float(self.leases_made))

    @precondition(lambda self: self._spans(SpanState.PENDING))
    @rule(which=_pick, offset=_pick, length=_pick)
    def claim(self, which: int, offset: int, length: int) -> None:
        """Lease part of any pending span."""
        pending = self._spans(SpanState.PENDING)
        span = pending[which % len(pending)]
        start = span.start + offset % span.length
        end = start + 1 + length % (span.end - start)
        self._apply(edits.claim(span, self._lease_over(start, end, which)))

    @precondition(lambda self: self.oracle.live_leases())
    @rule(which=_pick, bad=st.sets(st.integers(0, TOTAL - 1), max_size=4))
    def commit(self, which: int, bad: set[int]) -> None:
        """Commit any live lease."""
        live = self.oracle.live_leases()
        self._apply(edits.commit(self.oracle, live[which % len(live)], bad))

    @precondition(lambda self: self.oracle.live_leases())
    @rule(which=_pick, fault=st.booleans())
    def release(self, which: int, fault: bool) -> None:
        """Give back or expire any live lease."""
        live = self.oracle.live_leases()
        state = LeaseState.EXPIRED if fault else LeaseState.RELEASED
        self._apply(edits.release(self.oracle, live[which % len(live)], state, int(fault)))

    @precondition(lambda self: self._spans(SpanState.LEASED))
    @rule(which=_pick)
    def duplicate(self, which: int) -> None:
        """A second lease on a leased span."""
        leased = self._spans(SpanState.LEASED)
        span = leased[which % len(leased)]
        self._apply(Edit(leases=(self._lease_over(span.start, span.end, which),)))

    @precondition(lambda self: self._spans(SpanState.QUARANTINED))
    @rule(which=_pick)
    def retry(self, which: int) -> None:
        """Quarantined records are tried again."""
        quarantined = self._spans(SpanState.QUARANTINED)
        self._apply(edits.retry(quarantined[which % len(quarantined)]))

    @precondition(lambda self: self.oracle.live_leases())
    @rule(which=_pick, by=st.integers(1, 100))
    def renew(self, which: int, by: int) -> None:
        """Push the deadline of a lease with `touch_leases`."""
        live = self.oracle.live_leases()
        lease = live[which % len(live)]
        renewed = replace(lease, renewed_at=float(by), deadline=float(by + 60))
        self.oracle.apply(Edit(leases=(renewed,)))
        touched = self.storage.write(
            lambda tx: tx.touch_leases([lease.id], lease.machine, float(by), float(by + 60))
        )
        assert touched == [lease.id]

    @rule(record=st.integers(0, TOTAL - 1), swallow=st.booleans())
    def stale_edit(self, record: int, swallow: bool) -> None:
        """An edit that removes a span which is not quite there changes nothing."""
        span = self.oracle.span_at(record)
        stale = replace(span, attempts=span.attempts + 1)
        edit = Edit((*self._neighbour_before(span), stale), self._covering(span), ())
        try:
            self.oracle.apply(edit)
            raise AssertionError("the oracle took a stale edit")
        except InternalError:
            pass

        def operation(tx: Tx) -> str:
            try:
                tx.apply(self.job, edit)
            except InternalError:
                if not swallow:
                    raise
                return "refused"
            return "applied"

        done = self.storage.write_many([operation])[0]
        assert done.value == "refused" if swallow else isinstance(done.error, InternalError)

    def _neighbour_before(self, span: Span) -> Sequence[Span]:
        return [self.oracle.span_at(span.start - 1)] if span.start else []

    def _covering(self, span: Span) -> tuple[Span, ...]:
        before = self._neighbour_before(span)
        return (Span(before[0].start if before else span.start, span.end, SpanState.DONE),)

    @rule(record=st.integers(0, TOTAL - 1))
    def unbalanced_edit(self, record: int) -> None:
        """An edit that would lose a record is refused."""
        span = self.oracle.span_at(record)
        short = (replace(span, end=span.end - 1),) if span.length > 1 else ()
        edit = Edit((span,), short)
        done = self.storage.write_many([lambda tx: tx.apply(self.job, edit)])[0]
        assert isinstance(done.error, InternalError)

    @invariant()
    def agree(self) -> None:
        """Spans, counters, leases and every look-up are the oracle's."""
        self.storage.read(self._compare)

    def _compare(self, tx: Tx) -> None:
        view, oracle = tx.ledger(self.job), self.oracle
        spans = [Span(a, b, SpanState(c), d) for a, b, c, d in tx.spans(self.job)]
        assert spans == oracle.spans()
        check_tiling(spans, TOTAL)
        check_leases(spans, view.live_leases())
        assert view.live_leases() == oracle.live_leases()
        assert view.largest_pending() == oracle.largest_pending()
        job = tx.job(self.job)
        assert job is not None
        found = (job.pending, job.leased, job.done, job.quarantined)
        assert found == tuple(oracle.counters()[state] for state in SpanState)
        assert job.live_leases == len(oracle.live_leases())
        for start, end in ((0, TOTAL), (7, 8), (20, 45), (59, 60), (30, 30)):
            assert view.spans_over(start, end) == oracle.spans_over(start, end)
            assert view.live_leases_over(start, end) == oracle.live_leases_over(start, end)
        for record in (0, 13, 37, TOTAL - 1):
            assert view.span_at(record) == oracle.span_at(record)


def compare_with_oracle(storage: Storage, *, examples: int = 25, steps: int = 30) -> None:
    """Run the state machine on `storage`; raises what disagreed, with the steps to repeat it."""
    machine = type("LedgerMachine", (LedgerMachine,), {"storage": storage})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
