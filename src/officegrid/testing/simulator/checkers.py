"""Is everything as it must be? Straight from the database's rows, with code of their own."""

from __future__ import annotations

from collections import Counter

from officegrid.coordinator.service import output
from officegrid.core import leaseid
from officegrid.core.jobs import JobState
from officegrid.storage.api import Job, Quarantined, Tx
from officegrid.testing.simulator.program import ObjectShelf, output_lines
from officegrid.testing.simulator.server import Violation
from officegrid.testing.simulator.shadow import DONE, OPEN, SET_ASIDE, JobShadow, Shadow
from officegrid.wire.data import BlockSlice

_OPEN_STATES = ("pending", "leased")


def check_state(tx: Tx, shadow: Shadow) -> None:
    """The tilings, leases, counters and quarantines of all jobs. Raises Violation."""
    for job_id, mirror in shadow.jobs.items():
        job = tx.job(job_id)
        if job is None:
            raise Violation(f"Job {job_id} is gone.", job_id, 0, mirror.total)
        spans = list(tx.spans(job_id))
        _check_tiling(job, spans)
        _check_leases(tx, job, spans)
        _learn_killers(tx, shadow, job_id)
        _check_records(mirror, spans)
        _check_quarantine(tx, mirror)


def _check_tiling(job: Job, spans: list[tuple[int, int, str, int]]) -> None:
    at = 0
    counted: Counter[str] = Counter()
    for start, end, state, attempts in spans:
        if start != at or end <= start or attempts < 0:
            raise Violation(
                f"The ledger of {job.id} does not tile: after record {at} comes "
                f"[{start}, {end}) {state}, attempts {attempts}.",
                job.id, min(at, start), max(at, end),
            )  # fmt: skip
        counted[state] += end - start
        at = end
    if at != job.total:
        raise Violation(f"The ledger of {job.id} ends at {at}, not {job.total}.", job.id, 0, at)
    kept = {
        "pending": job.pending, "leased": job.leased,
        "done": job.done, "quarantined": job.quarantined,
    }  # fmt: skip
    for state, records in kept.items():
        if counted[state] != records:
            raise Violation(
                f"{job.id} counts {records} records as {state}; its ledger has {counted[state]}.",
                job.id, 0, job.total,
            )  # fmt: skip


def _check_leases(tx: Tx, job: Job, spans: list[tuple[int, int, str, int]]) -> None:
    leased = {(start, end) for start, end, state, _ in spans if state == "leased"}
    live = tx.ledger(job.id).live_leases()
    held = {(lease.start, lease.end) for lease in live}
    if leased != held or len(live) != job.live_leases:
        odd = sorted(leased ^ held)
        start, end = odd[0] if odd else (0, job.total)
        raise Violation(
            f"Leased records and live leases of {job.id} differ at {odd}; "
            f"{len(live)} live, {job.live_leases} counted.",
            job.id, start, end,
        )  # fmt: skip


def _all_quarantined(tx: Tx, job_id: str) -> list[Quarantined]:
    found: list[Quarantined] = []
    while page := tx.quarantined(job_id, from_record=found[-1].record + 1 if found else 0):
        found += page
    return found


def _learn_killers(tx: Tx, shadow: Shadow, job_id: str) -> None:
    """What the coordinator set aside by itself is known from its quarantine only."""
    mirror = shadow.jobs[job_id]
    for row in _all_quarantined(tx, job_id):
        if mirror.states[row.record] == OPEN and "died or went silent" in row.error:
            shadow.killed(job_id, row.record)


def _check_records(mirror: JobShadow, spans: list[tuple[int, int, str, int]]) -> None:
    places = {"done": DONE, "quarantined": SET_ASIDE}
    for start, end, state, _ in spans:
        place = places.get(state, OPEN)
        if mirror.states[start:end] == bytes([place]) * (end - start):
            continue
        record = next(r for r in range(start, end) if mirror.states[r] != place)
        known = ("open", "committed", "quarantined")[mirror.states[record]]
        raise Violation(
            f"Record {record} of {mirror.job_id} is {state} in the ledger, but {known} by what "
            "the coordinator has answered.",
            mirror.job_id, record, record + 1,
        )  # fmt: skip


def _check_quarantine(tx: Tx, mirror: JobShadow) -> None:
    expected = [r for r, state in enumerate(mirror.states) if state == SET_ASIDE]
    rows = _all_quarantined(tx, mirror.job_id)
    if [row.record for row in rows] != expected:
        odd = sorted({row.record for row in rows} ^ set(expected))
        raise Violation(
            f"The quarantine of {mirror.job_id} differs from what was set aside at {odd[:5]}.",
            mirror.job_id, odd[0], odd[0] + 1,
        )  # fmt: skip
    for row in rows:
        if row.raw != mirror.lines[row.record]:
            raise Violation(
                f"Quarantined record {row.record} of {mirror.job_id} has the bytes {row.raw!r}.",
                mirror.job_id, row.record, row.record + 1,
            )  # fmt: skip


def check_acknowledged(tx: Tx, shadow: Shadow) -> None:
    """Every commit that was ever accepted is still there. Raises Violation."""
    for lease_id, commit in shadow.accepted.items():
        part = tx.part_of_lease(lease_id)
        owner = tx.lease_owner(lease_id)
        kept = part is not None and (part.start, part.end) == (commit.start, commit.end)
        if not kept or owner is None or owner[1].state != "committed":
            raise Violation(
                f"The acknowledged commit {lease_id} is lost: part {part}, lease {owner}.",
                commit.job_id, commit.start, commit.end,
            )  # fmt: skip


def check_versions(tx: Tx, shadow: Shadow) -> None:
    """Each part says that it is of the version that its unit was given, and so does its lease.
    Raises Violation."""
    for lease_id, commit in shadow.accepted.items():
        part = tx.part_of_lease(lease_id)
        pin = tx.pin(commit.job_id, leaseid.pin_of(lease_id))
        given = shadow.units[lease_id].bundle
        if part is None or pin is None or {part.bundle, pin.bundle} != {given}:
            raise Violation(
                f"Commit {lease_id} ran bundle {given}; its part says "
                f"{part and part.bundle}, its pin {pin and pin.bundle}.",
                commit.job_id, commit.start, commit.end,
            )  # fmt: skip


# --- the output


def read_output(tx: Tx, job: Job, shelf: ObjectShelf, page_parts: int) -> bytes:
    """The job's whole output as a client fetches it: page by page, each from where one ended."""
    pieces: list[bytes] = []
    at = 0
    while True:
        fetched: list[BlockSlice] = []
        taken = 0
        for end, slices in output.slices(tx, job, start=at, stop=job.total):
            fetched += slices
            at = end
            taken += 1
            if taken >= page_parts:
                break
        pieces += [_whole_records(shelf, job, one) for one in fetched]
        if taken < page_parts:
            return b"".join(pieces)


def _whole_records(shelf: ObjectShelf, job: Job, block: BlockSlice) -> bytes:
    data = shelf.read(block)
    lines = data.count(b"\n")
    if lines != block.records or not data.endswith(b"\n"):
        raise Violation(
            f"A slice of the output of {job.id} says {block.records} records and "
            f"holds {lines}.",
            job.id, 0, job.total,
        )  # fmt: skip
    return data


def check_output(tx: Tx, shadow: Shadow, shelf: ObjectShelf, page_parts: int) -> None:
    """Of every finished job: the merged output is exactly that of an undisturbed run, without
    the quarantined records, in input order. Raises Violation."""
    for job_id, mirror in shadow.jobs.items():
        job = tx.job(job_id)
        if job is None or job.state is not JobState.FINISHED:
            continue
        expected: list[bytes] = []
        of_record: list[int] = []
        for record, line in enumerate(mirror.lines):
            if mirror.states[record] == DONE:
                made = output_lines(line, mirror.versions[record])
                expected += made
                of_record += [record] * len(made)
        if job.done + job.quarantined != job.total or OPEN in mirror.states:
            raise Violation(f"{job_id} has finished with records left.", job_id, 0, job.total)
        found = read_output(tx, job, shelf, page_parts)
        if found != b"".join(expected):
            lines = found.splitlines(keepends=True)
            raise _wrong_output(job, expected, of_record, lines)
        if job.records_out != len(expected):
            raise Violation(
                f"{job_id} counts {job.records_out} output records; there are {len(expected)}.",
                job_id, 0, job.total,
            )  # fmt: skip


def _wrong_output(
    job: Job, expected: list[bytes], of_record: list[int], found: list[bytes]
) -> Violation:
    for number, line in enumerate(expected):
        if number >= len(found) or found[number] != line:
            has = found[number] if number < len(found) else b"nothing"
            record = of_record[number]
            return Violation(
                f"The output of {job.id} is wrong from line {number} on: record {record} should "
                f"give {line!r}, there is {has!r} ({len(expected)} lines expected, "
                f"{len(found)} found).",
                job.id, record, record + 1,
            )  # fmt: skip
    return Violation(
        f"The output of {job.id} has {len(found)} lines instead of {len(expected)}.",
        job.id, 0, job.total,
    )  # fmt: skip


def check_innocence(shadow: Shadow, killers: dict[str, frozenset[int]]) -> None:
    """Where machines die of killer records only, no other record is blamed. `killers` has the
    jobs to look at. Raises Violation."""
    for job_id, mirror in shadow.jobs.items():
        if job_id not in killers:
            continue
        innocent = sorted(mirror.set_aside_by_coordinator - killers[job_id])
        if innocent:
            raise Violation(
                f"Records {innocent[:5]} of {job_id} are quarantined for killing machines; "
                f"the killers are {sorted(killers[job_id])}.",
                job_id, innocent[0], innocent[0] + 1,
            )  # fmt: skip
