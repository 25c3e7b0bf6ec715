"""What went wrong between here and the coordinator, as errors a person understands.

Nothing here ever puts a request header, and so a token, into a message.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
from pydantic import ValidationError

from officegrid.core.errors import (
    AuthError,
    ForbiddenError,
    LimitError,
    NotFoundError,
    OfficeGridError,
    UnavailableError,
    VersionError,
    from_wire,
)
from officegrid.wire.join import ErrorBody
from officegrid.wire.versions import PROTOCOL, PROTOCOL_HEADER

TRANSIENT_STATUSES = frozenset({502, 503, 504})
_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_* numbers
_WRONG_NAME, _WRONG_ADDRESS = 62, 64
_REACH_FIX = (
    "Check that the coordinator runs, that its address and port are right, and that no firewall "
    "is in between."
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, and whether the same request may succeed a little later."""

    error: OfficeGridError
    transient: bool
    retry_after_s: float = 0.0


def of_transport(error: httpx2.HTTPError, url: str, timeout_s: float) -> Failure:
    """The failure behind an exception of the HTTP library: no usable answer arrived."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(_of_certificate(cause, url), transient=False)
    if isinstance(error, httpx2.ProxyError):
        return Failure(_of_proxy(error, url), transient=False)
    return Failure(_of_network(error, url, timeout_s), transient=True)


def of_response(response: httpx2.Response, body: bytes, url: str) -> Failure:
    """The failure behind an answer with a status of 300 or more."""
    status = response.status_code
    transient = status in TRANSIENT_STATUSES
    retry_after_s = _retry_after_s(response) if transient else 0.0
    try:
        told = ErrorBody.model_validate_json(body).error
    except ValidationError:
        return Failure(_of_bare_status(status, url), transient, retry_after_s)
    error = from_wire(told.code, told.what, told.why, told.fix)
    return Failure(error, transient, retry_after_s)


def check_protocol(response: httpx2.Response, url: str) -> None:
    """Raises VersionError when the coordinator is older than this program, UnavailableError when
    whoever answered is not a coordinator at all."""
    stated = response.headers.get(PROTOCOL_HEADER, "")
    if not (stated.isascii() and stated.isdigit()):
        raise not_a_coordinator(url, "Its answer does not state Office Grid's protocol.")
    if int(stated[:9]) < PROTOCOL:
        raise VersionError(
            "The coordinator is older than this program.",
            f"{url} speaks protocol {stated}, this program {PROTOCOL}.",
            "Upgrade the coordinator first, then workers and clients.",
        )


def not_a_coordinator(url: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"What answers at {url} is not an Office Grid coordinator.",
        why,
        "Check the address and the port. A proxy or a login page in between can also be the "
        "reason: then add the coordinator to NO_PROXY.",
    )


def unreadable_reply(url: str, path: str) -> VersionError:
    return VersionError(
        "The coordinator's answer cannot be understood.",
        f"The answer of {url} to {path} does not have the form that this release expects.",
        "Bring the coordinator and this program to the same release.",
    )


def too_large(what: str, max_bytes: int) -> LimitError:
    return LimitError(
        f"The coordinator sent too much for {what}.",
        f"It is more than {max_bytes} bytes, the most that is accepted here.",
        "This is a fault, or the wrong server; tell the grid admin.",
    )


def too_slow(url: str, timeout_s: float) -> UnavailableError:
    return UnavailableError(
        f"The coordinator at {url} did not answer in time.",
        f"Waited {timeout_s:g} s.",
        "It is overloaded or the network is slow; try again later.",
    )


# --- parts -----------------------------------------------------------------------------------


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_certificate(error: ssl.SSLCertVerificationError, url: str) -> OfficeGridError:
    reason = error.verify_message or "certificate verification failed"
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        # Not an AuthError: a machine that was saved for days has a clock that is days late, until
        # somebody steps it; its worker must be patient for so long, and keep its units.
        return UnavailableError(
            "The coordinator's certificate is not valid at this time.",
            f"{reason}; this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
            "Set this machine's clock. If it is right, restart the coordinator, which then "
            "issues itself a new certificate.",
        )
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return AuthError(
            f"The coordinator's certificate does not cover the address {url}.",
            reason,
            "Use the coordinator's host name or one of its own addresses, or have the grid "
            "admin add this one to the coordinator's names and restart it.",
        )
    return AuthError(
        "The coordinator's certificate is not the one this machine joined.",
        f"{url}: {reason}. It is another server, a server set up anew, or something that reads "
        "the traffic on the way, such as an inspecting proxy.",
        "Ask the grid admin which. If the coordinator was set up anew, join again with a new "
        "code. Nothing secret was sent.",
    )


def _of_proxy(error: httpx2.HTTPError, url: str) -> UnavailableError:
    return UnavailableError(
        f"The proxy does not let this machine through to {url}.",
        str(error),
        "Add the coordinator to NO_PROXY, or correct HTTPS_PROXY.",
    )


def _of_network(error: httpx2.HTTPError, url: str, timeout_s: float) -> UnavailableError:
    if isinstance(error, httpx2.ConnectTimeout):
        return UnavailableError(
            f"The coordinator at {url} cannot be reached.",
            "Nothing answered in time: the machine is off, or a firewall drops the packets.",
            _REACH_FIX,
        )
    if isinstance(error, httpx2.TimeoutException):
        return too_slow(url, timeout_s)
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            why = f"Its name cannot be resolved: {cause.strerror}."
            return UnavailableError(
                f"The coordinator at {url} cannot be found.",
                why,
                "Check the spelling of the name, and this machine's network and DNS.",
            )
        if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            break
        if isinstance(cause, ssl.SSLError):
            return not_a_coordinator(
                url, f"It does not speak TLS as expected ({cause.reason or 'TLS error'})."
            )
    if isinstance(error, httpx2.ConnectError):
        return UnavailableError(
            f"The coordinator at {url} cannot be reached.", f"{error}.", _REACH_FIX
        )
    return UnavailableError(
        f"The connection to the coordinator at {url} broke off.",
        str(error) or type(error).__name__,
        "The coordinator was stopped, or the network failed; try again.",
    )


def _of_bare_status(status: int, url: str) -> OfficeGridError:
    """An answer without our error body: from a proxy, another server, or a crash."""
    kinds: dict[int, type[OfficeGridError]] = {
        401: AuthError,
        403: ForbiddenError,
        404: NotFoundError,
        413: LimitError,
        426: VersionError,
    }
    kind = kinds.get(status, UnavailableError)
    who = (
        "The coordinator failed, or a proxy in front of it did"
        if status >= 500
        else "A coordinator always explains, so a proxy or another server answered"
    )
    return kind(
        f"{url} answered with HTTP status {status} and no explanation.",
        f"{who}.",
        "Check the address and the proxies in between; else see the coordinator's log.",
    )


def _retry_after_s(response: httpx2.Response) -> float:
    """Seconds from a Retry-After header in either of its forms; 0 when it says nothing usable."""
    stated = response.headers.get("retry-after", "").strip()
    if stated.isascii() and stated.isdigit():
        return float(stated[:9])
    try:
        moment = parsedate_to_datetime(stated)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
