"""Who sits at a Linux PC: logind's list, helpers' reports, terminals and devices put together.

A pure rule. Logind says who is logged on; the others say how long they have been idle. A desktop
that nothing can be told about has idle time None, which means busy, and a sentence that says
what to do. A reading is never dropped because it fell silent, only because its session ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from officegrid.agent.sensors.logind import Logon
from officegrid.core.desk import Session

LOGIN_SCREEN_S = 30.0
"""Input this short ago with nobody logged on: somebody is logging on."""
FRESH_S = 15.0
"""A report this old without a logon that it belongs to is of a session that ended."""
USER_PREFIX = "user:"
NO_HELPER = (
    "no helper reports it: have `officegrid agent session` started in every desktop session, "
    "or let the agent read /dev/input"
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known at one moment."""

    logons: tuple[Logon, ...]
    reports: tuple[Session, ...]
    """What helpers say, by session id, or by "user:UID" where the system gave no session id."""
    local_idle_s: float | None
    """From the input devices of this PC; None: they cannot be read."""
    terminal_idle_s: Callable[[Logon], float | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One session, and in words where its reading comes from."""

    session: Session
    sentence: str


def sits_somewhere(logon: Logon) -> bool:
    """Is this somebody's logon? A service's or cron's has no place where anybody could sit."""
    place = logon.graphical or logon.remote or logon.seat or logon.tty
    return logon.person and bool(place)


def judge(evidence: Evidence) -> tuple[list[Finding], list[str]]:
    """(the sessions at which somebody can be, ids of reports whose sessions have ended)."""
    people = [logon for logon in evidence.logons if logon.person]
    reports = {report.id: report for report in evidence.reports}
    findings: list[Finding] = []
    taken: set[str] = set()
    for logon in people:
        report = _report_for(logon, people, reports)
        if report is not None:
            taken.add(report.id)
        finding = _finding(logon, report, evidence)
        if finding is not None:
            findings.append(finding)
    ended: list[str] = []
    known = {logon.id for logon in evidence.logons}
    present = {f"{USER_PREFIX}{logon.uid}" for logon in people if logon.graphical}
    for report in reports.values():
        if report.id in taken:
            continue
        if report.id in known or (report.age_s > FRESH_S and report.id not in present):
            ended.append(report.id)  # logind says so
        else:
            findings.append(Finding(report, f"{report.id}: a desktop that logind does not list"))
    return findings + _at_the_login_screen(people, evidence.local_idle_s), ended


def _report_for(
    logon: Logon, people: Iterable[Logon], reports: dict[str, Session]
) -> Session | None:
    if logon.id in reports:
        return reports[logon.id]
    # What systemd's user manager starts belongs to the user, not to a session. It speaks for the
    # user's desktop if there is only one that it can mean.
    desktops = [p for p in people if p.uid == logon.uid and p.graphical and p.id not in reports]
    if desktops == [logon]:
        return reports.get(f"{USER_PREFIX}{logon.uid}")
    return None


def _finding(logon: Logon, report: Session | None, evidence: Evidence) -> Finding | None:
    who = f"session {logon.id} of {logon.user or logon.uid}"
    if logon.seat and not logon.active and not logon.remote:
        # What a silent helper said last would look like input for ever.
        fresh = report is not None and report.age_s <= FRESH_S
        session = _session(logon, report.idle_s if report and fresh else None, locked=True)
        return Finding(session, f"{who}: in the background, nobody can type there")
    if logon.graphical:
        return _desktop(logon, report, evidence, who)
    if not sits_somewhere(logon):
        return None
    idle_s = evidence.terminal_idle_s(logon)
    if logon.seat and evidence.local_idle_s is not None:
        idle_s = _least(idle_s, evidence.local_idle_s)
    told = f"idle {idle_s:.0f} s" if idle_s is not None else "its terminal cannot be read"
    over = "over the network" if logon.remote else "text console"
    return Finding(_session(logon, idle_s, locked=None), f"{who}: {over}, {told}")


def _desktop(logon: Logon, report: Session | None, evidence: Evidence, who: str) -> Finding:
    local_idle_s = None if logon.remote else evidence.local_idle_s
    silent = report is None or report.age_s > FRESH_S
    # A helper that fell silent would not have told of the unlock.
    by_helper = report is not None and not silent and report.locked is True
    locked = True if logon.locked or by_helper else None
    if report is None or (silent and local_idle_s is not None):
        trouble = (
            NO_HELPER if report is None else f"its helper fell silent {report.age_s:.0f} s ago"
        )
        devices = ""
        if local_idle_s is not None:
            devices = f"input devices idle {local_idle_s:.0f} s, but is somebody watching? "
        session = _session(logon, local_idle_s, locked=locked, presenting=None)
        return Finding(session, f"{who}: {devices}{trouble}")
    idle_s = report.idle_s if local_idle_s is None else _least(report.idle_s, local_idle_s)
    session = replace(
        _session(logon, idle_s, locked=locked, presenting=report.presenting),
        age_s=report.age_s, remote=logon.remote or report.remote,
    )  # fmt: skip
    told = f"idle {idle_s:.0f} s" if idle_s is not None else "cannot tell the idle time"
    return Finding(session, f"{who}: its helper said {report.age_s:.0f} s ago: {told}")


def _at_the_login_screen(people: list[Logon], local_idle_s: float | None) -> list[Finding]:
    if local_idle_s is None or local_idle_s > LOGIN_SCREEN_S:
        return []
    if any(logon.seat and logon.active for logon in people):
        return []
    session = Session(id="login screen", age_s=0.0, idle_s=local_idle_s)
    return [Finding(session, f"login screen: input {local_idle_s:.0f} s ago")]


def _session(
    logon: Logon, idle_s: float | None, *, locked: bool | None, presenting: bool | None = False
) -> Session:
    return Session(
        id=logon.id, age_s=0.0, idle_s=idle_s, locked=locked, remote=logon.remote,
        presenting=presenting, user=logon.user or str(logon.uid),
    )  # fmt: skip


def _least(one: float | None, other: float) -> float:
    return other if one is None else min(one, other)
