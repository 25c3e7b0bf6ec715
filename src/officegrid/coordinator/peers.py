"""Who shares what it fetched, and the certificates that peers know one another by.

All of it is in memory: after a restart the workers tell it again within minutes, and whatever they
ask meanwhile, they get from the coordinator. That goes for the authority too. It is not the grid's
own one, so that no certificate of a peer can ever pass for the coordinator's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from officegrid.coordinator.certificates import Authority, issue, make_authority, private_pem
from officegrid.coordinator.config import PeersConfig
from officegrid.core.peers import Network, Sharer, choose, network_of, parse_network, plain_address
from officegrid.wire.peers import (
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
CERTIFICATE_LIFETIME = timedelta(hours=12)
AUTHORITY_LIFETIME = timedelta(days=365)
_BACKDATED = timedelta(hours=2)  # the clock of a VM just restored may be behind


@dataclass(frozen=True, slots=True)
class _Known:
    sharer: Sharer
    network: str
    told_at: float


@dataclass
class Peers:
    """Used on the event loop's thread only."""

    config: PeersConfig
    clock: Callable[[], float]
    got_objects: int = 0
    got_bytes: int = 0
    _known: dict[str, _Known] = field(default_factory=dict)
    _by_network: defaultdict[str, dict[str, Sharer]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _turn: int = 0
    _authority: Authority | None = None

    def answer(self, machine_id: str, came_from: str, ask: PeerAsk) -> PeerReply:
        """Take in what the worker says, and tell it who has what it wants. `came_from` is the
        address that its request came from."""
        if not self.config.allow:
            return PeerReply(allowed=False, again_s=NOT_ALLOWED_AGAIN_S)
        came_from = plain_address(came_from)
        reachable = bool(came_from) and plain_address(ask.address) == came_from
        self.got_objects += ask.got_objects
        self.got_bytes += ask.got_bytes
        self._drop_old()
        for failed in ask.failed:
            self._drop(failed)
        self._drop(machine_id)
        network = network_of(came_from, self._networks) if came_from else ""
        if reachable and ask.port and ask.holds:
            sharer = Sharer(machine_id, came_from, ask.port, frozenset(ask.holds))
            self._known[machine_id] = _Known(sharer, network, self.clock())
            self._by_network[network][machine_id] = sharer
        return PeerReply(
            allowed=True,
            reachable=reachable,
            authority=self._signer().cert_pem.decode(),
            certificate=self._certificate(machine_id) if ask.certificate else None,
            peers=self._holders(machine_id, network, ask.wants),
            again_s=AGAIN_S,
        )

    def forget(self, machine_id: str) -> None:
        """Its access was taken away."""
        self._drop(machine_id)

    def view(self, name_of: Callable[[str], str]) -> PeerList:
        """Who shares now."""
        self._drop_old()
        found = [
            PeerView(
                id=one.sharer.id, name=name_of(one.sharer.id), address=one.sharer.address,
                port=one.sharer.port, network=one.network, objects=len(one.sharer.holds),
                told_at=one.told_at,
            )
            for one in self._known.values()
        ]  # fmt: skip
        return PeerList(
            allowed=self.config.allow,
            peers=sorted(found, key=lambda one: (one.network, one.name)),
            got_objects=self.got_objects,
            got_bytes=self.got_bytes,
        )

    @property
    def sharing(self) -> int:
        """How many workers share now. From any thread."""
        return sum(not self._is_old(one) for one in list(self._known.values()))

    @property
    def _networks(self) -> list[Network]:
        return [parse_network(one) for one in self.config.networks]

    def _holders(self, machine_id: str, network: str, wants: list[str]) -> list[PeerPlace]:
        if not wants:
            return []
        others = [one for one in self._by_network[network].values() if one.id != machine_id]
        self._turn += 1
        return [
            PeerPlace(id=one.id, address=one.address, port=one.port, has=sorted(has))
            for one, has in choose(others, wants, self._turn)
        ]

    def _drop_old(self) -> None:
        for one in list(self._known.values()):
            if self._is_old(one):
                self._drop(one.sharer.id)

    def _is_old(self, one: _Known) -> bool:
        return not 0 <= self.clock() - one.told_at < FORGOTTEN_AFTER_S

    def _drop(self, machine_id: str) -> None:
        known = self._known.pop(machine_id, None)
        if known is not None:
            del self._by_network[known.network][machine_id]
            if not self._by_network[known.network]:
                del self._by_network[known.network]

    def _signer(self) -> Authority:
        moment = datetime.fromtimestamp(self.clock(), UTC)
        made = self._authority
        if made is None or not (
            made.cert.not_valid_before_utc
            <= moment
            < made.cert.not_valid_after_utc - CERTIFICATE_LIFETIME
        ):
            made = make_authority(
                "Office Grid peers", moment - _BACKDATED, moment + AUTHORITY_LIFETIME
            )
            self._authority = made
        return made

    def _certificate(self, machine_id: str) -> PeerCertificate:
        moment = datetime.fromtimestamp(self.clock(), UTC)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        key, cert = issue(
            self._signer(), machine_id, [f"{machine_id}.{PEER_DOMAIN}"], moment - _BACKDATED,
            _BACKDATED + CERTIFICATE_LIFETIME, uses,
        )  # fmt: skip
        return PeerCertificate(
            certificate=cert.public_bytes(serialization.Encoding.PEM).decode(),
            key=private_pem(key).decode(),
            expires_at=cert.not_valid_after_utc.timestamp(),
        )
