"""Random histories of one ledger against a shadow that knows records and commits, nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from officegrid.core import ledger
from officegrid.core.invariants import check_edit, check_leases, check_tiling
from officegrid.core.model import CommitOutcome, Edit, Lease, LeaseState, SpanState
from officegrid.core.tiling import MemoryLedger

MACHINES = ("m1", "m2", "m3")
LEASE_S = 30.0
_pick = st.integers(0, 10_000)
_sizes = st.integers(1, 70)


class Shadow:
    """For each record: the commits accepted for it since it was last opened."""

    def __init__(self, total: int) -> None:
        self.commits: list[list[str]] = [[] for _ in range(total)]
        self.quarantined: set[int] = set()
        self.digests: dict[str, str] = {}

    def accept(self, lease: Lease, bad: set[int], digest: str) -> None:
        assert lease.id not in self.digests, "one lease was accepted twice"
        self.digests[lease.id] = digest
        for record in range(lease.start, lease.end):
            self.commits[record].append(lease.id)
            assert len(self.commits[record]) == 1, f"record {record} was committed twice"
            assert record not in self.quarantined, f"record {record} was set aside before"
        self.quarantined |= bad

    def reopen(self, records: range) -> None:
        for record in records:
            self.commits[record].clear()
            self.quarantined.discard(record)


class LedgerHistory(RuleBasedStateMachine):
    total: int
    attempts: int

    @initialize(
        total=st.sampled_from([1, 2, 3, 17, 64, 100]),
        attempts=st.integers(1, 4),
        killers=st.sets(st.integers(0, 99), max_size=3),
    )
    def begin(self, total: int, attempts: int, killers: set[int]) -> None:
        self.total, self.attempts = total, attempts
        self.killers = {k for k in killers if k < total}
        self.ledger = MemoryLedger(total)
        self.shadow = Shadow(total)
        self.given: list[Lease] = []
        self.now = 1000.0
        self.deaths: dict[int, int] = dict.fromkeys(self.killers, 0)

    # --- helpers

    def _apply(self, edit: Edit) -> None:
        check_edit(edit)
        self.ledger.apply(edit)

    def _new_id(self) -> str:
        return f"lease-{len(self.given)}"

    def _any_lease(self, which: int) -> Lease:
        lease = self.ledger.lease(self.given[which % len(self.given)].id)
        assert lease is not None
        return lease

    def _killers_in(self, lease: Lease) -> set[int]:
        return {k for k in self.killers if lease.start <= k < lease.end}

    def _end(self, lease: Lease, fault: bool, ended: LeaseState) -> None:
        edit = ledger.release(
            self.ledger, lease_id=lease.id, fault=fault, attempts=self.attempts, ended=ended
        )
        assert (edit is not None) == (lease.state is LeaseState.LIVE)
        if edit is None:
            return
        self._apply(edit)
        for span in edit.insert:
            if span.state is SpanState.QUARANTINED:
                assert span.length == 1, "only a record that stands alone is quarantined"
                assert fault, "a unit that is given back politely condemns nobody"
                self.shadow.quarantined.add(span.start)

    # --- rules

    @rule(which=_pick, size=_sizes, continue_at=st.none() | st.integers(0, 120))
    def claim(self, which: int, size: int, continue_at: int | None) -> None:
        machine = MACHINES[which % len(MACHINES)]
        pending = [s for s in self.ledger.spans() if s.state is SpanState.PENDING]
        got = ledger.claim(
            self.ledger, machine=machine, lease_id=self._new_id(), now=self.now,
            lease_s=LEASE_S, size=size, continue_at=continue_at,
        )  # fmt: skip
        assert (got is None) == (not pending)
        if got is None:
            return
        lease, edit = got
        assert 1 <= lease.length <= size
        if continue_at is not None and any(s.start == continue_at for s in pending):
            assert lease.start == continue_at
        self._apply(edit)
        self.given.append(lease)

    def _try_commit(
        self, lease_id: str, start: int, end: int, bad: set[int], digest: str
    ) -> CommitOutcome:
        before = self.ledger.spans()
        live = self.ledger.live_leases()
        result = ledger.commit(
            self.ledger, lease_id=lease_id, start=start, end=end, quarantined=sorted(bad),
            digest=digest, committed_digest=self.shadow.digests.get(lease_id),
        )  # fmt: skip
        if result.outcome is CommitOutcome.COMMITTED:
            lease = self.ledger.lease(lease_id)
            assert lease is not None
            self._apply(result.edit)
            self.shadow.accept(lease, bad, digest)
        else:
            assert result.edit == Edit(), "a commit that does not count changes nothing"
            assert self.ledger.spans() == before
            assert self.ledger.live_leases() == live
            assert result.reason or result.outcome is CommitOutcome.REPEATED
        return result.outcome

    @precondition(lambda self: self.given)
    @rule(which=_pick, offsets=st.sets(st.integers(0, 99), max_size=3))
    def commit(self, which: int, offsets: set[int]) -> None:
        """Any lease ever given, live, expired, released, committed or superseded."""
        lease = self._any_lease(which)
        if self._killers_in(lease):
            return  # its machine is dead: it cannot commit
        bad = {lease.start + o for o in offsets if lease.start + o < lease.end}
        spans = self.ledger.spans_over(lease.start, lease.end)
        known = self.shadow.digests.get(lease.id)
        digest = f"{lease.id}:{sorted(bad)}"
        outcome = self._try_commit(lease.id, lease.start, lease.end, bad, digest)
        if lease.state is LeaseState.LIVE:
            assert outcome is CommitOutcome.COMMITTED
        elif lease.state in (LeaseState.EXPIRED, LeaseState.RELEASED):
            is_free = all(span.state is SpanState.PENDING for span in spans)
            assert (outcome is CommitOutcome.COMMITTED) == is_free
        elif lease.state is LeaseState.COMMITTED:
            expected = CommitOutcome.REPEATED if digest == known else CommitOutcome.REFUSED
            assert outcome is expected
        else:
            assert outcome is CommitOutcome.REFUSED

    @precondition(lambda self: self.shadow.digests)
    @rule(which=_pick, other=st.booleans())
    def commit_again(self, which: int, other: bool) -> None:
        lease_id = sorted(self.shadow.digests)[which % len(self.shadow.digests)]
        lease = self.ledger.lease(lease_id)
        assert lease is not None
        digest = "something else" if other else self.shadow.digests[lease_id]
        outcome = self._try_commit(lease_id, lease.start, lease.end, set(), digest)
        assert outcome is (CommitOutcome.REFUSED if other else CommitOutcome.REPEATED)

    @precondition(lambda self: self.given)
    @rule(which=_pick, start=st.integers(-3, 3), end=st.integers(-3, 3))
    def commit_wrong_range(self, which: int, start: int, end: int) -> None:
        lease = self._any_lease(which)
        a, b = max(0, lease.start + start), min(self.total, lease.end + end)
        if a < b and (a, b) != (lease.start, lease.end):
            assert self._try_commit(lease.id, a, b, set(), "x") is CommitOutcome.REFUSED

    @rule(start=st.integers(0, 99))
    def commit_unknown_lease(self, start: int) -> None:
        if start < self.total:
            outcome = self._try_commit("never given", start, start + 1, set(), "x")
            assert outcome is CommitOutcome.REFUSED

    @precondition(lambda self: self.ledger.live_leases())
    @rule(which=_pick)
    def release(self, which: int) -> None:
        live = self.ledger.live_leases()
        self._end(live[which % len(live)], False, LeaseState.RELEASED)

    @precondition(lambda self: self.given)
    @rule(which=_pick)
    def release_any(self, which: int) -> None:
        self._end(self._any_lease(which), False, LeaseState.RELEASED)

    @precondition(lambda self: self.ledger.live_leases())
    @rule(which=_pick)
    def die(self, which: int) -> None:
        """A machine dies by chance or of a killer; its lease expires."""
        live = self.ledger.live_leases()
        self._end(live[which % len(live)], True, LeaseState.EXPIRED)

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        """Every lease that runs out is taken back."""
        self.now += seconds
        for lease in self.ledger.live_leases():
            if lease.deadline < self.now:
                self._end(lease, True, LeaseState.EXPIRED)

    @precondition(lambda self: self.ledger.live_leases())
    @rule(which=_pick)
    def renew(self, which: int) -> None:
        live = self.ledger.live_leases()
        lease = live[which % len(live)]
        pushed = replace(lease, renewed_at=self.now, deadline=self.now + LEASE_S)
        self._apply(Edit(leases=(pushed,)))

    @precondition(lambda self: self.given)
    @rule(which=_pick)
    def revive(self, which: int) -> None:
        lease = self._any_lease(which)
        spans = self.ledger.spans_over(lease.start, lease.end)
        edit = ledger.revive(self.ledger, lease_id=lease.id, now=self.now, lease_s=LEASE_S)
        is_free = all(span.state is SpanState.PENDING for span in spans)
        assert (edit is not None) == (lease.state is LeaseState.EXPIRED and is_free)
        if edit is not None:
            self._apply(edit)

    @precondition(lambda self: self.ledger.live_leases())
    @rule(which=_pick, silent_s=st.sampled_from([0.0, 20.0]), speed=st.none() | st.just(5.0))
    def duplicate(self, which: int, silent_s: float, speed: float | None) -> None:
        machine = MACHINES[which % len(MACHINES)]
        got = ledger.duplicate(
            self.ledger, machine=machine, lease_id=self._new_id(), now=self.now,
            lease_s=LEASE_S, silent_s=silent_s, records_per_s=speed,
        )  # fmt: skip
        if got is None:
            return
        twin, edit = got
        holders = self.ledger.live_leases_over(twin.start, twin.end)
        assert [x.machine != machine for x in holders] == [True], "one holder, another machine"
        self._apply(edit)
        self.given.append(twin)

    @rule(chance=st.integers(0, 9))
    def recall(self, chance: int) -> None:
        """The job is cancelled, which is rare; here it goes on with new leases."""
        if chance:
            return
        self._apply(ledger.recall(self.ledger))
        assert not self.ledger.live_leases()

    @precondition(lambda self: self.shadow.quarantined)
    @rule(which=_pick, everything=st.booleans())
    def retry(self, which: int, everything: bool) -> None:
        spans = [s for s in self.ledger.spans() if s.state is SpanState.QUARANTINED]
        chosen = spans if everything else [spans[which % len(spans)]]
        self._apply(ledger.retry(chosen))
        for span in chosen:
            self.shadow.reopen(range(span.start, span.end))

    # --- what always holds

    @invariant()
    def tiling_and_leases_hold(self) -> None:
        if not hasattr(self, "ledger"):
            return
        check_tiling(self.ledger.spans(), self.total)
        check_leases(self.ledger.spans(), self.given_now())

    def given_now(self) -> list[Lease]:
        found = (self.ledger.lease(lease.id) for lease in self.given)
        return [lease for lease in found if lease is not None]

    @invariant()
    def the_ledger_says_what_the_shadow_knows(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for span in self.ledger.spans():
            for record in range(span.start, span.end):
                aside = record in self.shadow.quarantined
                is_done = bool(self.shadow.commits[record]) and not aside
                assert (span.state is SpanState.DONE) == is_done, record
                assert (span.state is SpanState.QUARANTINED) == aside, record

    def teardown(self) -> None:
        """From wherever the history stopped, machines that die of killers bring it to its end."""
        if not hasattr(self, "ledger"):
            return
        for lease in self.ledger.live_leases():
            self._end(lease, False, LeaseState.RELEASED)
        self._finish()
        for record in range(self.total):
            assert self.ledger.span_at(record).state in (SpanState.DONE, SpanState.QUARANTINED)
            if record not in self.shadow.quarantined:
                assert record not in self.killers
        self.tiling_and_leases_hold()
        self.the_ledger_says_what_the_shadow_knows()

    def _finish(self) -> None:
        allowed = self.attempts + math.ceil(math.log2(max(2, self.total))) + self.attempts
        while True:
            got = ledger.claim(
                self.ledger, machine="m1", lease_id=self._new_id(), now=self.now,
                lease_s=LEASE_S, size=33,
            )  # fmt: skip
            if got is None:
                return
            lease, edit = got
            self._apply(edit)
            self.given.append(lease)
            deadly = self._killers_in(lease)
            if not deadly:
                outcome = self._try_commit(lease.id, lease.start, lease.end, set(), "end")
                assert outcome is CommitOutcome.COMMITTED
                continue
            self._end(lease, True, LeaseState.EXPIRED)
            first = min(deadly)
            self.deaths[first] += 1
            assert self.deaths[first] <= allowed, f"record {first} killed too many machines"


def test_random_histories_of_a_ledger() -> None:
    quick = settings(
        max_examples=250,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(LedgerHistory, settings=quick)


@pytest.mark.parametrize("stale", ["expired", "superseded"])
def test_the_history_notices_a_ledger_that_takes_stale_commits(
    monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    """The machine above must be able to fail."""
    honest = ledger.commit

    def careless(view: MemoryLedger, **asked: object) -> ledger.CommitResult:
        result = honest(view, **asked)  # type: ignore[arg-type]
        lease = view.lease(str(asked["lease_id"]))
        is_stale = lease is not None and lease.state.value == stale
        if result.outcome is CommitOutcome.REFUSED and is_stale and lease is not None:
            spans = view.spans_over(lease.start, lease.end)
            whole = [s for s in spans if s.start >= lease.start and s.end <= lease.end]
            done = tuple(replace(s, state=SpanState.DONE, attempts=0) for s in whole)
            ended = [x for x in view.live_leases() if any(s.start == x.start for s in whole)]
            leases = tuple(replace(x, state=LeaseState.SUPERSEDED) for x in ended)
            edit = Edit(tuple(whole), done, leases)
            return ledger.CommitResult(CommitOutcome.COMMITTED, edit)
        return result

    def history() -> None:
        """The shortest one in which it matters, so that the test does not hang on luck."""
        machine = LedgerHistory()
        machine.begin(total=64, attempts=3, killers=set())
        machine.claim(which=0, size=64, continue_at=None)
        if stale == "expired":
            machine.time_passes(seconds=2 * LEASE_S)
            machine.claim(which=1, size=64, continue_at=None)
        else:
            machine.time_passes(seconds=LEASE_S / 2)
            machine.duplicate(which=1, silent_s=0.0, speed=None)
            assert len(machine.given) == 2
        machine.commit(which=1, offsets=set())
        assert machine.given_now()[0].state.value == stale
        machine.commit(which=0, offsets=set())

    history()
    monkeypatch.setattr(ledger, "commit", careless)
    with pytest.raises(AssertionError):
        history()
