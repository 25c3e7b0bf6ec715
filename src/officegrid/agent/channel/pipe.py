"""The agent's local door on Windows: a named pipe, one JSON object per line.

Who may connect is in the pipe's security descriptor: the system, administrators, the agent's own
account, and whoever is logged on at the PC or by Remote Desktop; never the network. Who connected
is read from the token of the caller, which only Windows can change. Each connection has a thread
of its own, which may wait but not for ever; a connection may carry many requests.

The name of a pipe is free for anybody to take while no agent runs. So the agent refuses to start
under a name that is in use, and a client makes sure that the pipe belongs to the system, to the
administrators, to the account of the agent's service, or to itself.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import Any

from officegrid.agent.channel.hub import MOST_REQUEST_BYTES, Hub, Peer
from officegrid.agent.channel.lines import answer_line
from officegrid.agent.windows import accounts, api, control, pipe_calls
from officegrid.agent.windows.api import Event
from officegrid.agent.windows.pipe_calls import PipeEnd, StoppedError
from officegrid.agent.windows.service_plan import SERVICE_NAME
from officegrid.core.errors import (
    ConflictError,
    ForbiddenError,
    OfficeGridError,
    UnavailableError,
)

PIPE_NAME = "officegrid-agent"
"""Where the service listens: \\\\.\\pipe\\officegrid-agent."""
REQUEST_TIMEOUT_S = 5.0
"""From the first byte of a request to its last, and for taking the answer."""
QUIET_TIMEOUT_S = 60.0
"""A connection without any request for this long is closed; helpers connect again."""
MOST_CONNECTIONS = 32
MOST_CONNECTIONS_PER_SESSION = 8
MOST_ANSWER_BYTES = 1_000_000


def descriptor(account_sid: str) -> str:
    """Who may do what with the pipe, in the security descriptor language (SDDL).

    Nobody from the network (NU); all for the system (SY), administrators (BA) and `account_sid`;
    for interactive users (IU) to connect and talk, but not to serve (see CLIENT_ACCESS).
    """
    talk = f"0x{pipe_calls.CLIENT_ACCESS:x}"
    all_for = "(A;;GA;;;SY)(A;;GA;;;BA)" + f"(A;;GA;;;{account_sid})"
    return f"O:{account_sid}D:P(D;;GA;;;NU){all_for}(A;;{talk};;;IU)"


class Server:
    """A listening door; `close()` hangs up on everybody and gives the name free."""

    def __init__(self, hub: Hub, name: str, request_timeout_s: float, quiet_s: float) -> None:
        self._hub, self._name = hub, name
        self._request_s, self._quiet_s = request_timeout_s, quiet_s
        self._own_sid = accounts.own_sid()
        self._descriptor = descriptor(self._own_sid)
        self._stop = Event()
        self._closed = False
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, PipeEnd] = {}
        self._per_session: Counter[int] = Counter()
        try:
            first = pipe_calls.create_instance(name, self._descriptor, first=True, stop=self._stop)
        except OSError:
            self._stop.close()
            raise
        self._listener = threading.Thread(
            target=self._listen, args=(first,), name="agent-door", daemon=True
        )
        self._listener.start()

    def close(self) -> None:
        """Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._listener.join(timeout=10)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout=10)
        self._stop.close()

    def _listen(self, end: PipeEnd) -> None:
        """Accept, hand over, make the next end, for ever."""
        while True:
            try:
                end.accept()
                connected = True
            except StoppedError:
                end.close()
                return
            except OSError:  # the caller was gone before we were there
                connected = False
            fresh = self._next_end()
            if fresh is None:
                end.close()
                return
            if connected:
                self._hand_over(end)
            else:
                end.close()
            end = fresh

    def _next_end(self) -> PipeEnd | None:
        """Made before the accepted one is served: the name never goes free. None: we stop."""
        while not self._closed:
            try:
                return pipe_calls.create_instance(
                    self._name, self._descriptor, first=False, stop=self._stop
                )
            except OSError:
                time.sleep(0.1)  # out of memory or handles: others may return theirs
        return None

    def _hand_over(self, end: PipeEnd) -> None:
        thread = threading.Thread(target=self._converse, args=(end,), name="agent-caller")
        thread.daemon = True
        with self._lock:
            full = len(self._threads) >= MOST_CONNECTIONS
            if not full:
                self._threads[thread] = end
        if full:
            end.close()
        else:
            thread.start()

    def _converse(self, end: PipeEnd) -> None:
        session: int | None = None
        try:
            received = end.read(time.monotonic() + self._quiet_s)
            if not received:
                return
            facts, admin, pid = end.client()
            with self._lock:
                full = self._per_session[facts.session] >= MOST_CONNECTIONS_PER_SESSION
                if full and not admin:
                    return
                session = facts.session
                self._per_session[session] += 1
            peer = Peer(
                user=facts.sid, session=str(facts.session), pid=pid,
                admin=admin or facts.sid == self._own_sid,
            )  # fmt: skip
            while received := self._serve_line(end, peer, received):
                pass
        except (StoppedError, TimeoutError, OSError):
            pass  # too slow, or gone: this caller loses the connection, nobody else's
        finally:
            end.close()
            with self._lock:
                if session is not None:
                    self._per_session[session] -= 1
                self._threads.pop(threading.current_thread(), None)

    def _serve_line(self, end: PipeEnd, peer: Peer, received: bytes) -> bytes:
        """Answer one request; returns the start of the next, b"" at the end of the talk."""
        deadline_s = time.monotonic() + self._request_s
        while b"\n" not in received and len(received) <= MOST_REQUEST_BYTES:
            more = end.read(deadline_s)
            if not more:
                return b""
            received += more
        line, ended, rest = received.partition(b"\n")
        end.write(answer_line(self._hub, peer, line), time.monotonic() + self._request_s)
        if not ended:
            return b""  # too long, and told so
        return rest or end.read(time.monotonic() + self._quiet_s)


def serve(
    hub: Hub,
    name: str = PIPE_NAME,
    *,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    quiet_timeout_s: float = QUIET_TIMEOUT_S,
) -> Server:
    r"""Listen on \\.\pipe\NAME until the returned server is closed.

    Raises ConflictError (somebody serves this name already), ForbiddenError.
    """
    try:
        if pipe_calls.exists(name):
            raise _taken(name)
        return Server(hub, name, request_timeout_s, quiet_timeout_s)
    except OSError as error:
        if api.error_code(error) == api.ERROR_ACCESS_DENIED:
            raise _taken(name) from None
        raise ForbiddenError(
            f"The agent cannot listen on the pipe {name}.", str(error), "Restart the agent."
        ) from None


def is_agents(owner: str, service: str) -> bool:
    """Is a pipe of this owner (a SID) the agent's? `service` is the name of the agent's service."""
    if owner in (accounts.LOCAL_SYSTEM_SID, accounts.ADMINISTRATORS_SID, accounts.own_sid()):
        return True
    try:
        return owner == accounts.account_sid(control.service_account(service))
    except OSError:  # not registered here: the agent was started by hand, by somebody else
        return False


class Connection:
    """A kept connection; connects when needed, and anew after a failure."""

    def __init__(self, name: str = PIPE_NAME, *, service: str = SERVICE_NAME) -> None:
        self._name, self._service = name, service
        self._end: PipeEnd | None = None
        self._left = b""

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """The agent's answer, refusals included ({"ok": false, ...}).

        Raises UnavailableError (no agent, or it does not answer in time) and ForbiddenError.
        """
        deadline_s = time.monotonic() + timeout_s
        kept = self._end is not None
        try:
            try:
                return self._exchange(message, deadline_s)
            except _HungUpError:
                # The agent was restarted since the last request: once more, newly connected.
                if not kept:
                    raise
                return self._exchange(message, deadline_s)
        except _HungUpError:
            raise _no_agent(self._name, "It hung up.") from None
        except OSError as error:
            self.close()
            raise _explained(self._name, error) from None

    def close(self) -> None:
        """Hang up; the next request connects again."""
        if self._end is not None:
            self._end.close()
        self._end, self._left = None, b""

    def _exchange(self, message: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        if self._end is None:
            self._end = self._connected(deadline_s)
        try:
            line = self._line(self._end, json.dumps(message).encode() + b"\n", deadline_s)
            answer = json.loads(line)
        except OSError as error:
            self.close()
            if api.error_code(error) in pipe_calls.HUNG_UP:
                raise _HungUpError from None
            raise
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.close()
            raise UnavailableError(
                f"What serves the pipe {self._name} is no agent.", "Its answer makes no sense."
            )
        return answer

    def _line(self, end: PipeEnd, request: bytes, deadline_s: float) -> bytes:
        end.write(request, deadline_s)
        received = self._left
        while b"\n" not in received:
            data = end.read(deadline_s)
            if not data or len(received) > MOST_ANSWER_BYTES:
                raise api.failure("ReadFile", api.ERROR_BROKEN_PIPE)
            received += data
        line, _, self._left = received.partition(b"\n")
        return line

    def _connected(self, deadline_s: float) -> PipeEnd:
        end = pipe_calls.open_client(self._name, deadline_s)
        try:
            owner = accounts.owner_sid(end)
            if not is_agents(owner, self._service):
                raise ForbiddenError(
                    f"The program that serves the pipe {self._name} is not the agent.",
                    f"The pipe belongs to {owner}.",
                    "Tell your administrator.",
                )
        except BaseException:
            end.close()
            raise
        return end


class _HungUpError(Exception):
    """The connection broke before an answer came."""


def request(
    message: dict[str, Any], timeout_s: float = 5.0, *,
    name: str = PIPE_NAME, service: str = SERVICE_NAME,
) -> dict[str, Any]:  # fmt: skip
    """Ask the agent one thing; see `Connection.request`."""
    connection = Connection(name, service=service)
    try:
        return connection.request(message, timeout_s)
    finally:
        connection.close()


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"Another program serves the pipe {name}.",
        "Only one agent may run on a PC.",
        "Stop the other one, or look at it: officegrid agent status.",
    )


def _explained(name: str, error: OSError) -> OfficeGridError:
    if isinstance(error, TimeoutError):
        return UnavailableError(
            "The agent does not answer.", f"It serves the pipe {name}, but is stuck.", "Restart it."
        )
    if api.error_code(error) == api.ERROR_ACCESS_DENIED:
        return ForbiddenError(
            f"You may not talk to the agent on the pipe {name}.",
            "Only people logged on at this PC may.",
            "Ask your administrator.",
        )
    if api.error_code(error) == api.ERROR_FILE_NOT_FOUND:
        return _no_agent(name, "Nobody serves it.")
    return _no_agent(name, str(error))


def _no_agent(name: str, why: str) -> UnavailableError:
    return UnavailableError(
        "No agent answers on this PC.",
        f"{why} Its pipe would be {name}.",
        "Start it: officegrid agent run; or look whether its service runs.",
    )
