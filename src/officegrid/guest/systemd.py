"""Telling systemd how we are: sd_notify(3), one datagram to the socket it names."""

from __future__ import annotations

import os
import socket

from officegrid.guest.console import say


def notify(state: str) -> None:
    """`READY=1`, `WATCHDOG=1`, `STATUS=…`; does nothing where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.sendto(state.encode(), address)
    except OSError as error:
        say("TROUBLE", f"systemd cannot be told {state!r}: {error.strerror or error}.")


def tell_host(port: str) -> bool:
    """One line to the virtio port on which the host waits; False while there is no such port."""
    try:
        descriptor = os.open(port, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, b"ready\n")
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
