"""A kept D-Bus connection whose every call has a deadline, and whose every trouble is a
SensorError.

Source: D-Bus specification 0.42 (method calls, NO_AUTO_START, signals and match rules). A name
that nobody owns is not started for us: a sensor must not bring up services that the desktop
lacks.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from officegrid.agent.sensors.base import SensorError

ANSWER_S = 1.0
RETRY_S = 5.0
_ABSENT = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.UnknownMethod",
    "org.freedesktop.DBus.Error.UnknownObject",
    "org.freedesktop.DBus.Error.UnknownInterface",
)


class AbsentError(SensorError):
    """The bus is not there, or nobody on it offers what was asked for."""


class Bus:
    """One connection to a message bus, opened when first used and anew after a failure."""

    def __init__(self, address: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`address` as in DBUS_SESSION_BUS_ADDRESS, or "SYSTEM"."""
        self._address, self._clock = address, clock
        self._connection: Any = None
        self._signals: deque[Any] = deque(maxlen=64)
        self._watched: tuple[str, str] | None = None
        self._trouble = SensorError("not tried yet")
        self._retry_at_s = float("-inf")

    def call(
        self, service: str, path: str, interface: str, method: str, signature: str = "",
        body: tuple[Any, ...] = (),
    ) -> tuple[Any, ...]:  # fmt: skip
        """The reply's values, variants as (signature, value) pairs.

        Raises AbsentError (nobody offers this) or SensorError.
        """
        jeepney = _jeepney()
        where = jeepney.DBusAddress(path, bus_name=service, interface=interface)
        message = jeepney.new_method_call(where, method, signature or None, body)
        message.header.flags = jeepney.MessageFlag.no_auto_start
        return self._answer(message, f"{interface}.{method}")

    def watch(self, sender: str, under: str) -> None:
        """From now on remember whether `sender` sends signals from objects under path `under`.
        Raises SensorError."""
        self._watched = (sender, under)
        self._open()

    def signalled(self) -> bool:
        """Has there been a watched signal since the last call? Never waits. A lost connection is
        found here too: raises SensorError."""
        self._open()
        try:
            while True:
                self._connection.recv_messages(timeout=0)
        except TimeoutError:
            pass
        except Exception as error:  # the library does not say what else it raises
            raise self._lost(error) from None
        seen = any(self._matters(message) for message in self._signals)
        self._signals.clear()
        return seen

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _matters(self, message: Any) -> bool:
        """Of the sender's own interfaces, or a changed property of one."""
        if message is None or self._watched is None:
            return True
        interface = str(message.header.fields.get(_jeepney().HeaderFields.interface, ""))
        return interface.startswith((self._watched[0], "org.freedesktop.DBus.Properties"))

    def _answer(self, message: Any, what: str) -> tuple[Any, ...]:
        jeepney = _jeepney()
        self._open()
        try:
            reply = self._connection.send_and_get_reply(message, timeout=ANSWER_S)
        except Exception as error:  # the library does not say what it raises
            raise self._lost(error) from None
        if reply.header.message_type is jeepney.MessageType.error:
            name = reply.header.fields.get(jeepney.HeaderFields.error_name, "")
            text = f"{what}: {reply.body[0] if reply.body else name}"
            raise AbsentError(text) if name in _ABSENT else SensorError(text)
        body: tuple[Any, ...] = reply.body
        return body

    def _lost(self, error: Exception) -> SensorError:
        self.close()
        why = "does not answer" if isinstance(error, TimeoutError) else f"is gone ({error})"
        self._trouble = SensorError(f"the message bus {why}")
        self._retry_at_s = self._clock() + RETRY_S
        return self._trouble

    def _open(self) -> None:
        if self._connection is not None:
            return
        if self._clock() < self._retry_at_s:
            raise self._trouble
        self._retry_at_s = self._clock() + RETRY_S
        try:
            self._connection = _connected(self._address)
            if self._watched is not None:
                self._subscribe(*self._watched)
        except SensorError as error:
            self._trouble = error
            raise
        except Exception as error:  # authentication, socket, library
            self.close()
            self._trouble = AbsentError(f"no message bus ({error or type(error).__name__})")
            raise self._trouble from None
        self._retry_at_s = float("-inf")

    def _subscribe(self, sender: str, under: str) -> None:
        jeepney = _jeepney()
        rule = jeepney.MatchRule(type="signal", sender=sender, path_namespace=under)
        self._answer(jeepney.bus_messages.message_bus.AddMatch(rule), "AddMatch")
        # Signals carry the sender's unique name, which is not the one that we know.
        self._connection.filter(
            jeepney.MatchRule(type="signal", path_namespace=under), queue=self._signals
        )
        self._signals.append(None)  # whatever happened while we were not connected


def session_bus_address() -> str:
    """The bus of this user's session. Raises AbsentError."""
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    if address:
        return address
    if sys.platform != "win32":
        path = Path(f"/run/user/{os.geteuid()}/bus")
        if path.exists():
            return f"unix:path={path}"
    raise AbsentError("there is no session bus")


def _jeepney() -> Any:
    try:
        import jeepney  # type: ignore[import-untyped]
        import jeepney.bus_messages  # type: ignore[import-untyped]
    except ImportError:
        raise AbsentError("the Python package jeepney is not installed") from None
    return jeepney


def _connected(address: str) -> Any:
    _jeepney()
    from jeepney.bus import get_bus  # type: ignore[import-untyped]
    from jeepney.io.blocking import (  # type: ignore[import-untyped]
        DBusConnection,
        prep_socket,
    )

    class Impatient(DBusConnection):  # type: ignore[misc]
        """Its first call, Hello, would wait for ever."""

        def receive(self, *, timeout: float | None = None) -> Any:
            return super().receive(timeout=ANSWER_S if timeout is None else timeout)

    sock = prep_socket(get_bus(address), timeout=ANSWER_S)
    try:
        return Impatient(sock)
    except BaseException:
        sock.close()
        raise
