"""What the grid has promised, written down beside it: the memory that the checkers compare with.

Nothing here asks the ledger. It hears what the coordinator made durable, message by message, and
keeps for every record how often it was committed, by which code, and whether it was set aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from officegrid.core.errors import OfficeGridError
from officegrid.testing.simulator.program import BUNDLE_VERSIONS
from officegrid.testing.simulator.server import Message, Reply, Violation
from officegrid.testing.simulator.timeline import Chronicle
from officegrid.wire.work import ClaimReply, ClaimRequest, CommitReply, CommitRequest, Unit

OPEN, DONE, SET_ASIDE = 0, 1, 2


@dataclass(slots=True)
class JobShadow:
    """One job. Lists and bytes have one entry per record."""

    job_id: str
    name: str
    total: int
    lines: list[bytes]
    states: bytearray
    versions: list[int]
    """Which version of the program made the record's output; -1 while there is none."""
    reopened: list[int]
    """Generation that runs the record now: grows when it is retried."""
    set_aside_by_coordinator: set[int] = field(default_factory=set)
    retried_while_open: bool = False


@dataclass(slots=True)
class Shadow:
    chronicle: Chronicle
    jobs: dict[str, JobShadow] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    """Every unit ever given out, by lease."""
    accepted: dict[str, CommitRequest] = field(default_factory=dict)
    """Every commit that became durable, by lease."""
    progress: int = 0
    """Grows with every record that reaches its place."""

    def add_job(self, job_id: str, name: str, lines: list[bytes]) -> None:
        total = len(lines)
        self.jobs[job_id] = JobShadow(
            job_id, name, total, lines, bytearray(total), [-1] * total, [0] * total
        )

    def observe(self, machine_id: str, message: Message, reply: Reply) -> None:
        """A message of `machine_id` was dealt with, durably, and `reply` is on its way."""
        if isinstance(message, ClaimRequest) and isinstance(reply, ClaimReply):
            self._units_given(machine_id, reply)
        elif isinstance(message, CommitRequest):
            if isinstance(reply, OfficeGridError):
                words = f"commit of {message.lease_id[:8]} answered with {reply.code}: {reply.what}"
                self.chronicle.note(words, message.job_id, message.start, message.end)
            elif isinstance(reply, CommitReply):
                self._commit(machine_id, message, reply)

    def _units_given(self, machine_id: str, reply: ClaimReply) -> None:
        for unit in reply.units:
            self.units[unit.lease_id] = unit
            words = f"{machine_id} gets {unit.lease_id[:8]} (generation {unit.generation})"
            self.chronicle.note(words, unit.job_id, unit.start, unit.end)

    def _commit(self, machine_id: str, message: CommitRequest, reply: CommitReply) -> None:
        words = f"{machine_id} commits {message.lease_id[:8]}: {reply.outcome} {reply.reason}"
        self.chronicle.note(words, message.job_id, message.start, message.end)
        if reply.outcome == "committed":
            self._accept(message)
        elif reply.outcome == "repeated":
            self._repeat(message)
        if reply.next is not None:
            self._units_given(machine_id, reply.next)

    def _accept(self, message: CommitRequest) -> None:
        job, unit = self.jobs[message.job_id], self.units[message.lease_id]
        bad = {one.record for one in message.quarantined}
        version = BUNDLE_VERSIONS[unit.bundle or ""]
        if message.lease_id in self.accepted:
            raise Violation(
                f"Lease {message.lease_id} was accepted twice.",
                job.job_id, message.start, message.end,
            )  # fmt: skip
        self.accepted[message.lease_id] = message
        for record in range(message.start, message.end):
            if job.states[record] != OPEN:
                raise Violation(
                    f"Record {record} of {job.job_id} was committed twice.",
                    job.job_id, record, record + 1,
                )  # fmt: skip
            if unit.generation < job.reopened[record]:
                raise Violation(
                    f"Record {record} of {job.job_id} was to run again in generation "
                    f"{job.reopened[record]}, but a unit of generation {unit.generation}, "
                    "with the code of that time, was accepted for it.",
                    job.job_id, record, record + 1,
                )  # fmt: skip
            job.states[record] = SET_ASIDE if record in bad else DONE
            job.versions[record] = version
            self.progress += 1

    def _repeat(self, message: CommitRequest) -> None:
        first = self.accepted.get(message.lease_id)
        if first is None or first.blocks != message.blocks:
            raise Violation(
                f"Lease {message.lease_id} was answered as repeated, but what it repeats was "
                "never accepted.",
                message.job_id, message.start, message.end,
            )  # fmt: skip

    def killed(self, job_id: str, record: int) -> None:
        """The coordinator set `record` aside: machines died on it."""
        job = self.jobs[job_id]
        job.set_aside_by_coordinator.add(record)
        job.states[record] = SET_ASIDE
        self.progress += 1

    def retried(self, job_id: str, generation: int) -> None:
        """All records of the job that were set aside run again, as `generation`."""
        job = self.jobs[job_id]
        for record, state in enumerate(job.states):
            if state == SET_ASIDE:
                job.states[record] = OPEN
                job.versions[record] = -1
                job.reopened[record] = generation
        job.set_aside_by_coordinator.clear()
        self.chronicle.note(f"retry, generation {generation}", job_id, 0, job.total)
