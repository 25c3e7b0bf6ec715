"""A worker as the coordinator sees one: claims ahead, computes, renews, commits, dies, freezes.

It keeps to the protocol of the real worker: units for two rounds of its slots, the next claim
inside the commit, a commit repeated until it is answered, and after a freeze that it notices it
asks which leases still hold before it commits anything.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from officegrid.core.errors import AuthError, OfficeGridError
from officegrid.testing.simulator.network import Network
from officegrid.testing.simulator.program import BUNDLE_VERSIONS, ObjectShelf, run_unit
from officegrid.testing.simulator.server import Message, Reply, Server
from officegrid.testing.simulator.timeline import Chronicle, Timeline
from officegrid.wire.agent import AgentReport, DeskEvent, DeskEventKind, DeskStatus
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    CommitReply,
    CommitRequest,
    LeaseProgress,
    RenewReply,
    RenewRequest,
    Unit,
)

ANSWER_WITHIN_S = 4.0
REPORTED_AGAIN_S = 5.0
OUTPUT_BLOCK_RECORDS = 24


@dataclass(frozen=True, slots=True)
class RecordTraits:
    """Which records of a job do harm to version `version` of its program."""

    killers: frozenset[int]
    bad: frozenset[int]


@dataclass(slots=True)
class Office:
    """What all workers share."""

    timeline: Timeline
    chronicle: Chronicle
    network: Network
    server: Server
    shelf: ObjectShelf
    rng: random.Random
    traits: Callable[[str, int], RecordTraits]
    """(job id, version) → the records that do harm."""
    renew_every_s: float
    stubborn: bool
    poll_s: float = 3.0
    deaths: int = 0
    """How often a record brought a machine down."""


@dataclass(slots=True, eq=False)
class Holding:
    unit: Unit
    state: str = "ready"  # ready, computing, committing
    commit: CommitRequest | None = None


@dataclass(eq=False)
class SimWorker:
    """One worker process; `machine_id` is its identity, which a clone shares. `agent_id` is that
    of the desktop on which its VM runs."""

    office: Office
    name: str
    machine_id: str
    slots: int
    records_per_s: float
    agent_id: str
    session_id: str = ""
    life: int = 0
    alive: bool = False
    revoked: bool = False
    cut_off: bool = False
    frozen_until: float = 0.0
    holdings: dict[str, Holding] = field(default_factory=dict)
    _claiming: bool = False
    _must_check: bool = False
    _asked: dict[int, Callable[[Reply | None], None]] = field(default_factory=dict)
    _number: int = 0
    _events_told: int = 0
    _asleep: list[Callable[[], None]] = field(default_factory=list)

    # --- life

    def start(self, session_id: str | None = None) -> None:
        """A new process on this machine (with the session of another one: a copy of it)."""
        self.life += 1
        self.alive = True
        self.session_id = session_id or f"{self.office.rng.getrandbits(64):016x}"
        self._claiming = self._must_check = False
        self._asked.clear()
        self._asleep.clear()
        self.frozen_until = 0.0
        self.office.chronicle.note(f"{self.name} starts, session {self.session_id}")
        self._later(self.office.rng.uniform(0.0, 0.5), self._claim)
        self._later(self.office.renew_every_s, self._renew_in_turn)
        for holding in self.holdings.values():
            if holding.state == "committing":
                self._send_commit(holding)
            else:
                holding.state = "ready"
        self._compute_next()

    def die(self, why: str) -> None:
        if not self.alive:
            return
        self.office.chronicle.note(f"{self.name} dies: {why}")
        self.alive = False
        self.life += 1
        self.holdings.clear()
        self._asked.clear()
        self._asleep.clear()

    def freeze(self, for_s: float, notices: bool) -> None:
        """Stop dead for a while; with `notices` the worker sees afterwards that time jumped."""
        if not self.alive or self.frozen_until > self.office.timeline.now:
            return
        self.office.chronicle.note(f"{self.name} freezes for {for_s:.1f} s")
        self.frozen_until = self.office.timeline.now + for_s
        life = self.life
        self.office.timeline.after(for_s, lambda: self.thaw(life, notices))

    def thaw(self, life: int, notices: bool) -> None:
        if life != self.life or not self.frozen_until:
            return
        self.office.chronicle.note(f"{self.name} thaws, {'notices' if notices else 'unaware'}")
        self.frozen_until = 0.0
        if notices and self.holdings:
            self._must_check = True
            self._renew()
        asleep, self._asleep = self._asleep, []
        for action in asleep:
            self._when_awake(life, action)

    def copy_as(self, name: str, same_session: bool) -> SimWorker:
        """A clone of the whole VM, with the units it holds; the caller starts it."""
        twin = SimWorker(
            self.office, name, self.machine_id, self.slots, self.records_per_s, self.agent_id
        )
        twin.holdings = {
            key: Holding(one.unit, one.state, copy.deepcopy(one.commit))
            for key, one in self.holdings.items()
        }
        twin.start(self.session_id if same_session else None)
        return twin

    def _when_awake(self, life: int, action: Callable[[], None]) -> None:
        if life != self.life or not self.alive:
            return
        if self.frozen_until > self.office.timeline.now:
            self._asleep.append(action)
        else:
            action()

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        life = self.life
        self.office.timeline.after(delay_s, lambda: self._when_awake(life, action))

    # --- messages

    def _ask(self, message: Message, heard: Callable[[Reply | None], None]) -> None:
        """Send; `heard` gets the reply, or None when none came in time."""
        self._number += 1
        number, life = self._number, self.life
        self._asked[number] = heard

        def hear(reply: Reply | None) -> None:
            waiting = self._asked.pop(number, None)
            if waiting is not None:
                waiting(reply)

        def answer(reply: Reply) -> None:
            self.office.network.carry(lambda: self._deliver(life, lambda: hear(reply)))

        def arrive() -> None:
            if not self.cut_off:
                self.office.server.receive(self.machine_id, message, answer)

        self.office.network.carry(arrive)
        self._later(ANSWER_WITHIN_S, lambda: hear(None))

    def _deliver(self, life: int, action: Callable[[], None]) -> None:
        if not self.cut_off:
            self._when_awake(life, action)

    def desk_says(self, kind: DeskEventKind) -> None:
        """The desktop's agent reports an event, and once more, as if it had heard no answer."""
        self._events_told += 1
        event = DeskEvent(number=self._events_told, kind=kind)
        status = DeskStatus(decision="yield", rule="input", sentence="Somebody is here.")
        self.office.chronicle.note(f"{self.name}: {kind}")

        def send(ago_s: float) -> None:
            told = event.model_copy(update={"ago_s": ago_s})
            report = AgentReport(run_id="run", status=status, events=[told])
            if not self.cut_off:
                self.office.server.receive(self.agent_id, report, lambda reply: None)

        self.office.network.carry(lambda: send(0.0))
        self.office.timeline.after(
            REPORTED_AGAIN_S, lambda: self.office.network.carry(lambda: send(REPORTED_AGAIN_S))
        )

    def _is_sent_away(self, reply: Reply | None) -> bool:
        if isinstance(reply, AuthError):
            self.revoked = True
            self.die("its access was revoked")
            return True
        if isinstance(reply, OfficeGridError) and reply.code == "session_replaced":
            self.die("another worker has taken its place")
            return True
        return False

    # --- claiming and computing

    def _room(self) -> int:
        return 2 * self.slots - len(self.holdings)

    def _claim_request(self, units: int, without: str = "") -> ClaimRequest:
        return ClaimRequest(
            session_id=self.session_id,
            slots=self.slots,
            units=max(0, units),
            held_leases=[lease_id for lease_id in self.holdings if lease_id != without],
        )

    def _claim(self) -> None:
        if self._claiming or self._room() <= 0:
            self._later(self.office.poll_s, self._claim)
            return
        self._claiming = True

        def heard(reply: Reply | None) -> None:
            self._claiming = False
            if self._is_sent_away(reply):
                return
            taken = self._take(reply) if isinstance(reply, ClaimReply) else 0
            pause_s = 0.05 if taken else self.office.poll_s * self.office.rng.uniform(0.7, 1.3)
            self._later(pause_s, self._claim)

        self._ask(self._claim_request(self._room()), heard)

    def _take(self, reply: ClaimReply) -> int:
        for unit in reply.units:
            self.holdings[unit.lease_id] = Holding(unit)
        self._compute_next()
        return len(reply.units)

    def _compute_next(self) -> None:
        busy = sum(1 for one in self.holdings.values() if one.state == "computing")
        for holding in [one for one in self.holdings.values() if one.state == "ready"]:
            if busy >= self.slots:
                return
            busy += 1
            self._compute(holding)

    def _compute(self, holding: Holding) -> None:
        holding.state = "computing"
        unit = holding.unit
        version = BUNDLE_VERSIONS[unit.bundle or ""]
        killers = self.office.traits(unit.job_id, version).killers
        speed = self.records_per_s * self.office.rng.uniform(0.7, 1.3)
        deadly = min((r for r in killers if unit.start <= r < unit.end), default=None)
        if deadly is not None:
            self._later((deadly - unit.start + 0.5) / speed, lambda: self._killed_by(deadly, unit))
            return
        took_s = (unit.end - unit.start) / speed
        self._later(took_s, lambda: self._computed(holding, version, took_s))

    def _killed_by(self, record: int, unit: Unit) -> None:
        if unit.lease_id not in self.holdings:
            return
        self.office.deaths += 1
        self.office.chronicle.note(f"{self.name} meets a killer", unit.job_id, record, record + 1)
        self.die(f"record {record} of {unit.job_id}")
        self.office.timeline.after(self.office.rng.uniform(0.5, 20.0), self.start)

    def _computed(self, holding: Holding, version: int, took_s: float) -> None:
        unit = holding.unit
        if unit.lease_id not in self.holdings:
            self._compute_next()
            return
        lines: list[bytes] = []
        for block in unit.input:
            lines += self.office.shelf.lines(block)
        lines = lines[unit.skip_records :][: unit.end - unit.start]
        bad = self.office.traits(unit.job_id, version).bad
        result = run_unit(self.office.shelf, lines, unit.start, bad, version, OUTPUT_BLOCK_RECORDS)
        holding.commit = CommitRequest(
            session_id=self.session_id,
            lease_id=unit.lease_id,
            job_id=unit.job_id,
            start=unit.start,
            end=unit.end,
            blocks=result.blocks,
            quarantined=result.quarantined,
            compute_s=took_s,
        )
        holding.state = "committing"
        self._compute_next()
        self._send_commit(holding)

    # --- committing and renewing

    def _send_commit(self, holding: Holding) -> None:
        request = holding.commit
        if request is None or holding.unit.lease_id not in self.holdings or self._must_check:
            return
        claims = not self._claiming
        if claims:
            self._claiming = True
            request.claim = self._claim_request(self._room() + 1, without=request.lease_id)
        else:
            request.claim = None

        def heard(reply: Reply | None) -> None:
            if claims:
                self._claiming = False
            if reply is None:
                self._later(self.office.rng.uniform(0.1, 3.0), lambda: self._send_commit(holding))
                return
            if self._is_sent_away(reply):
                return
            self.holdings.pop(request.lease_id, None)
            if isinstance(reply, CommitReply) and reply.next is not None:
                self._take(reply.next)

        self._ask(request.model_copy(), heard)

    def _renew_in_turn(self) -> None:
        self._renew()
        self._later(self.office.renew_every_s, self._renew_in_turn)

    def _renew(self) -> None:
        if not self.holdings:
            self._checked()
            return
        request = RenewRequest(
            session_id=self.session_id,
            leases=[LeaseProgress(lease_id=lease_id) for lease_id in self.holdings],
        )

        def heard(reply: Reply | None) -> None:
            if self._is_sent_away(reply):
                return
            if isinstance(reply, OfficeGridError) or reply is None:
                if self._must_check:
                    self._later(1.0, self._renew)
                return
            if isinstance(reply, RenewReply) and not self.office.stubborn:
                for lease_id in reply.lost:
                    self.holdings.pop(lease_id, None)
            self._checked()
            self._compute_next()

        self._ask(request, heard)

    def _checked(self) -> None:
        """The coordinator has said which leases hold: what waited to be committed goes out."""
        if self._must_check:
            self._must_check = False
            for holding in list(self.holdings.values()):
                if holding.state == "committing":
                    self._send_commit(holding)
