"""Prometheus metrics, for callers who may read jobs."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.responses import PlainTextResponse

from officegrid.coordinator.api.common import ERRORS, Here, Reader
from officegrid.coordinator.service import identity, imageviews, updates, views
from officegrid.coordinator.state import Coordinator
from officegrid.core import deskstats
from officegrid.core.jobs import JobState
from officegrid.core.releases import is_running
from officegrid.core.whydesk import DeskState, desk_state
from officegrid.storage.api import Machine, Tx

router = APIRouter(tags=["grid"], responses=ERRORS)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(here: Here, caller: Reader) -> str:
    """Records, units, jobs and machines, and how busy the writer is."""
    registry = await here.read(lambda tx: _collect(here, tx))
    return generate_latest(registry).decode()


def _collect(here: Coordinator, tx: Tx) -> CollectorRegistry:
    registry = CollectorRegistry()
    jobs = Gauge("officegrid_jobs", "Jobs by state", ["state"], registry=registry)
    records = Gauge(
        "officegrid_records", "Records of unfinished jobs by state", ["state"], registry=registry
    )
    units = Gauge("officegrid_units_running", "Units being worked on", registry=registry)
    online = Gauge("officegrid_workers_online", "Workers heard of lately", registry=registry)
    batches = Gauge("officegrid_writer_batches", "Group commits so far", registry=registry)
    writes = Gauge("officegrid_writer_operations", "Operations committed", registry=registry)
    free = Gauge("officegrid_store_free_bytes", "Free disk space", registry=registry)
    alarms = Gauge(
        "officegrid_identity_alarms", "Machines whose identity seems to be in two places",
        registry=registry,
    )  # fmt: skip
    stale = Gauge(
        "officegrid_machines_below_floor", "Machines that get no units: a program is too old",
        registry=registry,
    )  # fmt: skip
    for state in JobState:
        found = tx.jobs(states=[state], limit=100_000)
        jobs.labels(state).set(len(found))
        if state in (JobState.RUNNING, JobState.HELD):
            for job in found:
                for name in ("pending", "leased", "done", "quarantined"):
                    records.labels(name).inc(getattr(job, name))
                units.inc(job.live_leases)
    now = here.clock()
    machines = tx.machines()
    workers = [m for m in machines if views.is_worker(m)]
    online.set(sum(views.is_online(here.grid, m, now) for m in workers))
    alarms.set(sum(identity.open_alarm(tx, m, now) is not None for m in machines))
    stale.set(sum(bool(updates.stale_of(tx, m)) for m in machines))
    _collect_updates(tx, workers, registry)
    agents = [m for m in machines if m.role == "agent"]
    _collect_desks(here, tx, agents, registry)
    _collect_images(here, tx, agents, registry)
    _collect_peers(here, registry)
    batches.set(here.writer.batches)
    writes.set(here.writer.operations)
    free.set(here.objects.free_bytes())
    return registry


def _collect_peers(here: Coordinator, registry: CollectorRegistry) -> None:
    sharing = Gauge("officegrid_peers_sharing", "Workers that share data", registry=registry)
    got = Counter(
        "officegrid_peers_got_bytes", "Data that workers got from one another", registry=registry
    )
    sharing.set(here.peers.sharing)
    got.inc(here.peers.got_bytes)


def _collect_updates(tx: Tx, workers: list[Machine], registry: CollectorRegistry) -> None:
    """Of the release in force: who runs it, and where it did not work."""
    found = Gauge(
        "officegrid_update_workers", "Workers by what they do with the release in force",
        ["state"], registry=registry,
    )  # fmt: skip
    current = updates.policy(tx).releases.in_force
    for state in ("running", "failed", "other"):
        found.labels(state)
    if current is None:
        return
    for worker in workers:
        if worker.revoked:
            continue
        failed = updates.failure_of(worker).get("digest") == current.digest
        runs = is_running(current, updates.runs_of(worker))
        found.labels("running" if runs else "failed" if failed else "other").inc()


def _collect_desks(
    here: Coordinator, tx: Tx, agents: list[Machine], registry: CollectorRegistry
) -> None:
    """Desktops: how many are in which state, what they gave, what that cost their users."""
    desks = Gauge("officegrid_desks", "Desktops by state", ["state"], registry=registry)
    harvested = Counter(
        "officegrid_desk_harvested_seconds", "Time that VMs ran on desktops", registry=registry
    )
    interruptions = Counter(
        "officegrid_desk_interruptions", "Users who came back while it ran", registry=registry
    )
    released = Counter(
        "officegrid_desk_units_released", "Units that desktops gave back", registry=registry
    )
    yields = Gauge(
        "officegrid_desk_yield_seconds", "From input to released, of the last yields",
        ["what", "quantile"], registry=registry,
    )  # fmt: skip
    for state in get_args(DeskState):
        desks.labels(state)
    times: dict[str, list[float]] = {"cpu": [], "memory": []}
    for agent in agents:
        stats = deskstats.from_plain(agent.stats)
        harvested.inc(stats.harvested_s)
        interruptions.inc(stats.interruptions)
        released.inc(stats.units_released)
        times["cpu"] += stats.cpu_back_ms
        times["memory"] += stats.memory_back_ms
        if not agent.revoked:
            facts = views.desk_facts(here.grid, tx, agent, here.clock())
            desks.labels(desk_state(facts)[0]).inc()
    for what, values in times.items():
        for share in (0.5, 0.99):
            value_ms = deskstats.percentile(values, share)
            if value_ms is not None:
                yields.labels(what, str(share)).set(value_ms / 1000)


def _collect_images(
    here: Coordinator, tx: Tx, agents: list[Machine], registry: CollectorRegistry
) -> None:
    """Worker images: the one that rolls out and the current one, by version."""
    desks = Gauge(
        "officegrid_image_desks", "Desktops by what they say about an image",
        ["version", "state"], registry=registry,
    )  # fmt: skip
    share = Gauge(
        "officegrid_image_share", "Of the desktops that are to run an image", ["version"],
        registry=registry,
    )  # fmt: skip
    rolled_back = Gauge(
        "officegrid_image_rolled_back", "1 when the newest image was rolled back",
        registry=registry,
    )  # fmt: skip
    for version, part, uses in imageviews.measured(here.grid, tx, agents, here.clock()):
        share.labels(str(version)).set(part)
        for state in imageviews.USE_STATES:
            desks.labels(str(version), state).set(uses[state])
    rolled_back.set(imageviews.newest_was_rolled_back(tx))
