"""Routes for objects and datasets: upload what is missing, read what you may."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from officegrid.coordinator.api.common import ERRORS, Here, Submitter, either
from officegrid.coordinator.service import commits, inputs
from officegrid.core.errors import ForbiddenError, InputError, NotFoundError
from officegrid.core.roles import Permission, allows
from officegrid.storage.api import Machine, Tx
from officegrid.wire.data import DatasetSpec
from officegrid.wire.jobs import DatasetReply, MissingReply, MissingRequest

router = APIRouter(prefix="/v1", tags=["data"], responses=ERRORS)

MAX_OBJECT_BYTES = 640 * 1024 * 1024
SMALL_BYTES = 8 * 1024 * 1024

Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


Anybody = Annotated[Machine, Depends(either(Permission.WORK, Permission.READ_JOBS))]


@router.post("/objects/missing")
async def missing(here: Here, caller: Anybody, request: MissingRequest) -> MissingReply:
    """Which of these objects the store does not have; upload only those."""
    found = await run_in_threadpool(here.objects.missing, request.digests)
    return MissingReply(missing=found)


@router.put("/objects/{sha256}", status_code=204)
async def put_object(here: Here, caller: Anybody, sha256: Digest, request: Request) -> Response:
    """Store one object; its content must have this digest. On disk when answered."""
    if not allows(caller.role, Permission.SUBMIT):
        if not allows(caller.role, Permission.WORK):
            raise ForbiddenError(f"A {caller.role} may not upload anything.")
        if not await here.read(lambda tx: tx.live_leases_of(caller.id)):
            raise ForbiddenError(
                f"{caller.name} joined as {caller.role} and may upload only while it holds a unit.",
                "Whoever submits jobs needs another role than the machines that do the work.",
                "Join with a code made by `officegrid join-code --role submitter`.",
            )
    with here.objects.begin(sha256, max_bytes=MAX_OBJECT_BYTES) as incoming:
        async for chunk in request.stream():
            incoming.write(chunk)
        await run_in_threadpool(incoming.finish)
    return Response(status_code=204)


@router.get("/objects/{sha256}", response_class=Response)
async def get_object(here: Here, caller: Anybody, sha256: Digest) -> Response:
    """An object's bytes. Workers get only what their live leases need."""
    if not allows(caller.role, Permission.READ_OUTPUT):
        if not allows(caller.role, Permission.WORK):
            raise ForbiddenError(f"A {caller.role} may not read records.")
        await here.read(lambda tx: commits.lease_for_read(tx, caller, sha256))
    size = here.objects.size(sha256)
    if size is None:
        raise NotFoundError(
            f"There is no object {sha256[:12]}… in the store.",
            fix="If it belongs to a job, submit that job again.",
        )
    path = FilePath(here.objects.path(sha256))
    if size > SMALL_BYTES:
        return FileResponse(path, media_type="application/octet-stream")
    content = await run_in_threadpool(path.read_bytes)
    return Response(content, media_type="application/octet-stream")


@router.post("/datasets")
async def add_dataset(here: Here, caller: Submitter, spec: DatasetSpec) -> DatasetReply:
    """Register a dataset whose blocks are all uploaded; its id is the digest of its content."""
    absent = await run_in_threadpool(here.objects.missing, [b.sha256 for b in spec.blocks])
    if absent:
        raise InputError(
            f"{len(absent)} blocks of this dataset are not in the store.",
            fix="Upload them first (see /v1/objects/missing).",
            code="missing_block",
        )
    if sum(block.records for block in spec.blocks) != spec.records:
        raise InputError("The blocks of this dataset do not add up to its number of records.")
    if any(b.offset + b.length > b.raw_bytes for b in spec.blocks):
        raise InputError("A slice of this dataset reaches over the end of its block.")
    dataset, placed = inputs.dataset_of(spec, here.clock())

    def write(tx: Tx) -> None:
        tx.add_dataset(dataset, placed)
        # One that was there before, and that no job uses, is not cleaned up just now.
        tx.touch_dataset(dataset.id, dataset.created_at)

    await here.write(write)
    return DatasetReply(id=dataset.id, records=dataset.records)
