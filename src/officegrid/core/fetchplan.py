"""The cheapest way from the versions a worker has to the one it needs.

Versions are named by any string that is unique to their contents. The answer is a chain of deltas
from a version that is there, or the whole version when no chain is cheaper.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

MAX_STEPS = 8
"""Longer chains make a worker read and write the whole version too often."""


@dataclass(frozen=True, slots=True)
class KnownDelta:
    """A delta that makes version `new` from version `old` and takes `bytes` on the wire."""

    old: str
    new: str
    bytes: int


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """Apply `deltas` in order to version `start`; `start` None: fetch the version as a whole.

    No deltas and a start: the version is there already. `bytes` is what travels.
    """

    start: str | None
    deltas: tuple[KnownDelta, ...]
    bytes: int


def plan_fetch(
    target: str,
    present: Collection[str],
    deltas: Iterable[KnownDelta],
    full_bytes: int,
    *,
    max_steps: int = MAX_STEPS,
) -> FetchPlan:
    """The way to `target` with the fewest bytes; of equal ones that with the fewest steps.

    `full_bytes` is what the whole version takes. Equal questions have equal answers, whatever
    the order of `present` and `deltas`. Raises ValueError for negative sizes.
    """
    if target in present:
        return FetchPlan(target, (), 0)
    into = _by_new(deltas)
    best = FetchPlan(None, (), full_bytes)
    # ways: each version from which `target` can be reached in so many steps, the cheapest chain.
    ways: dict[str, FetchPlan] = {target: FetchPlan(target, (), 0)}
    for _ in range(max_steps):
        longer: dict[str, FetchPlan] = {}
        for version in sorted(ways):
            way = ways[version]
            for delta in into.get(version, ()):
                taken = way.bytes + delta.bytes
                if taken < best.bytes and (
                    delta.old not in longer or taken < longer[delta.old].bytes
                ):
                    longer[delta.old] = FetchPlan(delta.old, (delta, *way.deltas), taken)
        for version in sorted(longer):
            if version in present and longer[version].bytes < best.bytes:
                best = longer[version]
        ways = longer
    return best


def _by_new(deltas: Iterable[KnownDelta]) -> dict[str, list[KnownDelta]]:
    """The deltas that lead to each version, in one order."""
    found: dict[str, list[KnownDelta]] = {}
    for delta in sorted(set(deltas), key=lambda one: (one.bytes, one.old, one.new)):
        if delta.bytes < 0:
            raise ValueError(f"a delta of {delta.bytes} bytes")
        found.setdefault(delta.new, []).append(delta)
    return found
