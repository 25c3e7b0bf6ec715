"""What all routes share: the coordinator, the caller, and errors as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from officegrid.coordinator.log import get_logger
from officegrid.coordinator.state import Coordinator
from officegrid.core.errors import (
    AuthError,
    ForbiddenError,
    InternalError,
    NotFoundError,
    OfficeGridError,
    UsageError,
)
from officegrid.core.roles import Permission
from officegrid.storage.api import Machine, Tx
from officegrid.wire.join import ErrorBody, ErrorDetail
from officegrid.wire.mistakes import told

log = get_logger("api")


def coordinator_of(request: Request) -> Coordinator:
    found: Coordinator = request.app.state.coordinator
    return found


async def _here(request: Request) -> Coordinator:
    # Not a plain function: FastAPI would run that in a thread, at every request.
    return coordinator_of(request)


Here = Annotated[Coordinator, Depends(_here)]


def _caller_with(permission: Permission) -> Callable[[Request], Awaitable[Machine]]:
    async def caller(request: Request) -> Machine:
        here = coordinator_of(request)
        return await here.caller(request.headers.get("authorization"), permission)

    return caller


def either(first: Permission, second: Permission) -> Callable[[Request], Awaitable[Machine]]:
    """Who is asking, if it has one of two permissions."""

    async def caller(request: Request) -> Machine:
        here = coordinator_of(request)
        authorization = request.headers.get("authorization")
        try:
            return await here.caller(authorization, first)
        except ForbiddenError:
            return await here.caller(authorization, second)

    return caller


def fresh(tx: Tx, machine: Machine) -> Machine:
    """The caller as it is in this transaction. Raises AuthError when its token was made void."""
    found = tx.machine(machine.id)
    if found is None or found.revoked or found.token_hash != machine.token_hash:
        raise AuthError("This machine's access was revoked.", fix="Join again with a new code.")
    return found


Worker = Annotated[Machine, Depends(_caller_with(Permission.WORK))]
Desktop = Annotated[Machine, Depends(_caller_with(Permission.HOST))]
Submitter = Annotated[Machine, Depends(_caller_with(Permission.SUBMIT))]
Reader = Annotated[Machine, Depends(_caller_with(Permission.READ_JOBS))]
Controller = Annotated[Machine, Depends(_caller_with(Permission.CONTROL_JOBS))]
OutputReader = Annotated[Machine, Depends(_caller_with(Permission.READ_OUTPUT))]
MachineReader = Annotated[Machine, Depends(_caller_with(Permission.READ_MACHINES))]
Manager = Annotated[Machine, Depends(_caller_with(Permission.MANAGE))]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        401: "no or unknown credentials",
        403: "the role does not allow it",
        404: "no such thing",
        409: "does not fit the present state",
        413: "too large",
        422: "the request is not understood",
        426: "the program is too old or too new",
        503: "not available now; try again",
    }.items()
}


def error_response(error: OfficeGridError) -> JSONResponse:
    detail = ErrorDetail(code=error.code, what=error.what, why=error.why, fix=error.fix)
    headers = {"Retry-After": "2"} if error.http_status == 503 else None
    return JSONResponse(
        ErrorBody(error=detail).model_dump(), status_code=error.http_status, headers=headers
    )


def install_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(OfficeGridError)
    async def _known(_: Request, error: OfficeGridError) -> Response:
        if isinstance(error, InternalError):
            log.error("internal_error", what=error.what)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        found = told(error.errors())
        return error_response(
            UsageError(
                "The coordinator does not understand this request.",
                f"{found[0].key}: {found[0].sentence}" if found else "",
                "Use a client of the same release as the coordinator.",
                code="invalid_request",
            )
        )

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return error_response(NotFoundError("There is nothing at this address."))
        detail = ErrorDetail(code="http", what=str(error.detail))
        body = ErrorBody(error=detail).model_dump()
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def _unknown(_: Request, error: Exception) -> Response:
        log.error("unexpected_error", error=f"{type(error).__name__}: {error}", exc_info=error)
        return error_response(
            InternalError(
                "The coordinator made a mistake.",
                "Its log has the details.",
                "Try again; if it stays, report it with the log.",
            )
        )
