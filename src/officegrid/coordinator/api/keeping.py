"""The route of the clean-up."""

from __future__ import annotations

from fastapi import APIRouter

from officegrid.coordinator import chores
from officegrid.coordinator.api.common import ERRORS, Here, Manager
from officegrid.wire.keeping import CleanReply, CleanRequest

router = APIRouter(prefix="/v1", tags=["keeping"], responses=ERRORS)


@router.post("/clean")
async def clean(here: Here, caller: Manager, request: CleanRequest) -> CleanReply:
    """Remove versions that nobody needs and files that nothing refers to; or only say which."""
    return await chores.clean(here, dry_run=request.dry_run)
