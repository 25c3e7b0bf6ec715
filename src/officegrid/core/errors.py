"""The error tree of Office Grid.

Every error a person can see is an `OfficeGridError`. It carries three sentences:
`what` happened, `why` it happened, and how to `fix` it, plus a stable `code` that
travels over the wire and that scripts can match on.

    OfficeGridError            exit code 1
    ├── UsageError             exit code 2: a wrong option, a wrong job file
    ├── InputError             the input records cannot be read
    ├── ProgramError           the user's program cannot be started at all
    ├── NotFoundError          no such job, machine, dataset, object
    ├── ConflictError          the request does not fit the present state
    ├── AuthError              missing, wrong or expired credentials
    ├── ForbiddenError         known caller, but the role does not allow it
    ├── LimitError             a size, count or rate limit was exceeded
    ├── VersionError           client and coordinator do not speak the same protocol
    ├── UnavailableError       a server or a disk is not available now; trying again may help
    └── InternalError          a bug: an invariant of ours does not hold
"""

from __future__ import annotations


class OfficeGridError(Exception):
    """Base of all errors; `http_status` is what the coordinator answers with."""

    code = "error"
    http_status = 500
    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "", *, code: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"Why: {self.why}")
        if self.fix:
            parts.append(f"Fix: {self.fix}")
        return "\n".join(parts)


class UsageError(OfficeGridError):
    code = "usage"
    http_status = 422
    exit_code = 2


class InputError(OfficeGridError):
    code = "input"
    http_status = 422


class ProgramError(OfficeGridError):
    code = "program"
    http_status = 422


class NotFoundError(OfficeGridError):
    code = "not_found"
    http_status = 404


class ConflictError(OfficeGridError):
    code = "conflict"
    http_status = 409


class AuthError(OfficeGridError):
    code = "auth"
    http_status = 401


class ForbiddenError(OfficeGridError):
    code = "forbidden"
    http_status = 403


class LimitError(OfficeGridError):
    code = "limit"
    http_status = 413


class VersionError(OfficeGridError):
    code = "version"
    http_status = 426


class UnavailableError(OfficeGridError):
    code = "unavailable"
    http_status = 503


class InternalError(OfficeGridError):
    code = "internal"
    http_status = 500


def _tree(root: type[OfficeGridError]) -> dict[str, type[OfficeGridError]]:
    """Each code with the class that brought it in: a subclass that only inherits it means more
    than the code says, whichever modules happen to be loaded."""
    found = {root.code: root}
    for child in root.__subclasses__():
        found = _tree(child) | found
    return found


def from_wire(code: str, what: str, why: str = "", fix: str = "") -> OfficeGridError:
    """Rebuild an error that the coordinator sent; unknown codes become the base class."""
    kind = _tree(OfficeGridError).get(code, OfficeGridError)
    return kind(what, why, fix, code=code)
