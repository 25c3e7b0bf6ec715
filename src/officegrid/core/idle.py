"""May the grid use this PC now? The idle policy, as a pure function of samples.

`decide` is called with each sample and returns what it remembers and a verdict. To run, no rule
may object. When several do, the verdict names the most important:

1. `never`, `drain`, the user's pause: people have spoken, and nothing measured changes that.
2. A silent sensor: what cannot be told is taken for a user, so what else was measured is moot.
3. Input, remote session, presentation: somebody is here. Named before the machine's own reasons
   because the desk user asks "does it leave me alone?" and because the answer is immediate.
4. Battery, hours, foreign CPU, memory: the machine or the clock forbids it.
5. Settling: nothing objects any more, but not yet for long enough.

Starting is slow and stopping is fast. Input, an unlock, a remote session, a presentation, battery,
a pause, a drain and a silent sensor end a run with the sample that shows them. Foreign CPU must
stay high for `cpu_busy_s` to end a run and stay low for `cpu_idle_s` to allow one. Memory must be
half gone to end a run. After a run that ended without input, nothing may object for `settle_s`
before the next (other waiting times may pass meanwhile), so two starts without input between them
are always further apart than that.

A locked session is away at once, whatever its idle time: the key that locked it was input. Only
when somebody touches a PC that has been locked for a few seconds does it yield, until
`idle_rules.LOCK_SCREEN_S` after the last touch, so that nobody waits while they unlock it. A lock
that is not true costs its user that much at most. Nobody logged on is away.

After sleep, or when the wall clock leaps ahead, old idle time is void (see `core.idle_memory`):
an unlocked session must be idle anew from that moment on; a locked one, or none, must settle.
"""

from __future__ import annotations

from dataclasses import replace

from officegrid.core.desk import Decision, DeskPolicy, Rule, Sample, Verdict
from officegrid.core.idle_memory import IdleMemory, foreign_cpu, idle_time, known, note
from officegrid.core.idle_rules import RULES, Moment, Number, Objection, left_text, span_text

__all__ = ["IdleMemory", "decide"]

_ALSO = {
    Rule.NEVER: "the rule 'never'",
    Rule.DRAIN: "the admin took it out of service",
    Rule.USER_PAUSE: "the user's pause",
    Rule.SILENT: "a silent sensor",
    Rule.REMOTE: "a remote session",
    Rule.PRESENTING: "a presentation",
    Rule.BATTERY: "battery power",
    Rule.HOURS: "the hours",
    Rule.CPU: "the CPU use of other programs",
    Rule.MEMORY: "too little free memory",
}


def decide(
    policy: DeskPolicy, memory: IdleMemory, sample: Sample, *, vm_memory_mb: int = 0
) -> tuple[IdleMemory, Verdict]:
    """The verdict on this sample, and the memory to give to the next call.

    `vm_memory_mb` is what the VM takes when it runs; `sample.memory_free_mb` counts it as free,
    so `policy.memory_free_mb` must be there on top of it. Never raises, whatever the numbers.
    """
    noted = note(policy, memory, sample)
    moment = Moment(policy, noted, sample, vm_memory_mb)
    found = [objection for rule in RULES if (objection := rule(moment)) is not None]
    well_since_s = None
    if all(not each.lasting and each.rule is not Rule.INPUT for each in found):
        # Waiting times run side by side: nothing wrong is left, only time must pass.
        well_since_s = sample.at_s if noted.well_since_s is None else noted.well_since_s
    if well_since_s is not None and not found:
        settling = _settling(moment, well_since_s)
        found = [settling] if settling else []
    run = not found
    ended_oddly = noted.running and not run and not any(each.by_input for each in found)
    after = replace(
        noted,
        running=run,
        settling=not run and (noted.settling or ended_oddly),
        well_since_s=None if run else well_since_s,
    )
    return after, _run(moment) if run else _yield(moment, found)


def _settling(moment: Moment, well_since_s: float) -> Objection | None:
    at_s, memory, settle_s = moment.sample.at_s, moment.memory, moment.policy.settle_s
    just_woke = memory.woke_s == at_s
    if not memory.settling or (at_s - well_since_s >= settle_s and not just_woke):
        return None
    well_s = at_s - well_since_s
    left_s = max(settle_s - well_s, 0.0)
    return Objection(
        Rule.SETTLING,
        f"All has been well for {span_text(well_s)}; after an interruption the grid waits for"
        f" {left_text(settle_s)}.",
        f"Starts in {left_text(left_s)} if it stays so.",
        {"well_s": round(well_s, 1), "needed_s": settle_s},
        lasting=False,
    )


def _yield(moment: Moment, found: list[Objection]) -> Verdict:
    first, numbers = found[0], _numbers(moment)
    also = [each.rule for each in found[1:] if each.lasting]
    change = first.change
    if also:
        numbers["also"] = ", ".join(also)
        change += f" Also in the way: {', '.join(_ALSO[rule] for rule in also)}."
    return Verdict(
        Decision.YIELD,
        first.rule,
        first.sentence,
        change,
        numbers | first.numbers,
        first.discard,
    )


def _run(moment: Moment) -> Verdict:
    sessions = moment.sample.sessions or ()
    idle_s = _idle_s(moment)
    if not sessions:
        rule, sentence = Rule.NOBODY, "Nobody is logged on to this PC."
    elif idle_s is None:
        words = "Every session is" if len(sessions) > 1 else "The session is"
        rule, sentence = Rule.LOCKED, f"{words} locked, so nobody uses this PC."
    else:
        rule, sentence = Rule.AWAY, f"Nobody has used this PC for {span_text(idle_s)}."
    change = "Yields at once when somebody uses this PC."
    return Verdict(Decision.RUN, rule, sentence, change, _numbers(moment))


def _idle_s(moment: Moment) -> float | None:
    """The shortest idle time of the sessions that a lock does not excuse."""
    lock_counts = moment.policy.lock_counts
    idle = [
        idle_time(moment.memory, seat, session, moment.sample.at_s)[0]
        for session, seat in moment.seats()
        if known(session.idle_s) is not None and not (session.locked is True and lock_counts)
    ]
    return min(idle, default=None)


def _numbers(moment: Moment) -> dict[str, Number]:
    """What every verdict tells, as far as it is known."""
    sample, idle_s = moment.sample, _idle_s(moment)
    numbers: dict[str, Number] = {"needed_s": moment.policy.idle_s}
    if idle_s is not None:
        numbers["idle_s"] = round(idle_s, 1)
    if sample.sessions is not None:
        numbers["sessions"] = len(sample.sessions)
        numbers["locked"] = sum(session.locked is True for session in sample.sessions)
    share = foreign_cpu(sample)
    if share is not None:
        numbers["foreign_cpu"] = round(share, 3)
    if sample.on_battery is not None:
        numbers["on_battery"] = sample.on_battery
    if sample.memory_free_mb is not None:
        numbers["memory_free_mb"] = sample.memory_free_mb
    return numbers
