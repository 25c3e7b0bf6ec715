"""Child of test_crash.py: commits random groups for ever and prints each acknowledged number.

python crash_child.py DATABASE SEED FIRST_SEQUENCE
"""

from __future__ import annotations

import random
import sys
from functools import partial

from officegrid.core.model import Edit, Lease, LeaseState, SpanState
from officegrid.storage.api import Tx
from officegrid.storage.sqlite import SqliteStorage
from officegrid.testing import storage_edits as edits

JOB = "crash"
TOTAL = 1_000_000


def step(tx: Tx, sequence: int, rng: random.Random) -> None:
    """Claim, commit or expire something, and leave the sequence number in the same operation."""
    view = tx.ledger(JOB)
    live = view.live_leases()
    choice = rng.random()
    if len(live) < 4 or choice < 0.4:
        tx.apply(JOB, claim(tx, sequence, rng))
    elif choice < 0.8:
        lease = rng.choice(live)
        bad = rng.sample(range(lease.start, lease.end), k=rng.randint(0, 2))
        tx.apply(JOB, edits.commit(view, lease, bad))
        tx.add_part(edits.new_part(JOB, lease.start, lease.end, lease.id))
    else:
        tx.apply(JOB, edits.release(view, rng.choice(live), LeaseState.EXPIRED, 1))
    tx.add_event(float(sequence), JOB, "step", str(sequence))
    tx.put_setting("sequence", str(sequence))


def claim(tx: Tx, sequence: int, rng: random.Random) -> Edit:
    """A lease somewhere in the largest pending span."""
    span = tx.ledger(JOB).largest_pending()
    if span is None or span.state != SpanState.PENDING:
        raise AssertionError("the job is too small for this test")
    start = rng.randrange(span.start, span.end)
    end = min(span.end, start + rng.randint(2, 40))
    if end - start < 2:
        start = max(span.start, end - 2)
    lease: Lease = edits.new_lease(f"lease-{sequence}", start, end, f"m{sequence % 5}")
    return edits.claim(span, lease)


def main() -> None:
    """Never returns by itself."""
    rng = random.Random(int(sys.argv[2]))
    sequence = int(sys.argv[3])
    storage = SqliteStorage(sys.argv[1])
    if storage.read(lambda tx: tx.job(JOB)) is None:
        storage.write(lambda tx: tx.add_job(edits.new_job(JOB, TOTAL)))
    while True:
        size = rng.randint(1, 8)
        group = [partial(step, sequence=sequence + i, rng=rng) for i in range(size)]
        for done in storage.write_many(group):
            if done.error is not None:
                raise done.error
        sequence += size
        print(sequence - 1, flush=True)


if __name__ == "__main__":
    main()
