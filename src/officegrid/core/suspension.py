"""Which units outlive the suspension of their VM.

A unit that is given back at a yield costs at most its own time: half a minute, as units are
sized. A record that takes longer than a unit (an hour-long simulation) would start over at every
interruption and perhaps never end. Its lease is kept while the VM sleeps, for a time that the job
states, and the worker goes on with it after the thaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from officegrid.core.model import Lease, LeaseState

_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Holding:
    """A live lease of the machine that is to be suspended, with the policy of its job."""

    job: str
    lease: Lease
    unit_s: float
    """How long a unit of the job should take."""
    suspended_s: float
    """How long a suspended unit of it may be kept."""


def kept(holdings: Sequence[Holding], *, slots: int, now: float) -> list[Holding]:
    """Those of one machine's leases that are not given back when its VM is suspended.

    A lease is kept when it is for a single record, which is being worked on (the oldest `slots`
    leases are; the rest wait in the machine, however long ago they were claimed) and which takes
    longer than a unit should: it has been held, or is expected to take, more than `unit_s`.
    """
    running = sorted(holdings, key=lambda one: (one.lease.claimed_at, one.lease.id))[:slots]
    return [one for one in running if _is_long(one, now)]


def _is_long(one: Holding, now: float) -> bool:
    lease = one.lease
    if lease.state is not LeaseState.LIVE or lease.length != 1 or one.suspended_s <= 0:
        return False
    return now - lease.claimed_at > one.unit_s or lease.expected_s > one.unit_s


def suspended(lease: Lease, *, at: float, suspended_s: float) -> Lease:
    """The lease with the deadline of a suspension that began `at`. The next renewal, after the
    thaw, gives it its ordinary deadline again."""
    return replace(lease, deadline=max(lease.deadline, at + suspended_s))


def is_suspended(lease: Lease, *, lease_s: float) -> bool:
    """Has this live lease been kept over a suspension and not been renewed since? An ordinary
    deadline is never further from the last renewal than `lease_s`."""
    return lease.deadline - lease.renewed_at > lease_s + _SLACK_S
