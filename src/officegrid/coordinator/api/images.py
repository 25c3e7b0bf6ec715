"""Routes about worker images: push one, see who runs what, roll it out; agents fetch the pieces."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from officegrid.coordinator.api.common import (
    ERRORS,
    Here,
    MachineReader,
    Manager,
    either,
    fresh,
)
from officegrid.coordinator.api.objects import Digest
from officegrid.coordinator.objects import ObjectStore
from officegrid.coordinator.service import images, imageviews
from officegrid.core.errors import InputError, NotFoundError
from officegrid.core.roles import Permission
from officegrid.storage.api import Machine, Tx
from officegrid.wire.images import (
    CHUNK_BYTES,
    ImageFile,
    ImageList,
    ImageSpec,
    ImageView,
    RolloutChange,
    RolloutSettings,
)

router = APIRouter(prefix="/v1", tags=["images"], responses=ERRORS)


DesktopOrReader = Annotated[Machine, Depends(either(Permission.HOST, Permission.READ_MACHINES))]
DesktopOrManager = Annotated[Machine, Depends(either(Permission.HOST, Permission.MANAGE))]


@router.post("/images", status_code=201)
async def push(here: Here, caller: Manager, spec: ImageSpec) -> ImageView:
    """Take an image in whose chunks are all uploaded, and begin to roll it out. The same image
    again changes nothing."""
    for file in spec.files.values():
        await run_in_threadpool(_check_chunks, here.objects, file)

    def write(tx: Tx) -> ImageView:
        by = fresh(tx, caller).name
        image = images.push(here.grid, tx, spec, by, here.clock())
        return imageviews.image_view(tx, image, here.clock())

    return await here.write(write)


def _check_chunks(store: ObjectStore, file: ImageFile) -> None:
    """Raises InputError unless the file's chunks are all here, each as long as it has to be."""
    count = -(-file.size // CHUNK_BYTES)
    if len(file.chunks) != count:
        raise InputError(
            f"{file.name} has {file.size} bytes and {len(file.chunks)} chunks.",
            f"Chunks have {CHUNK_BYTES} bytes each, but the last one: that makes {count}.",
            "Push it with `officegrid image push` of the coordinator's release.",
        )
    absent = store.missing(file.chunks)
    if absent:
        raise InputError(
            f"{len(absent)} chunks of {file.name} are not in the store.",
            fix="Upload them first (see /v1/objects/missing).",
            code="missing_block",
        )
    for number, chunk in enumerate(file.chunks):
        expected = min(CHUNK_BYTES, file.size - number * CHUNK_BYTES)
        found = store.size(chunk)
        if found != expected:
            raise InputError(
                f"Chunk {number + 1} of {file.name} has {found} bytes instead of {expected}.",
                fix="Push it with `officegrid image push` of the coordinator's release.",
            )


@router.get("/images")
async def list_images(here: Here, caller: MachineReader) -> ImageList:
    """All images, newest first."""
    return await here.read(lambda tx: imageviews.image_list(tx, here.clock()))


@router.get("/images/{image}")
async def show(here: Here, caller: MachineReader, image: str) -> ImageView:
    """One image, by id, version or name, with the desktops that have said something about it."""
    return await here.read(
        lambda tx: imageviews.image_view(tx, images.find(tx, image), here.clock())
    )


@router.get("/images/{image}/spec")
async def spec(here: Here, caller: DesktopOrReader, image: str) -> ImageSpec:
    """Its files and their chunks."""
    return await here.read(lambda tx: imageviews.spec_of(images.find(tx, image)))


@router.post("/images/{image}/rollout")
async def rollout(here: Here, caller: Manager, image: str, request: RolloutChange) -> ImageView:
    """Pause, resume, finish or roll back; or ask desktops on which it failed to try again."""

    def write(tx: Tx) -> ImageView:
        by, found = fresh(tx, caller).name, images.find(tx, image)
        changed = images.change(here.grid, tx, found, request.action, by, here.clock())
        return imageviews.image_view(tx, changed, here.clock())

    return await here.write(write)


@router.get("/image-chunks/{sha256}", response_class=Response)
async def chunk(here: Here, caller: DesktopOrManager, sha256: Digest) -> Response:
    """The bytes of one chunk of an image; a range of them, if asked."""
    if not await here.read(lambda tx: tx.is_image_chunk(sha256)) or (
        here.objects.size(sha256) is None
    ):
        raise NotFoundError(
            f"There is no image chunk {sha256[:12]}….",
            "No image that was pushed has such a piece, or the store lost it.",
            "Push the image again: `officegrid image push DIR`.",
        )
    path = FilePath(here.objects.path(sha256))
    return FileResponse(path, media_type="application/octet-stream")


@router.get("/image-rollout")
async def rollout_settings(here: Here, caller: MachineReader) -> RolloutSettings:
    """How new images go out."""
    return await here.read(images.settings)


@router.put("/image-rollout")
async def set_rollout_settings(
    here: Here, caller: Manager, settings: RolloutSettings
) -> RolloutSettings:
    """Replace that."""
    await here.write(lambda tx: images.set_settings(tx, settings))
    return settings
