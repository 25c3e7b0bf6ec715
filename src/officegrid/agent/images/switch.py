"""Which image the worker VM is made from, and when it is made anew: glue around `core.imagelife`.

    images = Images(folders, line, pace, tell=journal.trouble, hurry=reporter.hurry)
    images.use(config, choice.driver, vm_state)       with each new watch
    images.obey(orders.image)                         from the reporter's thread
    images.prepared(action, state); images.ended(finished)      on the operator's thread
    images.heard(); images.hold()                     on the loop's thread
    images.due(…); images.choose(); images.make_anew(driver, image)    on the main thread

Each step of the life is durable before it has any effect. What could not be kept has no effect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from officegrid.agent.config import AgentConfig
from officegrid.agent.drivers.base import Driver
from officegrid.agent.files import Folders
from officegrid.agent.images.fetch import Fetcher, Line, Pace, Progress
from officegrid.agent.images.hygiene import Hygiene, Tell, vm_room_bytes
from officegrid.agent.images.store import Store
from officegrid.agent.log import get_logger
from officegrid.agent.operator import Finished
from officegrid.agent.parts import DOUBTFUL
from officegrid.core import imageevents as events
from officegrid.core.errors import OfficeGridError, UnavailableError
from officegrid.core.imageevents import Held, Order
from officegrid.core.imagelife import Do, Life, step
from officegrid.core.vm import HOLDS_MEMORY, RepairStep, Trouble, VmState
from officegrid.core.vmlife import Action, Verb, Want
from officegrid.wire.images import ImageOrder, ImageReport, UseState

log = get_logger("images")

AGAIN_S = 60.0
"""After a VM could not be made anew."""
SWITCH_WITHIN_S = 12 * 3600.0
"""A PC that nobody uses gives its VM back for a new image after this time."""
LEAVE_WITHIN_S = 3600.0
"""And after this one where what it runs is not wanted any more: an image that was taken back."""
MOST_TEXT_CHARS = 1024
_UNFIT = frozenset({Trouble.FAILED, Trouble.STUCK, Trouble.TIMEOUT, Trouble.UNSUPPORTED})
"""Troubles of a start that may well be the image's fault; others are this PC's."""
NO_IMAGE = "The worker image is not on this PC yet."


class Images:
    """See the module. Thread-safe."""

    def __init__(
        self, folders: Folders, line: Line, pace: Pace, *, tell: Tell, hurry: Callable[[], None]
    ) -> None:
        self.store = Store(folders.images, folders.images_record)
        self._vm_folder = folders.vm
        self._tell, self._hurry = tell, hurry
        self._lock = threading.RLock()
        self._life = self.store.load()
        self._config = AgentConfig()
        self._format = ""
        self._vm_state: Callable[[], VmState] = lambda: VmState.UNKNOWN
        self._cold = self._hearing = False
        self._booted = self._life.trial is not None  # by an earlier run, perhaps
        self._not_before_s = self._ready_since_s = float("-inf")
        self._unwanted_since_s = time.monotonic()
        self._fetcher = Fetcher(
            line, self.store, pace, wanted=self._to_fetch, fetched=self._fetched,
            told=lambda text: tell(text, once=True),
            vm_bytes=lambda size, ext: vm_room_bytes(size, ext, self._config.vm.memory_mb),
        )  # fmt: skip
        self._hygiene = Hygiene(self.store, self._kept, tell)

    # --- the watch

    @property
    def life(self) -> Life:
        return self._life

    @property
    def pinned(self) -> bool:
        """Does agent.toml name a file of the admin's own?"""
        return self._config.vm.image is not None

    def use(self, config: AgentConfig, driver: Driver, vm_state: Callable[[], VmState]) -> None:
        """Settings and driver that are worked with from now on. Sweeps what is not needed."""
        self._vm_state = vm_state
        self._config = config
        self._format = driver.capabilities().image_format
        if not self.pinned and self._format:
            self._apply(events.FormatIs(self._format))
            self._check_files()
            stranger = self._life.wanted is not None and self._life.made_of is None
            if stranger and driver.state().state is not VmState.ABSENT:
                self._apply(events.Outgrown("It was made from another image than the grid's."))
            if self._life.booting:
                self._find_out(driver.state().state)
        if self._life.candidate is not None:
            self._ready_since_s = time.monotonic()
        self._fetcher.wake()
        self._hygiene.use(driver, config.vm.name, pinned=self.pinned)

    def start(self) -> None:
        self._fetcher.start()

    def close(self) -> None:
        self._fetcher.close()

    def path(self) -> Path | None:
        """The file that a new VM is made from; None: there is none, or agent.toml names one."""
        held = self._life.wanted
        return None if held is None else self.store.path(held)

    def obey(self, order: ImageOrder | None) -> None:
        """The coordinator's order."""
        if order is None and (self.pinned or not self._format):
            return  # a PC that can use none just now is told of none; what it has is kept
        wanted = None
        if order is not None:
            wanted = Order(order.id, order.version, order.name, order.retry)
        if wanted != self._life.ordered:
            self._apply(events.Ordered(wanted))
            self._fetcher.wake()

    # --- what the operator and the loop tell

    def prepared(self, action: Action, state: VmState) -> None:
        """Before a verb. Raises UnavailableError if what it does cannot be kept, or if the VM is
        to be deleted first."""
        self._cold = action.verb is Verb.START and state is not VmState.SAVED
        if self._life.remake and (_makes(action) or action.verb is Verb.START):
            raise UnavailableError("The worker VM is made anew first.", self._life.remake)
        if _makes(action):
            self._apply(events.Making(pinned=self.pinned), must=True)
        elif self._cold or (action.verb is Verb.RESUME and self._booted):
            self._apply(events.Booting())

    def ended(self, finished: Finished) -> None:
        """After a verb: is the image any good?"""
        action, error = finished.action, finished.error
        if not finished.held and not self.pinned:
            self._judge(action, error)
        goes_on = action.verb in (Verb.START, Verb.RESUME) and error is None and not finished.held
        if self._life.booting and not goes_on:
            self._apply(events.BootEnded())

    def leaving(self) -> None:
        """The agent ends in order: what boots is no boot in vain."""
        if self._life.booting:
            self._apply(events.BootEnded())

    def _judge(self, action: Action, error: tuple[Trouble, str] | None) -> None:
        trouble, said = error if error is not None else (None, "")
        if trouble is Trouble.IMAGE:
            self._booted = False
            self._apply(events.Refused(said))
        elif action.verb is Verb.START and self._cold:
            self._booted = trouble is None or trouble in _UNFIT
        elif _makes(action) and trouble in _UNFIT:
            self._apply(events.BootFailed(said))
        elif action.verb is Verb.REPAIR and action.want is Want.RUN and self._booted:
            self._booted = False
            self._apply(events.BootFailed(action.reason))

    def heard(self) -> None:
        """The coordinator has heard the worker in the VM that runs. Returns at once."""
        if self._life.trial is not None and not self.pinned and not self._hearing:
            self._booted, self._hearing = False, True
            threading.Thread(target=self._keep_heard, name="heard", daemon=True).start()

    def _keep_heard(self) -> None:
        """A thread of its own: the loop never waits for a disk."""
        try:
            self._apply(events.Heard())
        finally:
            self._hearing = False

    def hold(self) -> str:
        """Why the VM is not to be started or made just now, though nothing is wrong; empty: it
        may. Asked only while nothing of it is in memory."""
        known = self._life
        if known.remake:
            if self._vm_state() in DOUBTFUL:
                return ""  # the repairs may well be what makes it possible; nothing is started
            return f"The worker VM is made anew. {known.remake}"
        if self.pinned or not self._format:
            return ""
        if known.candidate is not None:
            return f"The worker VM is made anew from image {known.candidate.name}."
        if known.wanted is None and self._vm_state() in (VmState.ABSENT, VmState.UNKNOWN):
            return NO_IMAGE
        return ""

    def waits(self) -> str:
        """What a PC without an image waits for, in a sentence with numbers; empty: it does not."""
        known = self._life
        if self.pinned or not self._format or known.wanted or known.candidate:
            return ""
        if self._vm_state() is not VmState.ABSENT:
            return ""
        if known.ordered is None:
            return (
                "The coordinator has no image yet for this PC: the admin runs "
                "`officegrid image push`."
            )
        if known.ordered.id in known.failed:
            reason = known.failed[known.ordered.id]
            return f"The worker image {known.ordered.name} does not work on this PC. {reason}"
        return (self._fetcher.progress or Progress(known.ordered.id, known.ordered.name)).text

    # --- making the VM anew, on the main thread

    def due(self, *, up: bool) -> bool:
        """Is the VM to be deleted now? `up`: something of it may be in memory; then only where it
        has been for very long."""
        now_s, known = time.monotonic(), self._life
        candidate = known.candidate is not None and not self.pinned
        if now_s < self._not_before_s or not (known.remake or candidate) or not self._format:
            return False  # without a format there is no hypervisor that could be asked
        unwanted = bool(known.remake) and now_s - self._unwanted_since_s > LEAVE_WITHIN_S
        waited = candidate and now_s - self._ready_since_s > SWITCH_WITHIN_S
        return not up or unwanted or waited

    def choose(self) -> bool:
        """Begin to make the VM anew: put the candidate on trial, if there is one. False: that
        could not be kept. Until `make_anew` succeeds, it is not due again for a while."""
        self._not_before_s = time.monotonic() + AGAIN_S
        if self.pinned or self._life.candidate is None:
            return True
        self._booted = False
        return self._apply(events.Free())

    def make_anew(self, driver: Driver, image: Path | None) -> bool:
        """Delete the VM, unless something of it is in memory. The loop to come makes a new one,
        from `image`: if another is wanted by the time, it is due once more. Never raises."""
        following = None if self.pinned else ("" if image is None else image.stem)
        try:
            state = driver.state().state
            if state in HOLDS_MEMORY | {VmState.UNKNOWN}:
                log.info("not_free", state=state)
                return False
            log.info("made_anew", why=self._life.remake, was=state)
            made_of = self._life.made_of
            same = self.pinned or (made_of is not None and made_of.sha256 == following)
            reset = getattr(driver, "reset", None) if same else None
            (reset or driver.delete)()  # a reset: the next import from the same image is quick
        except Exception as error:  # also a driver's own fault: the agent goes on
            if isinstance(error, OfficeGridError):
                why = f"{error.what} {error.why}"
            else:
                why = f"The driver made a mistake: {type(error).__name__}: {error}"
            self._tell(f"The old worker VM cannot be deleted. {why}", once=True)
            return False
        self._booted = False
        if not self._apply(events.Deleted(following)):
            return False
        self._not_before_s = float("-inf")
        return True

    def housekeep(self, now_s: float) -> None:
        """Now and then, on the main thread: quota and sweep."""
        state = self._vm_state()
        quota_gb = self._config.vm.disk_quota_gb
        if self._format and state in (VmState.OFF, VmState.SAVED) and not self._life.remake:
            said = self._hygiene.outgrown(self._vm_folder, quota_gb, now_s)
            if said and self._apply(events.Outgrown(said)):
                self._tell(said)
        # No look at other VMs may hold up a pause, also not of a VM that nobody has looked at yet.
        if state in (VmState.ABSENT, VmState.OFF, VmState.SAVED):
            self._hygiene.daily(now_s)

    # --- what the coordinator is told

    def report(self) -> ImageReport:
        known, order, progress = self._life, self._life.ordered, self._fetcher.progress
        there = self._vm_state() is not VmState.ABSENT
        made_of = known.made_of.id if known.made_of is not None and there else None
        told: dict[str, object] = {
            "format": self._format,
            "running": made_of,
            "pinned": self.pinned,
        }
        if order is not None and self._format and not self.pinned:
            state, text = _state_of(known, order, progress)
            told |= {"image": order.id, "state": state, "text": text[:MOST_TEXT_CHARS]}
            if state == "fetching" and progress is not None and progress.id == order.id:
                told |= {"done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes}
        return ImageReport.model_validate(told)

    # --- inside

    def _to_fetch(self) -> tuple[Order, str] | None:
        order = self._life.to_fetch()
        return None if order is None or self.pinned or not self._format else (order, self._format)

    def _fetched(self, held: Held) -> bool:
        self._ready_since_s = time.monotonic()
        return self._apply(events.Fetched(held))

    def _kept(self) -> tuple[frozenset[str], bool]:
        """Files that are needed. Until it is known which file the ordered image has here, any
        part may be the beginning of it."""
        progress = self._fetcher.progress
        coming = progress.sha256 if progress is not None else ""
        known = bool(coming) or self._to_fetch() is None
        return self._life.kept() | {coming}, known

    def _check_files(self) -> None:
        known = self._life
        for held in {known.current, known.previous, known.candidate, known.trial} - {None}:
            if held is not None and not self.store.holds(held):
                self._apply(events.Lost(held.sha256))

    def _find_out(self, state: VmState) -> None:
        """An earlier run of the agent ended while the trial booted: was it the boot's doing?"""
        if state in (VmState.OFF, VmState.BROKEN):
            self._booted = False
            self._apply(events.BootFailed("The PC or the agent went down while it booted."))
        elif state in (VmState.SAVED, VmState.ABSENT):
            self._apply(events.BootEnded())

    def _check_wanted(self, complaint: str) -> None:
        """A thread of its own: it reads the whole file."""
        held = self._life.wanted
        if held is None:
            return
        if not self.store.is_whole(held):
            self.store.drop(held)
            self._apply(events.Lost(held.sha256))
            self._fetcher.wake()
        elif complaint:
            self._apply(events.Refused(complaint, held.sha256))

    def _apply(self, event: events.Event, *, must: bool = False) -> bool:
        """The next step: durable, then its effects. False (or with `must` UnavailableError): it
        could not be kept, and nothing has changed."""
        with self._lock:
            new, effects = step(self._life, event)
            if new != self._life:
                try:
                    self.store.save(new)
                except OfficeGridError as error:
                    if must:
                        raise
                    self._tell(f"{error.what} {error.why}", once=True)
                    return False
                log.info("step", of=type(event).__name__, remake=new.remake)
                if new.remake and not self._life.remake:
                    self._unwanted_since_s = time.monotonic()
                self._life = new
                self._hurry()
        for effect in effects:
            if effect.do is Do.TELL:
                self._tell(effect.text)
            elif effect.do is Do.SWEEP:
                self._hygiene.sweep_files_soon()
            elif effect.do is Do.CHECK:
                check = threading.Thread(
                    target=self._check_wanted, args=(effect.text,), name="check", daemon=True
                )
                check.start()
        return True


def _makes(action: Action) -> bool:
    return action.verb is Verb.IMPORT_IMAGE or action.step is RepairStep.REIMPORT


def _state_of(known: Life, order: Order, progress: Progress | None) -> tuple[UseState, str]:
    """How the ordered image fares here."""
    if order.id in known.failed:
        return "failed", known.failed[order.id]
    if known.trial is not None and known.trial.id == order.id:
        return "trial", ""
    if known.current is not None and known.current.id == order.id:
        # One that was taken back may still be running.
        return ("good" if known.made_of in (None, known.current) else "ready"), ""
    if known.candidate is not None:
        return "ready", ""
    if progress is not None and progress.id == order.id:
        return ("failed" if progress.hopeless else "fetching"), progress.text
    return "fetching", ""
