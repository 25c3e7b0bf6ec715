"""Who shares what it fetched, and the certificates that peers know one another by.

All of it is in memory: after a restart the workers tell it again within minutes, and whatever they
ask meanwhile, they get from the coordinator. That goes for the authority too. It is not the grid's
own one, so that no certificate of a peer can ever pass for the coordinator's.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from officegrid.coordinator.certificates import Authority, issue, make_authority, private_pem
from officegrid.coordinator.config import PeersConfig
from officegrid.core.peers import Holders, Network, network_of, parse_network, plain_address
from officegrid.wire.peers import (
    MOST_HELD,
    PEER_DOMAIN,
    PeerAsk,
    PeerCertificate,
    PeerList,
    PeerPlace,
    PeerReply,
    PeerView,
)

AGAIN_S = 120.0
FORGOTTEN_AFTER_S = 2.5 * AGAIN_S
NOT_ALLOWED_AGAIN_S = 600.0
ACCUSERS = 2
"""So many others must have tried a worker in vain before nobody is sent to it: one that finds
nobody at all has its own trouble."""
ACCUSED_S = 300.0
REVOKED_S = 60.0
SWEEP_EVERY_S = 5.0
CERTIFICATE_LIFETIME = timedelta(hours=12)
AUTHORITY_LIFETIME = timedelta(days=365)
_BACKDATED = timedelta(hours=2)  # the clock of a VM just restored may be behind


class Signer:
    """Makes the certificates. Thread-safe: each takes a millisecond or two."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._authority: Authority | None = None
        self._pem = ""
        self.authority_id = ""

    def certificate(self, machine_id: str) -> PeerCertificate:
        moment = datetime.fromtimestamp(self._clock(), UTC)
        with self._lock:
            authority, pem = self._current(moment), self._pem
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        key, cert = issue(
            authority, machine_id, [f"{machine_id}.{PEER_DOMAIN}"], moment - _BACKDATED,
            _BACKDATED + CERTIFICATE_LIFETIME, uses,
        )  # fmt: skip
        return PeerCertificate(
            certificate=cert.public_bytes(serialization.Encoding.PEM).decode(),
            key=private_pem(key).decode(),
            authority=pem,
            authority_id=_id_of(pem),
            expires_at=cert.not_valid_after_utc.timestamp(),
        )

    def _current(self, moment: datetime) -> Authority:
        made = self._authority
        if made is None or not (
            made.cert.not_valid_before_utc
            <= moment
            < made.cert.not_valid_after_utc - CERTIFICATE_LIFETIME
        ):
            made = make_authority(
                "Office Grid peers", moment - _BACKDATED, moment + AUTHORITY_LIFETIME
            )
            self._authority, self._pem = made, made.cert_pem.decode()
            self.authority_id = _id_of(self._pem)
        return made


def _id_of(pem: str) -> str:
    return hashlib.sha256(pem.encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Known:
    """A worker that listens. Its objects are in the holders of its network."""

    address: str
    port: int
    network: str
    told_at: float


@dataclass
class Peers:
    """Used on the event loop's thread only, but for `signer` and `sharing`."""

    config: PeersConfig
    clock: Callable[[], float]
    got_objects: int = 0
    got_bytes: int = 0
    signer: Signer = field(init=False)
    _networks: list[Network] = field(init=False)
    _known: dict[str, _Known] = field(default_factory=dict)
    _holders: dict[str, Holders] = field(default_factory=dict)
    _accused: dict[str, dict[str, float]] = field(default_factory=dict)
    _revoked: dict[str, float] = field(default_factory=dict)
    _turn: int = 0
    _swept_at: float = 0.0

    def __post_init__(self) -> None:
        self.signer = Signer(self.clock)
        self._networks = [parse_network(one) for one in self.config.networks]

    def answer(
        self, machine_id: str, came_from: str, ask: PeerAsk, certificate: PeerCertificate | None
    ) -> PeerReply:
        """Take in what the worker says, and tell it who has what it wants. `came_from` is the
        address that its request came from."""
        if not self.config.allow:
            return PeerReply(allowed=False, again_s=NOT_ALLOWED_AGAIN_S)
        came_from = plain_address(came_from)
        network = network_of(came_from, self._networks) if came_from else ""
        self.got_objects += ask.got_objects
        self.got_bytes += ask.got_bytes
        self._sweep()
        for failed in ask.failed:
            self._accuse(failed, machine_id)
        lacking = self._note(machine_id, came_from, network, ask)
        return PeerReply(
            allowed=True,
            came_from=came_from,
            authority_id=self.signer.authority_id,
            certificate=certificate,
            peers=self._who_has(machine_id, network, ask.wants),
            tell_all=lacking,
            again_s=AGAIN_S,
        )

    def forget(self, machine_ids: Iterable[str]) -> None:
        """Their access was taken away, a moment ago for requests that are under way."""
        for one in machine_ids:
            self._drop(one)
            self._revoked[one] = self.clock()

    def view(self, name_of: Callable[[str], str]) -> PeerList:
        """Who shares now."""
        self._sweep(at_once=True)
        found = [
            PeerView(
                id=machine_id, name=name_of(machine_id), address=one.address, port=one.port,
                network=one.network, objects=len(self._holders[one.network].of(machine_id)),
                told_at=one.told_at,
            )
            for machine_id, one in self._known.items()
        ]  # fmt: skip
        return PeerList(
            allowed=self.config.allow,
            peers=sorted(found, key=lambda one: (one.network, one.name)),
            got_objects=self.got_objects,
            got_bytes=self.got_bytes,
        )

    @property
    def sharing(self) -> int:
        """How many workers share now."""
        return sum(not self._is_old(one) for one in list(self._known.values()))

    def _note(self, machine_id: str, came_from: str, network: str, ask: PeerAsk) -> bool:
        """True where the worker would be listed, but has not said here what it holds."""
        known = self._known.get(machine_id)
        if known is not None and (known.address, known.port) != (came_from, ask.port):
            self._drop(machine_id)
            known = None
        if not ask.port or not came_from or machine_id in self._revoked:
            return False
        if ask.holds is not None:
            holds = frozenset(ask.holds)
        elif known is not None:
            holds = self._holders[network].of(machine_id)
        else:
            return True
        holds |= frozenset(ask.adds[: MOST_HELD - len(holds)])
        if not holds:
            self._drop(machine_id)
            return False
        self._holders.setdefault(network, Holders()).set(machine_id, holds)
        self._known[machine_id] = _Known(came_from, ask.port, network, self.clock())
        return False

    def _who_has(self, machine_id: str, network: str, wants: list[str]) -> list[PeerPlace]:
        holders = self._holders.get(network)
        if holders is None or not wants:
            return []
        self._turn += 1
        return [
            PeerPlace(id=one, address=self._known[one].address, port=self._known[one].port, has=has)
            for one, has in holders.choose(wants, machine_id, self._turn).items()
        ]

    def _accuse(self, accused: str, by: str) -> None:
        if accused not in self._known or accused == by:
            return
        now = self.clock()
        before = self._accused.get(accused, {})
        accusers = {one: at for one, at in before.items() if 0 <= now - at < ACCUSED_S}
        self._accused[accused] = {**accusers, by: now}
        if len(self._accused[accused]) >= ACCUSERS:
            self._drop(accused)

    def _sweep(self, *, at_once: bool = False) -> None:
        now = self.clock()
        if not at_once and 0 <= now - self._swept_at < SWEEP_EVERY_S:
            return
        self._swept_at = now
        for machine_id, one in list(self._known.items()):
            if self._is_old(one):
                self._drop(machine_id)
        self._revoked = {one: at for one, at in self._revoked.items() if 0 <= now - at < REVOKED_S}

    def _is_old(self, one: _Known) -> bool:
        return not 0 <= self.clock() - one.told_at < FORGOTTEN_AFTER_S

    def _drop(self, machine_id: str) -> None:
        self._accused.pop(machine_id, None)
        known = self._known.pop(machine_id, None)
        if known is not None:
            holders = self._holders[known.network]
            holders.set(machine_id, frozenset())
            if not len(holders):
                del self._holders[known.network]
