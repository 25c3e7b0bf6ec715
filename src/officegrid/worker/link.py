"""The worker's line to the coordinator: patient where waiting helps, plain where it does not."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from officegrid.core.backoff import delay_s
from officegrid.core.errors import ForbiddenError, OfficeGridError, UnavailableError
from officegrid.transport.http import Connection
from officegrid.wire.work import (
    ClaimReply,
    ClaimRequest,
    CommitReply,
    CommitRequest,
    FailRequest,
    LeaseProgress,
    MachineEvent,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
)
from officegrid.worker.log import get_logger

if TYPE_CHECKING:
    from officegrid.wire.catalogue import FetchWay
    from officegrid.wire.peers import PeerAsk, PeerReply
    from officegrid.worker.peers.exchange import Peers

T = TypeVar("T")

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 60.0
log = get_logger("link")


def in_one_line(error: OfficeGridError) -> str:
    """What happened, why, and what helps, as sentences."""
    return " ".join(map(_sentence, filter(None, (error.what, error.why, error.fix))))


def _sentence(text: str) -> str:
    text = text.rstrip()
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."


class GaveUp(Exception):  # noqa: N818
    """The worker stops, or the unit is no longer ours: waiting has no point any more."""


class Link:
    """Every request a worker makes. Thread-safe."""

    def __init__(
        self, connection: Connection, session_id: str, stopping: threading.Event,
        hardware_id: str = "",
    ) -> None:  # fmt: skip
        self._connection = connection
        self._stopping = stopping
        self.session_id = session_id
        self.hardware_id = hardware_id
        self.peers: Peers | None = None
        """Other workers to fetch from, where this one is to have any."""
        self._away = False
        self._rests_until = 0.0
        self._random = random.Random()

    def patiently(self, request: Callable[[], T], wanted: Callable[[], bool] = lambda: True) -> T:
        """Repeat `request` while the coordinator is away, for hours if need be, with growing,
        jittered pauses. Raises GaveUp when the worker stops or `wanted()` turns false; other
        errors pass through.

        After the first failure it asks again at once: mostly only a connection has died, as all
        of them do when a saved VM is restored, and the coordinator is there.
        """
        attempt = 0
        asked_again = False
        while True:
            if not wanted():
                raise GaveUp
            try:
                result = request()
            except UnavailableError as error:
                if not self._away and not asked_again:
                    asked_again = True
                    continue
                pause_s = delay_s(
                    attempt,
                    base_s=BACKOFF_BASE_S,
                    cap_s=BACKOFF_CAP_S,
                    random01=self._random.random(),
                )
                if not self._away:
                    self._away = True
                    log.warning("coordinator_away", what=error.what, why=error.why)
                if self._stopping.wait(pause_s):
                    raise GaveUp from None
                attempt += 1
                continue
            if self._away:
                self._away = False
                log.info("coordinator_back")
            return result

    def for_unit(self, lease_id: str, request: Callable[[], T], wanted: Callable[[], bool]) -> T:
        """`request`, patiently, for a unit whose lease may have run out in the meantime: a lease
        whose records are still free is taken up again. Raises ForbiddenError if it is lost."""
        try:
            return self.patiently(request, wanted)
        except ForbiddenError:
            progress = [LeaseProgress(lease_id=lease_id)]
            if lease_id not in self.patiently(lambda: self.renew(progress), wanted).alive:
                raise
            return self.patiently(request, wanted)

    def rest(self, seconds: float) -> None:
        """Take no more units for so long: this machine has a problem of its own."""
        self._rests_until = time.monotonic() + seconds

    @property
    def resting(self) -> bool:
        return time.monotonic() < self._rests_until

    def claim(self, request: ClaimRequest) -> ClaimReply:
        return self._connection.call(
            "POST", "/v1/claim", body=request, reply=ClaimReply,
            timeout_s=request.wait_s + 30, retry=False,
        )  # fmt: skip

    def commit(self, request: CommitRequest) -> CommitReply:
        return self._connection.call("POST", "/v1/commit", body=request, reply=CommitReply)

    def renew(self, leases: list[LeaseProgress]) -> RenewReply:
        request = RenewRequest(session_id=self.session_id, leases=leases)
        return self._connection.call(
            "POST", "/v1/renew", body=request, reply=RenewReply, timeout_s=10, retry=False
        )

    def release(
        self, leases: list[str], reason: str, *, fault: bool = False, rest_s: float = 0.0
    ) -> None:
        request = ReleaseRequest(
            session_id=self.session_id, leases=leases, reason=reason[:1000], fault=fault,
            rest_s=rest_s,
        )  # fmt: skip
        self._connection.call("POST", "/v1/release", body=request, timeout_s=5)

    def fail(self, lease_id: str, error: OfficeGridError) -> None:
        request = FailRequest(
            session_id=self.session_id,
            lease_id=lease_id,
            error=in_one_line(error)[:8000],
        )
        self._connection.call("POST", "/v1/fail", body=request)

    def tell(self, kind: str, text: str = "") -> None:
        """Report an event on this machine; not important enough to fail over."""
        event = MachineEvent.model_validate(
            {"session_id": self.session_id, "kind": kind, "text": text[:1000]}
        )
        try:
            self._connection.call(
                "POST", "/v1/machine/events", body=event, timeout_s=5, retry=False
            )
        except OfficeGridError as error:
            log.info("event_not_told", event_kind=kind, what=error.what)

    def download(self, sha256: str, max_bytes: int) -> bytes:
        return self._connection.download(f"/v1/objects/{sha256}", max_bytes=max_bytes)

    def way(self, archive: str, have: list[str]) -> FetchWay:
        """The cheapest way to an archive from those that are here."""
        from officegrid.wire.catalogue import FetchWay  # few workers fetch in their first minute

        query = urlencode([("have", one) for one in have])
        path = f"/v1/archives/{archive}/way"
        return self._connection.call("GET", f"{path}?{query}" if query else path, reply=FetchWay)

    def archive_object(self, archive: str, sha256: str, max_bytes: int) -> bytes:
        return self._connection.download(
            f"/v1/archives/{archive}/objects/{sha256}", max_bytes=max_bytes
        )

    def ask_peers(self, ask: PeerAsk) -> PeerReply:
        """Tell what this worker can give to others, and ask who has what it needs."""
        from officegrid.wire.peers import PeerReply  # most grids have no peers

        return self._connection.call(
            "POST", "/v1/peers", body=ask, reply=PeerReply, timeout_s=5, retry=False
        )

    def download_release(self, digest: str, max_bytes: int) -> bytes:
        """The wheel of the release that this worker was told to run."""
        return self._connection.download(f"/v1/release/{digest}", max_bytes=max_bytes)

    def upload(self, sha256: str, payload: bytes) -> None:
        self._connection.upload(f"/v1/objects/{sha256}", payload)
