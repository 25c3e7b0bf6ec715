"""The one way programs talk to the coordinator: HTTPS, verified against the grid's own CA only.

A Connection is thread-safe and keeps its TCP connections open. All its methods raise
OfficeGridError and nothing else (besides what a caller's own upload iterator raises):

    the coordinator's error       rebuilt from its JSON body, with its own code and sentences
    no answer, 502, 503, 504      UnavailableError, after retries for at most `retry_s`
    wrong certificate             AuthError, at once
    not a coordinator, garbage    UnavailableError or VersionError, at once
    an answer without end         LimitError or UnavailableError: sizes and times are bounded
"""

from __future__ import annotations

import contextlib
import platform
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar, overload

import httpx2
from pydantic import BaseModel, ValidationError

from officegrid import __version__
from officegrid.core.backoff import delay_s
from officegrid.core.errors import AuthError, UnavailableError
from officegrid.transport import failures
from officegrid.transport.client import open_client, timeouts, tls_context
from officegrid.transport.failures import Failure
from officegrid.wire.versions import PROTOCOL, PROTOCOL_HEADER

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Params = Mapping[str, str | int | float | bool]

USER_AGENT = f"officegrid/{__version__} python/{platform.python_version()} {sys.platform}"
MAX_REPLY_BYTES = 64 * 2**20
MAX_DOWNLOAD_BYTES = 2**30
MAX_LINE_BYTES = 16 * 2**20
_MAX_ERROR_BYTES = 256 * 2**10
_RETRY_BASE_S = 0.25
_RETRY_CAP_S = 5.0
_TOKEN = re.compile(r"[\x21-\x7e]+")
# From the system, not from a generator in memory: VMs resumed from one snapshot would share
# that generator's state, and so come back in step.
_random01 = secrets.SystemRandom().random


@dataclass(frozen=True, slots=True)
class _Query:
    method: str
    path: str
    timeout_s: float
    params: Params | None = None
    content: bytes | Iterable[bytes] | None = None
    headers: dict[str, str] = field(default_factory=dict)


class _FailedError(Exception):
    """Carries a Failure from one attempt to the retry loop; never leaves this module."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.what)
        self.failure = failure


class Connection:
    """A coordinator to talk to.

    `url` is `https://host:port`, `ca_pem` the only CA believed, `token` goes out as bearer token
    (None before joining). `timeout_s` bounds each wait for the network, `retry_s` the time after
    which no further attempt is started. Raises UsageError for an address or proxy setting that
    cannot work, AuthError for a damaged CA or token.
    """

    def __init__(
        self,
        url: str,
        ca_pem: str,
        token: str | None,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        user_agent: str = USER_AGENT,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._closed = threading.Event()
        headers = {"User-Agent": user_agent, PROTOCOL_HEADER: str(PROTOCOL)}
        if token is not None:
            # Checked here, because the HTTP library's own complaint would quote it.
            if not _TOKEN.fullmatch(token):
                raise AuthError(
                    "This machine's token is damaged.",
                    "It holds characters that no token has.",
                    "Join again with a new code.",
                )
            headers["Authorization"] = f"Bearer {token}"
        self._client = open_client(self.url, tls_context(ca_pem), headers, timeout_s)

    # --- requests

    @overload
    def call(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Params | None = None,
        reply: type[M],
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> M: ...
    @overload
    def call(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Params | None = None,
        reply: None = None,
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> None: ...
    def call(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Params | None = None,
        reply: type[M] | None = None,
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> M | None:
        """One JSON request. With `reply`, the answer as that message.

        `timeout_s` bounds one attempt as a whole (a long poll gives its wait plus some slack).
        `retry=False` is for requests that must not arrive twice.
        """
        content = None if body is None else body.model_dump_json().encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        query = _Query(method, path, self._or_default(timeout_s), params, content, headers)
        return self._ask(query, reply, retry=retry, within_s=query.timeout_s)

    @overload
    def upload(
        self,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        params: Params | None = None,
        reply: type[M],
        method: str = "PUT",
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> M: ...
    @overload
    def upload(
        self,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        params: Params | None = None,
        reply: None = None,
        method: str = "PUT",
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> None: ...
    def upload(
        self,
        path: str,
        data: bytes | Iterable[bytes],
        *,
        params: Params | None = None,
        reply: type[M] | None = None,
        method: str = "PUT",
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> M | None:
        """Send raw bytes. An iterator can be read once only and is therefore never retried;
        bytes, and iterables that start anew on each iteration, are.

        `timeout_s` bounds each wait for the network, not the whole upload.
        """
        repeatable = isinstance(data, bytes) or iter(data) is not data
        headers = {"Content-Type": "application/octet-stream"}
        query = _Query(method, path, self._or_default(timeout_s), params, data, headers)
        return self._ask(query, reply, retry=retry and repeatable, within_s=None)

    def download(
        self,
        path: str,
        params: Params | None = None,
        *,
        max_bytes: int = MAX_DOWNLOAD_BYTES,
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> bytes:
        """The raw body of a GET, started over when it breaks off.

        Raises LimitError as soon as it is known to exceed `max_bytes`. `timeout_s` bounds each
        wait for the network, not the whole download.
        """
        # Objects are compressed already; a second coding would only hide their true size.
        headers = {"Accept-Encoding": "identity"}
        query = _Query("GET", path, self._or_default(timeout_s), params, headers=headers)

        def attempt() -> bytes:
            with self._open(query) as response:
                return self._read(response, max_bytes, path, within_s=None)

        return self._repeat(attempt, retry=retry)

    def stream_lines(
        self, path: str, params: Params | None = None, *, timeout_s: float = 60.0
    ) -> Iterator[bytes]:
        """The lines of a GET as they arrive, without line ends: NDJSON or server-sent events.

        Retries until the answer begins, not after. Raises UnavailableError when the stream
        breaks off or nothing arrives for `timeout_s`; the caller resumes where it was. Close
        the iterator (or exhaust it) to free its connection.
        """
        query = _Query("GET", path, timeout_s, params)
        with contextlib.ExitStack() as stack:
            response = self._repeat(lambda: stack.enter_context(self._open(query)), retry=True)
            pending = b""
            try:
                for chunk in self._chunks(response):
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        yield line.removesuffix(b"\r")
                    if len(pending) > MAX_LINE_BYTES:
                        raise failures.too_large(f"one line of {path}", MAX_LINE_BYTES)
            except _FailedError as failed:
                raise failed.failure.error from None
            if pending:
                yield pending

    def close(self) -> None:
        """Close all connections; a retry that is waiting gives up at once."""
        self._closed.set()
        self._client.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    # --- inside

    def _or_default(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s

    def _ask(
        self, query: _Query, reply: type[M] | None, *, retry: bool, within_s: float | None
    ) -> M | None:
        def attempt() -> bytes:
            with self._open(query) as response:
                return self._read(response, MAX_REPLY_BYTES, query.path, within_s)

        answer = self._repeat(attempt, retry=retry)
        if reply is None:
            return None
        try:
            return reply.model_validate_json(answer)
        except ValidationError:
            # Its details quote the answer, which may hold a token.
            raise failures.unreadable_reply(self.url, query.path) from None

    def _repeat(self, attempt: Callable[[], T], *, retry: bool) -> T:
        """Run `attempt` until it succeeds, fails for good, or `retry_s` are over."""
        give_up_at = time.monotonic() + self._retry_s
        tries = 0
        while True:
            try:
                return attempt()
            except _FailedError as failed:
                failure = failed.failure
            wait_s = failure.retry_after_s + delay_s(
                tries, base_s=_RETRY_BASE_S, cap_s=_RETRY_CAP_S, random01=_random01()
            )
            late = time.monotonic() + wait_s > give_up_at
            if not (retry and failure.transient) or late or self._closed.wait(wait_s):
                raise failure.error
            tries += 1

    @contextlib.contextmanager
    def _open(self, query: _Query) -> Iterator[httpx2.Response]:
        """Send the request; gives the answer, its body unread, if it is a good one."""
        request = self._client.build_request(
            query.method,
            query.path,
            params=None if query.params is None else dict(query.params),
            content=query.content,
            headers=query.headers,
            timeout=timeouts(query.timeout_s),
        )
        with self._explained(query.timeout_s):
            response = self._client.send(request, stream=True)
        try:
            if response.status_code >= 300:
                body = self._read(response, _MAX_ERROR_BYTES, query.path, query.timeout_s)
                raise _FailedError(failures.of_response(response, body, self.url))
            failures.check_protocol(response, self.url)
            yield response
        finally:
            response.close()

    def _read(
        self, response: httpx2.Response, max_bytes: int, path: str, within_s: float | None
    ) -> bytes:
        stated = response.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > max_bytes:
            raise failures.too_large(path, max_bytes)
        give_up_at = None if within_s is None else time.monotonic() + within_s
        received = bytearray()
        for chunk in self._chunks(response):
            received += chunk
            if len(received) > max_bytes:
                raise failures.too_large(path, max_bytes)
            if give_up_at is not None and time.monotonic() > give_up_at:
                raise failures.too_slow(self.url, within_s or 0.0)
        return bytes(received)

    def _chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        read_timeout_s = response.request.extensions["timeout"]["read"]
        with self._explained(read_timeout_s):
            yield from response.iter_bytes()

    @contextlib.contextmanager
    def _explained(self, timeout_s: float) -> Iterator[None]:
        """Turn what the HTTP library raises into a Failure."""
        try:
            yield
        except httpx2.HTTPError as error:
            failure = failures.of_transport(error, self.url, timeout_s)
            raise _FailedError(failure) from None
        except RuntimeError:
            if not self._closed.is_set():
                raise
            error_of_ours = UnavailableError("The connection to the coordinator was closed.")
            raise _FailedError(Failure(error_of_ours, transient=False)) from None
