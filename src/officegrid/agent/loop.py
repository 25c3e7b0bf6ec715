"""The agent's loop: sample -> verdict -> next action -> a verb on the operator's thread.

Thin on purpose. `core.idle` decides whether the PC may be used, `core.vmcycle` what to do about
the VM; here is only what connects them to time and threads. The loop is woken by each sample
(ten times a second while a VM may be in memory, every two seconds otherwise), by the end of each
verb and by each observation, and never waits for any of them.

CPU back and memory back are measured from the input itself: from the moment the sensor says the
key was pressed, not from the moment it was noticed.
"""

from __future__ import annotations

import traceback
from dataclasses import replace

from officegrid.agent.log import get_logger
from officegrid.agent.operator import Finished
from officegrid.agent.parts import AFTER, DOUBTFUL, PERSONS, Ending, Parts, View, input_time
from officegrid.agent.sampler import FAST_S, SLOW_S
from officegrid.core.desk import Decision, Rule, Sample, Verdict
from officegrid.core.errors import InternalError
from officegrid.core.idle import IdleMemory, decide
from officegrid.core.vm import HOLDS_MEMORY, HealthLevel, Trouble, VmState, VmStatus
from officegrid.core.vmcycle import next_action
from officegrid.core.vmlife import Action, Facts, Limits, Memory, Verb, Want, done, explain, slept

log = get_logger("loop")

OBSERVE_UP_S = 5.0
OBSERVE_BOOTING_S = 2.0
OBSERVE_WAITING_S = 60.0
FRESH_S = 5.0
"""A VM is started, imported or repaired only on an observation younger than this."""
AFTER_ERROR_URGENT_S = 1.5
AFTER_ERROR_S = 15.0
"""After a failed verb the state is looked at before the next; not for longer than this."""
HELD_S = 30.0
GAP_S = 30.0
MOST_FAULTS = 5
MOST_SAVING_S = Limits().saving_s
"""A save of ours that takes longer is ended by force: somebody waits for the memory."""
SAMPLE_TIMEOUT_S = 5.0
"""A sample older than this counts as silence of all sensors."""


_WAITING = Verdict(Decision.YIELD, Rule.SILENT, "The agent has just started and knows nothing yet.")


class Loop:
    """One life of the loop, on the caller's thread. `end` and `view` are for other threads."""

    def __init__(
        self, parts: Parts, memory: Memory | None = None, idle: IdleMemory | None = None
    ) -> None:
        self._parts = parts
        self.memory = memory or Memory()
        self.idle = idle or IdleMemory()
        self._born_s = parts.clock()
        self._verdict = _WAITING
        self._verdict_since_s = parts.clock()
        self._sample: Sample | None = None
        self._status: VmStatus | None = None
        self._observed_s = float("-inf")
        self._verb_ended_s = float("-inf")
        self._wait_for_look_until_s = float("-inf")
        self._held_until_s = float("-inf")
        self._held = ""
        self._up_since_s: float | None = None
        self._input_s: float | None = None
        self._cpu_back_ms: float | None = None
        self._doing = ""
        self._starting = ""
        self._ending: Ending | None = None
        self._over = False
        self.released = False
        self._faults = 0

    # --- for other threads

    def end(self, how: Ending) -> None:
        """Begin to end. A shutdown overrides everything else."""
        if self._ending is not Ending.SHUTDOWN:
            self._ending = how
            self._parts.wake.set()

    def view(self) -> View:
        status = self._status or VmStatus(VmState.UNKNOWN, "not looked at yet")
        trouble = self._held or explain(self.memory, self._parts.clock())
        return View(self._verdict, status, self._doing, trouble, self._verdict_since_s)

    @property
    def up(self) -> bool:
        """May a VM of ours be in memory?"""
        busy = self._parts.operator.busy
        if busy is not None or self._status is None or self._status.state in HOLDS_MEMORY:
            return True
        return self._status.state is VmState.UNKNOWN and self._up_since_s is not None

    # --- the loop

    def run(self) -> None:
        """Until `end`. Raises InternalError when it keeps failing: then the caller must see to
        the VM."""
        parts = self._parts
        while not self._over:
            parts.wake.wait(2 * SLOW_S if not self.up else 4 * FAST_S)
            parts.wake.clear()
            try:
                self.tick()
                self._faults = 0
            except Exception as error:
                self._faults += 1
                log.error("fault", why=traceback.format_exc(limit=5))
                if self._faults >= MOST_FAULTS:
                    what = "The agent's loop keeps failing."
                    raise InternalError(what, f"{type(error).__name__}: {error}") from error

    def tick(self) -> None:
        """One turn; never blocks."""
        if self._starting and self._parts.operator.prepared:
            self._tell_starting()
        while (finished := self._parts.operator.take()) is not None:
            self._finish(finished)
        self._take_observation()
        # A VM found running tells the idle policy that quiet time need not be waited for anew.
        if self._status is not None or self._is_late():
            self._take_sample()
        self._act()
        self._set_pace()

    def _is_late(self) -> bool:
        """The first sample or observation should have come by now."""
        return self._parts.clock() - self._born_s > SAMPLE_TIMEOUT_S

    # --- what is new

    def _take_sample(self) -> None:
        parts, sample = self._parts, self._parts.sampler.latest
        now_s = parts.clock()
        if sample is None:
            return
        if now_s - sample.at_s > max(SAMPLE_TIMEOUT_S, 2 * parts.sampler.period_s):
            sample = replace(sample, at_s=now_s, sessions=None)
        elif self._sample is not None and sample.at_s <= self._sample.at_s:
            return
        if self._sample is not None:
            gap_s = sample.at_s - self._sample.at_s
            ahead_s = sample.wall_s - self._sample.wall_s - gap_s
            if gap_s > GAP_S:
                self.memory = slept(self.memory, gap_s)
            if gap_s > GAP_S or abs(ahead_s) > GAP_S:
                log.info("clock_jumped", monotonic_s=round(gap_s), wall_s=round(ahead_s))
                self._parts.observer.ask()
        self._sample = sample
        self.idle, verdict = decide(
            parts.policy(), self.idle, sample, vm_memory_mb=parts.vm_memory_mb
        )
        before, self._verdict = self._verdict, verdict
        if verdict.decision is not before.decision:
            self._turned(sample, verdict)
        if (verdict.decision, verdict.rule) != (before.decision, before.rule):
            self._verdict_since_s = sample.at_s
            parts.changed()

    def _turned(self, sample: Sample, verdict: Verdict) -> None:
        if verdict.decision is Decision.RUN:
            self._input_s = None
            self._parts.journal.event("idle", verdict.sentence, sample.at_s)
            return
        self._input_s = input_time(sample, verdict)
        self._cpu_back_ms = None
        if verdict.rule in PERSONS:
            self._parts.journal.event("user_back", verdict.sentence, self._input_s)

    def _take_observation(self) -> None:
        seen = self._parts.observer.latest
        if seen is None or self._parts.operator.busy is not None:
            return
        if seen.began_s <= max(self._observed_s, self._verb_ended_s):
            return
        first = self._status is None
        self._observed_s = seen.began_s
        self._wait_for_look_until_s = float("-inf")
        self._believe(seen.status)
        now_s = self._parts.clock()
        if first and seen.status.state is VmState.RUNNING:
            # Found running: an earlier life of this agent started it. It goes on.
            self._parts.journal.running("found running after a start of the agent", now_s)
            self.idle = replace(self.idle, running=True)
            self._up_since_s = now_s
        elif seen.status.state not in HOLDS_MEMORY | {VmState.UNKNOWN}:
            if self._up_since_s is not None:
                sentence = f"The VM is {seen.status.state.value}; nobody here stopped it."
                self._parts.journal.gone("stopped", now_s, sentence)
            self._up_since_s = None

    def _believe(self, status: VmStatus) -> None:
        before, self._status = self._status, status
        # Until an observation has named them, the processes of a VM that is up are not known.
        known = status.state not in HOLDS_MEMORY or self._is_observed()
        self._parts.sampler.own(status.pids, known=known)
        if before is None or before.state is not status.state:
            self._parts.changed()

    # --- what to do

    def _want(self) -> Want:
        if self._ending is Ending.SHUTDOWN:
            return Want.RELEASE
        if self._ending is Ending.RELEASE:
            return Want.YIELD
        if self._verdict.decision is Decision.RUN:
            return Want.RUN
        return Want.RELEASE if self._verdict.discard else Want.YIELD

    def _act(self) -> None:
        parts, now_s, want = self._parts, self._parts.clock(), self._want()
        if self._ending is Ending.LEAVE and parts.operator.busy is None:
            self._over = True
            return
        if parts.operator.busy is not None:
            self._look_at_busy(parts.operator.busy, want, now_s)
            return
        if self._status is None or now_s < self._wait_for_look_until_s:
            parts.observer.ask()
            return
        if self._sample is None and self._ending is None and not self._is_late():
            return
        if self._ending is not None and self._status.state not in HOLDS_MEMORY | DOUBTFUL:
            # What a verb promised is not enough to go by, unless the PC itself goes down.
            if self._is_observed() or self._ending is Ending.SHUTDOWN:
                self._over = self.released = True
            else:
                parts.observer.ask()
            return
        if want is not Want.RUN:
            self._held = ""
        elif self._held_back(now_s):
            return
        self.memory, action = next_action(self.memory, self._facts(want, now_s))
        for note in self.memory.notes:
            parts.journal.trouble(note)
        self._doing = action.reason
        if action.verb is Verb.WAIT:
            return
        if want is Want.RUN and now_s - self._observed_s > FRESH_S:
            parts.observer.ask()
            return
        self._submit(action)

    def _look_at_busy(self, busy: Action, want: Want, now_s: float) -> None:
        operator = self._parts.operator
        if want is not Want.RUN and busy.verb is Verb.START:
            operator.cancel()
        hung = busy.verb is Verb.SAVE and now_s - operator.busy_since_s > MOST_SAVING_S
        if hung and want is not Want.RUN and operator.force():
            self._parts.journal.trouble("The save does not end; the VM is ended by force.")

    def _is_observed(self) -> bool:
        """Has anybody looked at the VM since the last verb?"""
        return self._observed_s > self._verb_ended_s

    def _held_back(self, now_s: float) -> bool:
        """Reasons not to start that are neither the desk's nor the VM's."""
        if self._status is not None and self._status.state in HOLDS_MEMORY:
            return False
        health = self._parts.observer.health
        if health.level is HealthLevel.UNUSABLE:
            self._held = f"{health.sentence} {health.fix}".strip()
            self._parts.journal.trouble(self._held, once=True)
            return True
        if said := self._parts.hold():
            self._held = said
            return True
        if now_s < self._held_until_s:
            return True
        self._held = ""
        return False

    def _facts(self, want: Want, now_s: float) -> Facts:
        policy, sample = self._parts.policy(), self._sample
        free_mb = None if sample is None else sample.memory_free_mb
        # Our own memory counts as free in the sample.
        needed_mb = policy.memory_free_mb + self._parts.vm_memory_mb
        short = free_mb is None or free_mb < needed_mb or self._ending is not None
        return Facts(
            at_s=now_s,
            status=self._status or VmStatus(VmState.UNKNOWN),
            want=want,
            can=self._parts.capabilities,
            limits=Limits(
                saves_per_hour=policy.saves_per_hour,
                save_delay_s=policy.save_delay_s,
                boot_deadline_s=self._parts.boot_deadline_s,
            ),
            reported_in=self._reported_in(),
            memory_short=short,
            unheard_s=self._parts.unheard_s(),
            observed=self._is_observed(),
        )

    def _reported_in(self) -> bool | None:
        since_s, ready = self._up_since_s, self._status.ready if self._status else None
        if since_s is None:
            return None
        heard = self._parts.heard(since_s)
        if heard:
            self._parts.joined()
        # Who runs in the VM is known only by the coordinator: its word beats the guest's own.
        return ready if heard is None else heard

    def _submit(self, action: Action) -> None:
        journal = self._parts.journal
        self._starting = action.reason if action.verb is Verb.START else ""
        if self._starting:
            # Its CPU and memory must not count as foreign before its processes are known.
            self._parts.sampler.own((), known=False)
        elif action.verb is Verb.REPAIR:
            journal.trouble(f"Repair step {action.step}: {action.reason}")
        log.info("verb", verb=action.verb, step=action.step or "", reason=action.reason)
        self._parts.observer.paused = True
        self._parts.operator.submit(action)
        self._parts.changed()

    def _tell_starting(self) -> None:
        self._parts.journal.event("starting", self._starting)
        self._starting = ""

    def _set_pace(self) -> None:
        parts, up = self._parts, self.up
        parts.sampler.set_pace(FAST_S if up else SLOW_S)
        waiting_to_boot = up and self._status is not None and self._status.ready is False
        if waiting_to_boot:
            parts.observer.set_pace(OBSERVE_BOOTING_S)
        else:
            parts.observer.set_pace(OBSERVE_UP_S if up else OBSERVE_WAITING_S)

    # --- what came of it

    def _finish(self, finished: Finished) -> None:
        action, parts, ended_s = finished.action, self._parts, finished.ended_s
        self._verb_ended_s = ended_s
        parts.observer.paused = False
        parts.observer.ask()
        if self._starting and not finished.held:
            self._tell_starting()
        if finished.held:
            self._held, self._held_until_s = finished.held, ended_s + HELD_S
            parts.journal.trouble(finished.held, once=True)
            return
        facts = replace(self._facts(action.want, ended_s), want=action.want)
        self.memory = done(self.memory, action, facts, finished.error)
        took_ms = round((ended_s - finished.began_s) * 1000, 1)
        if finished.error is not None:
            self._failed(finished, *finished.error)
            return
        log.info("verb_done", verb=action.verb, took_ms=took_ms)
        if action.verb is Verb.REPAIR:
            self._wait_for_look_until_s = ended_s + AFTER_ERROR_S
            self._believe(VmStatus(VmState.UNKNOWN, "just repaired"))
            return
        self._believe(VmStatus(AFTER[action.verb], pids=self._status.pids if self._status else ()))
        self._tell(action, ended_s)

    def _tell(self, action: Action, ended_s: float) -> None:
        journal, back_ms = self._parts.journal, self._back_ms(ended_s)
        match action.verb:
            case Verb.START | Verb.RESUME:
                self._up_since_s = ended_s
                journal.running(action.reason, ended_s)
            case Verb.PAUSE:
                self._cpu_back_ms = back_ms
                journal.paused(ended_s, back_ms, self._verdict.sentence)
            case Verb.SAVE | Verb.STOP:
                self._up_since_s = None
                cpu_back_ms = None if self._cpu_back_ms is not None else back_ms
                kind = "saved" if action.verb is Verb.SAVE else "stopped"
                journal.gone(kind, ended_s, action.reason, cpu_back_ms, back_ms)  # type: ignore[arg-type]
            case _:
                pass

    def _failed(self, finished: Finished, trouble: Trouble, sentence: str) -> None:
        action, ended_s = finished.action, finished.ended_s
        wait_s = AFTER_ERROR_S if self._want() is Want.RUN else AFTER_ERROR_URGENT_S
        self._wait_for_look_until_s = ended_s + wait_s
        if trouble is Trouble.CANCELLED:
            back_ms = self._back_ms(ended_s)
            text = "The start was called off."
            self._parts.journal.gone("stopped", ended_s, text, back_ms, back_ms)
            return
        log.warning("verb_failed", verb=action.verb, trouble=trouble, text=sentence)
        self._parts.journal.trouble(f"{action.verb.value}: {sentence}", once=True)

    def _back_ms(self, ended_s: float) -> float | None:
        """Since the input that asked for the PC, if that is why this was done."""
        if self._input_s is None:
            return None
        return max(0.0, (ended_s - self._input_s) * 1000)
