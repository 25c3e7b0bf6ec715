"""The worker: claims units ahead, runs them in its slots, commits, and keeps its leases alive.

Threads: one *claimer* (asks for units while there is room), one per *slot* (runs programs), a
few *finishers* (wait for uploads and commit, so that a slot goes on at once with its next unit),
and the *keeper* (renews leases, notices that the machine was frozen).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from officegrid.core.errors import (
    AuthError,
    InternalError,
    OfficeGridError,
    UnavailableError,
    VersionError,
)
from officegrid.core.freeze import FreezeDetector
from officegrid.wire.work import ClaimReply, ClaimRequest, CommitReply, CommitRequest
from officegrid.worker.bundles import BundleCache
from officegrid.worker.holding import Holding, Holdings
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.log import get_logger
from officegrid.worker.reference import ReferenceData
from officegrid.worker.slot import Finished, Slot
from officegrid.worker.unit_input import BlockCache, UnitInput
from officegrid.worker.updating import Updater

log = get_logger("worker")

POLL_S = 25.0  # how long a claim waits at the coordinator for work
KEEPER_TICK_S = 0.5
STOP_GRACE_S = 5.0
TROUBLE_PAUSE_S = 10.0
NOT_THIS_MACHINE = frozenset({"cloned", "session_replaced"})
"""Errors that say that another worker is the machine this one believes to be."""


class Worker:
    """`run()` works until `stop()`, or with `drain` until nothing is left on the grid."""

    def __init__(
        self,
        link: Link,
        stopping: threading.Event,
        folder: Path,
        updater: Updater,
        *,
        slots: int = 1,
        drain: bool = False,
    ) -> None:
        self._link = link
        self._stopping = stopping
        self._updater = updater
        self._slots = slots
        self._drain = drain
        self._holdings = Holdings()
        self._ready: queue.Queue[Holding] = queue.Queue()
        self._claiming = threading.Lock()
        # Open while the leases are known to be checked; closed for a moment after a freeze.
        self._checked = threading.Event()
        self._checked.set()
        self._renew_every_s = 10.0
        self._fatal: OfficeGridError | None = None
        self.units_committed = 0
        self.records_committed = 0
        bundles, data = BundleCache(folder), ReferenceData(folder)
        self._blocks = BlockCache()
        scratch = folder / "scratch"
        self._slot_list = [
            Slot(n, link, bundles, data, self._blocks, scratch) for n in range(slots)
        ]
        self._finishers = ThreadPoolExecutor(max_workers=slots + 1, thread_name_prefix="finish")

    def run(self) -> None:
        """Blocks. Raises the error that makes going on pointless (revoked, too old)."""
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("claimer", self._claim_loop), ("keeper", self._keep_loop)
        ]  # fmt: skip
        jobs += [(f"slot-{n}", self._slot_loop(slot)) for n, slot in enumerate(self._slot_list)]
        threads = [
            threading.Thread(target=self._guarded(target), name=name, daemon=True)
            for name, target in jobs
        ]
        log.info("started", slots=self._slots, drain=self._drain)
        for thread in threads:
            thread.start()
        while not self._stopping.wait(0.2):
            pass
        self._shut_down(threads)
        if self._fatal is not None:
            raise self._fatal

    def _guarded(self, target: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                target()
            except GaveUp:
                return
            except OfficeGridError as error:
                self._die(error)
            except Exception as error:
                self._die(
                    OfficeGridError(
                        "The worker made a mistake and stops.",
                        f"{type(error).__name__}: {error}",
                        "Start it again; if it stays, report it with this text.",
                    )
                )
                raise

        return run

    def _die(self, error: OfficeGridError) -> None:
        if self._fatal is None:
            self._fatal = error
        self._stopping.set()

    # --- claiming

    def _claim_loop(self) -> None:
        while not self._stopping.is_set():
            with self._holdings.changed:
                room = self._room()
                if self._updater.ready.is_set() and self._has_nothing():
                    log.info("changes_over", units=self.units_committed)
                    self._stopping.set()
                    return
                if room <= 0:
                    self._holdings.changed.wait(0.5)
                    continue
            try:
                with self._claiming:
                    request = self._claim_request(self._room(), POLL_S)
                    reply = self._link.patiently(partial(self._link.claim, request))
                    self._take(reply)
            except InternalError as error:  # a fault over there, perhaps of one job only
                log.error("claim_failed", what=error.what)
                self._stopping.wait(TROUBLE_PAUSE_S)
                continue
            if reply.units:
                continue
            if self._updater.pending:
                continue
            if self._drain and reply.idle and len(self._holdings) == 0:
                log.info("drained", units=self.units_committed, records=self.records_committed)
                self._stopping.set()
                return
            self._stopping.wait(0.05)

    def _has_nothing(self) -> bool:
        """No unit, and none on its way here in the answer to a commit."""
        if not self._claiming.acquire(blocking=False):
            return False
        try:
            return not len(self._holdings)
        finally:
            self._claiming.release()

    def _room(self) -> int:
        if self._link.resting or self._updater.ready.is_set():
            return -1  # not even for the one that a commit makes room for
        return 2 * self._slots - len(self._holdings)

    def _claim_request(self, units: int, wait_s: float) -> ClaimRequest:
        waits = min(wait_s, 1.0) if self._drain or self._updater.pending else wait_s
        if self._updater.on_trial:
            waits = 0.0  # the answer decides whether this program stays
        request = ClaimRequest(
            session_id=self._link.session_id,
            slots=self._slots,
            units=max(0, min(units, 64)),
            wait_s=waits if not len(self._holdings) else min(waits, 5.0),
            held_leases=self._holdings.ids(),
            hardware_id=self._link.hardware_id,
        )
        self._updater.describe(request)
        return request

    def _take(self, reply: ClaimReply) -> None:
        self._updater.answered()
        if reply.update is not None:
            self._updater.obey(reply.update)
        for unit in reply.units:
            self._renew_every_s = unit.renew_every_s
            holding = self._holdings.add(unit)
            holding.input = UnitInput(unit, self._link, self._blocks)  # fetches ahead from now on
            self._ready.put(holding)

    # --- working

    def _slot_loop(self, slot: Slot) -> Callable[[], None]:
        def loop() -> None:
            try:
                while not self._stopping.is_set():
                    with contextlib.suppress(queue.Empty):
                        self._work_on(slot, self._ready.get(timeout=0.2))
            finally:
                slot.close()

        return loop

    def _work_on(self, slot: Slot, holding: Holding) -> None:
        self._checked.wait()
        if holding.lost:
            self._holdings.drop(holding)
            return
        if self._link.resting:  # claimed before the trouble: others can do it now
            holding.lose()
            with contextlib.suppress(OfficeGridError):
                self._link.release([holding.unit.lease_id], "this machine has a problem")
            self._holdings.drop(holding)
            return
        try:
            finished = slot.run(holding)
        except Exception as error:
            slot.close()
            self._give_up(holding, error)
            return
        if finished is None:
            if not self._stopping.is_set():
                self._holdings.drop(holding)
            return
        self._finishers.submit(self._finish, finished)

    def _give_up(self, holding: Holding, error: Exception) -> None:
        """A mistake of ours over one unit must neither stop the worker nor keep the unit."""
        log.error("unit_crashed", lease=holding.unit.lease_id, error=repr(error))
        holding.lose()
        text = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()
        with contextlib.suppress(OfficeGridError):
            self._link.release([holding.unit.lease_id], text, fault=True)
        self._holdings.drop(holding)

    def _finish(self, finished: Finished) -> None:
        holding = finished.holding
        try:
            blocks, bad = finished.wait()
            self._checked.wait()
            unit = holding.unit
            request = CommitRequest(
                session_id=self._link.session_id,
                lease_id=unit.lease_id,
                job_id=unit.job_id,
                start=unit.start,
                end=unit.end,
                blocks=blocks,
                quarantined=bad,
                compute_s=finished.compute_s,
                bundle=finished.bundle,
            )
            reply = self._commit(holding, request)
        except GaveUp:
            if not self._stopping.is_set():
                self._holdings.drop(holding)
            return
        except (AuthError, VersionError) as error:
            self._die(error)
            return
        except OfficeGridError as error:
            log.error("commit_failed", lease=holding.unit.lease_id, what=error.what)
            with contextlib.suppress(OfficeGridError):
                self._link.release([holding.unit.lease_id], str(error), fault=True)
            self._holdings.drop(holding)
            return
        except Exception as error:
            self._give_up(holding, error)
            return
        if reply.outcome == "refused":
            log.info("commit_refused", lease=request.lease_id, reason=reply.reason)
        else:
            self.units_committed += 1
            self.records_committed += request.end - request.start
            log.info(
                "committed", job=request.job_id, start=request.start, end=request.end,
                quarantined=len(bad), seconds=f"{finished.compute_s:.2f}",
            )  # fmt: skip

    def _commit(self, holding: Holding, request: CommitRequest) -> CommitReply:
        """Commit and, unless a claim is under way already, claim the next in the same breath."""
        claims = not self._stopping.is_set() and self._claiming.acquire(blocking=False)
        try:
            if claims and self._room() + 1 > 0:
                request.claim = self._claim_request(self._room() + 1, 0.0)
                request.claim.held_leases.remove(request.lease_id)
            reply = self._link.patiently(
                lambda: self._link.commit(request), lambda: not holding.lost
            )
            self._holdings.drop(holding)
            if reply.next is not None:
                self._take(reply.next)
            return reply
        finally:
            if claims:
                self._claiming.release()

    # --- keeping leases

    def _keep_loop(self) -> None:
        detector = FreezeDetector(KEEPER_TICK_S)
        renewed_at = time.monotonic()
        while not self._stopping.wait(KEEPER_TICK_S):
            gap_s = detector.tick(time.time(), time.monotonic())
            if gap_s is not None:
                self._after_freeze(gap_s)
                renewed_at = time.monotonic()
            elif time.monotonic() - renewed_at >= self._renew_every_s:
                self._renew()
                renewed_at = time.monotonic()

    def _after_freeze(self, gap_s: float) -> None:
        """The machine was suspended, or its clock was set: nothing is committed or started
        before the coordinator has said which leases still hold."""
        log.warning("frozen", seconds=f"{gap_s:.0f}", holding=len(self._holdings))
        self._checked.clear()
        try:
            if len(self._holdings):
                self._link.patiently(self._renew_now)
        except InternalError as error:
            log.error("renew_failed", what=error.what)
        finally:
            self._checked.set()

    def _renew(self) -> None:
        try:
            self._renew_now()
        except (
            UnavailableError,
            InternalError,
        ) as error:  # the next tick tries again; the work goes on
            log.info("renew_failed", what=error.what)

    def _renew_now(self) -> None:
        held = self._holdings.all()
        if not held:
            return
        reply = self._link.renew([holding.progress() for holding in held])
        for lease_id in reply.lost:
            holding = self._holdings.get(lease_id)
            if holding is not None and not holding.lost:
                log.info("lease_lost", lease=lease_id)
                holding.lose()

    # --- stopping

    def _shut_down(self, threads: list[threading.Thread]) -> None:
        """Stop programs at once, let commits that are under way end, give the rest back."""
        for holding in self._holdings.all():
            if holding.runner is not None or holding.output is None:
                holding.lose()
        deadline = time.monotonic() + STOP_GRACE_S
        self._checked.set()
        for thread in threads:
            if thread.name.startswith("slot"):
                thread.join(max(0.1, deadline - time.monotonic()))
        self._finishers.shutdown(wait=False, cancel_futures=True)
        with self._holdings.changed:
            while self._finishing() and time.monotonic() < deadline:
                self._holdings.changed.wait(0.1)
        left = self._holdings.ids()
        try:
            if left:
                self._link.release(left, "the worker was stopped")
            # Whoever has this machine's place now is not stopped.
            goes_on = self._fatal is None and self._updater.ready.is_set()
            if not goes_on and (self._fatal is None or self._fatal.code not in NOT_THIS_MACHINE):
                self._link.tell("worker_stopped")
        except OfficeGridError as error:
            log.warning("not_released", units=len(left), what=error.what)
        log.info(
            "stopped",
            units=self.units_committed,
            records=self.records_committed,
            released=len(left),
        )

    def _finishing(self) -> bool:
        return any(
            h.output is not None and h.runner is None and not h.lost for h in self._holdings.all()
        )
