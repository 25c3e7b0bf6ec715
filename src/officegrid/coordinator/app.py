"""The composition root: opens the data folder, wires the parts, gives the ASGI application."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from officegrid import __version__
from officegrid.coordinator import chores, delivering, ingest, refresh, upkeep
from officegrid.coordinator.api import (
    archives,
    desks,
    grid,
    images,
    jobs,
    keeping,
    metrics,
    objects,
    peers,
    updates,
    versions,
    work,
)
from officegrid.coordinator.api.common import install_error_handlers
from officegrid.coordinator.api.limits import LimitsMiddleware
from officegrid.coordinator.config import CoordinatorConfig
from officegrid.coordinator.deltas import DeltaMaker
from officegrid.coordinator.log import get_logger
from officegrid.coordinator.objects import ObjectStore
from officegrid.coordinator.pki import ensure_pki
from officegrid.coordinator.readcache import ReadCache
from officegrid.coordinator.service.context import Grid, GridSettings
from officegrid.coordinator.state import Coordinator
from officegrid.coordinator.writer import Writer
from officegrid.data.blocks import unpack_block
from officegrid.storage.sqlite import SqliteStorage
from officegrid.wire.data import BlockSlice

log = get_logger("app")

STOP_WITHIN_S = 3.0


def open_coordinator(
    data: Path,
    *,
    names: list[str],
    settings: GridSettings | None = None,
    config: CoordinatorConfig | None = None,
    clock: Callable[[], float] = time.time,
) -> Coordinator:
    """Open or create everything in the folder `data`. Raises OfficeGridError."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    data.chmod(0o700)  # also when somebody made it before: it holds other people's records
    storage = SqliteStorage(data / "officegrid.db")
    for left in [*data.glob(".delta-*"), *data.glob(".refresh-*")]:  # of one that was killed
        shutil.rmtree(left, ignore_errors=True)
    store = ObjectStore(data)

    def read_object(block: BlockSlice) -> bytes:
        return unpack_block(store.path(block.sha256).read_bytes(), block)

    state = Grid(
        new_id=lambda: secrets.token_hex(12),
        read_object=read_object,
        settings=settings or GridSettings(),
    )
    return Coordinator(
        storage=storage,
        writer=Writer(storage),
        objects=store,
        grid=state,
        pki=ensure_pki(data / "pki", names, clock()),
        deltas=DeltaMaker(store, data),
        read_cache=ReadCache(lambda sha256: store.path(sha256).read_bytes()),
        folder=data,
        config=config or CoordinatorConfig(),
        clock=clock,
    )


async def _end(coordinator: Coordinator, tasks: list[asyncio.Task[None]]) -> None:
    """What does not end by itself is cancelled. Its threads go on, as a crash would leave them:
    they can put objects into the store, and the database is closed for them."""
    for threads in (coordinator.git, coordinator.deltas.turn, coordinator.deltas.inflating):
        threads.close()
    _, late = await asyncio.wait(tasks, timeout=STOP_WITHIN_S)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=STOP_WITHIN_S)
    await coordinator.tasks.cancel()
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.error("unexpected_error", error=repr(error), exc_info=error)


def make_app(coordinator: Coordinator) -> FastAPI:
    """The ASGI application of a coordinator; its upkeep runs while the application does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        caretaker = asyncio.create_task(upkeep.run(coordinator))
        others = [
            asyncio.create_task(one.run(coordinator)) for one in (refresh, ingest, delivering)
        ]
        cleaner = asyncio.create_task(chores.run(coordinator))
        yield
        coordinator.stopping.set()
        coordinator.grid.work_appeared()
        coordinator.work.check(coordinator.grid.work_version)
        try:
            await _end(coordinator, [caretaker, cleaner, *others])
        finally:
            await asyncio.to_thread(coordinator.writer.stop)
            coordinator.storage.close()

    app = FastAPI(
        title="Office Grid coordinator",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # served by api/grid.py, to those who may read
    )
    app.state.coordinator = coordinator
    install_error_handlers(app)
    for module in (
        grid,
        work,
        desks,
        images,
        updates,
        jobs,
        versions,
        archives,
        keeping,
        peers,
        objects,
        metrics,
    ):
        app.include_router(module.router)
    app.add_middleware(LimitsMiddleware)
    return app
