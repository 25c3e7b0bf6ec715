"""How a worker updates itself: it fetches the ordered release while it works, and then says that it
is ready to change over. What was decided, and what failed, is in `worker.releases`."""

from __future__ import annotations

import platform
import shutil
import threading
from functools import partial

from officegrid import __version__
from officegrid.core.backoff import delay_s
from officegrid.core.errors import InputError, OfficeGridError, UnavailableError
from officegrid.core.updatelife import Failure, Fetched, GoHome, Heard, Held
from officegrid.wire.work import ClaimRequest, UpdateFailure, UpdateOrder
from officegrid.worker.bootstrap import Running
from officegrid.worker.link import GaveUp, Link
from officegrid.worker.log import get_logger

log = get_logger("update")

MAX_WHEEL_BYTES = 64 * 1024 * 1024
RETRY_BASE_S = 30.0
RETRY_CAP_S = 900.0
MOST_CHARS = 1000


class Updater:
    """`obey` orders, `describe` this worker in its claims; `ready` is set when the worker is to end
    its units and change over. Thread-safe."""

    def __init__(self, running: Running, link: Link, stopping: threading.Event) -> None:
        self._running = running
        self._releases = running.releases
        self._link = link
        self._stopping = stopping
        self._lock = threading.Lock()
        self._order = UpdateOrder()
        self._thread: threading.Thread | None = None
        self._failure: UpdateFailure | None = None
        self.ready = threading.Event()

    @property
    def on_trial(self) -> bool:
        """Has the coordinator not answered this very program yet?"""
        trial = self._releases.life.trial
        return trial is not None and trial.digest == self._running.digest

    @property
    def pending(self) -> bool:
        """Is a release being fetched, or fetched?"""
        thread = self._thread
        return self.ready.is_set() or (
            thread is not None and thread.is_alive() and self._failure is None
        )

    def describe(self, request: ClaimRequest) -> None:
        """Say in a claim what runs here, and what did not work."""
        request.version = __version__
        request.release = self._running.digest or None
        request.update_mark = self._order.mark
        request.update_failed = self._failure or self._failed()

    def _failed(self) -> UpdateFailure | None:
        """The last release that was tried here in vain, unless a later one works."""
        life = self._releases.life
        if not life.failed:
            return None
        digest, last = max(life.failed.items(), key=lambda item: item[1].number)
        if life.current is not None and life.current.number > last.number:
            return None
        return _failure(digest, last)

    def answered(self) -> None:
        """The coordinator has answered a claim: this program works."""
        if not self.on_trial:
            return
        with self._lock:
            if self._releases.happened(Heard(self._running.digest)):
                log.info("release_good", version=__version__, release=self._running.digest[:12])
                self._releases.tidy()

    def obey(self, order: UpdateOrder) -> None:
        """Take what the coordinator says; returns at once."""
        with self._lock:
            before, self._order = self._order, order
            if order.text and order.text != before.text:
                log.warning("below_floor", what=order.text)
            if self.ready.is_set():
                return
            if order.home and self._running.digest:
                log.info("going_back", to="the installed program")
                if self._releases.happened(GoHome()):
                    self.ready.set()
                return
            if order.digest is None or order.digest == self._running.digest:
                return
            busy = self._thread is not None and self._thread.is_alive()
            if busy and (before.digest, before.number) == (order.digest, order.number):
                return
            if not self._releases.life.may_try(order.digest, order.number):
                return
            failure = self._failure  # an answer to a claim of before that
            if failure and (failure.digest, failure.number) == (order.digest, order.number):
                return
            self._failure = None
            self._thread = threading.Thread(
                target=self._fetch, args=(order,), name="update", daemon=True
            )
            self._thread.start()

    def _wanted(self, order: UpdateOrder) -> bool:
        """Is this still the order, and this worker still running?"""
        latest = self._order
        same = latest.digest is None or (latest.digest, latest.number) == (
            order.digest, order.number
        )  # fmt: skip
        return same and not latest.home and not self._stopping.is_set()

    def _fetch(self, order: UpdateOrder) -> None:
        log.info("update_ordered", version=order.version, release=(order.digest or "")[:12])
        attempt = 0
        while self._wanted(order):
            try:
                self._fetch_once(order)
                return
            except GaveUp:
                return
            except Exception as error:  # the units must go on, whatever is in a release
                self._note(order, error)
                if not isinstance(error, UnavailableError):
                    return
            pause_s = delay_s(attempt, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, random01=1.0)
            if self._stopping.wait(pause_s):
                return
            attempt += 1

    def _note(self, order: UpdateOrder, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        if isinstance(error, OfficeGridError):
            words = " ".join(filter(None, (error.what, error.why)))
        log.error("update_failed", version=order.version, why=words)
        self._failure = _failure(
            order.digest or "", Failure(order.version, order.number, words)
        )  # fmt: skip

    def _fetch_once(self, order: UpdateOrder) -> None:
        from officegrid.bundles.wheel import is_whole

        assert order.digest is not None
        place = self._releases.place(order.digest)
        if not is_whole(place):
            self._unpack(order)
        held = Held(order.digest, order.version, order.number, self._running.installed)
        with self._lock:
            if not self._wanted(order):
                return
            if not self._releases.happened(Fetched(held)):
                raise UnavailableError(
                    "The update cannot be noted.", "The disk does not take the worker's state."
                )
            self._failure = None
            log.info("update_ready", version=order.version)
            self.ready.set()

    def _unpack(self, order: UpdateOrder) -> None:
        """Fetch, check and unpack. Raises OfficeGridError."""
        import hashlib

        from officegrid.bundles.wheel import inspect_wheel, unpack_wheel

        assert order.digest is not None
        place = self._releases.place(order.digest)
        ask = partial(self._link.download_release, order.digest, MAX_WHEEL_BYTES)
        payload = self._link.patiently(ask, lambda: self._wanted(order))
        if hashlib.sha256(payload).hexdigest() != order.digest:
            raise UnavailableError("The release arrived damaged.", "Its SHA-256 is another one.")
        facts = inspect_wheel(payload)
        if facts.version != order.version:
            raise InputError(f"The release is {facts.version}, and {order.version} was ordered.")
        missing = _missing(facts.requires, facts.requires_python)
        if missing:
            raise InputError(
                f"This machine lacks what {facts.version} needs.", f"{', '.join(missing)}."
            )
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unpack_wheel(payload, place)


def _missing(requires: tuple[str, ...], requires_python: str) -> list[str]:
    import importlib.metadata
    import sys

    from officegrid.core.requirements import unmet

    def installed(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return unmet(
        requires, installed, python=platform.python_version(),
        requires_python=requires_python, platform=sys.platform,
    )  # fmt: skip


def _failure(digest: str, failure: Failure) -> UpdateFailure:
    return UpdateFailure(
        digest=digest, version=failure.version, number=failure.number, why=failure.why[:MOST_CHARS]
    )
