"""Prometheus metrics, for callers who may read jobs."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.responses import PlainTextResponse

from officegrid.coordinator.api.common import ERRORS, Here, Reader
from officegrid.coordinator.service import views
from officegrid.coordinator.state import Coordinator
from officegrid.core.jobs import JobState
from officegrid.storage.api import Tx

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
    for state in JobState:
        found = tx.jobs(states=[state], limit=100_000)
        jobs.labels(state).set(len(found))
        if state in (JobState.RUNNING, JobState.HELD):
            for job in found:
                for name in ("pending", "leased", "done", "quarantined"):
                    records.labels(name).inc(getattr(job, name))
                units.inc(job.live_leases)
    now = here.clock()
    workers = [m for m in tx.machines() if m.role in ("worker", "agent")]
    online.set(sum(views.is_online(here.grid, m, now) for m in workers))
    batches.set(here.writer.batches)
    writes.set(here.writer.operations)
    free.set(here.objects.free_bytes())
    return registry
