"""The coordinator's time, as second source where no clock chip follows the host.

Asked over TLS that believes the grid's CA only, with the host name checked; only the dates of the
certificate are not, because whether they hold is the very question. So whoever stands in between
cannot set a guest's clock, which they could by NTP.
"""

from __future__ import annotations

import calendar
import re
import socket
import time

from officegrid.core.errors import UnavailableError

TIMEOUT_S = 10.0
_MOST_DELAY_S = 3.0
_MOST_BYTES = 16384
# <openssl/x509_vfy.h>; Python's ssl has no name for it.
_X509_V_FLAG_NO_CHECK_TIME = 0x200000
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_DATE = re.compile(
    rb"^Date:[ \t]*\w{3}, (\d{2}) (\w{3}) (\d{4}) (\d{2}):(\d{2}):(\d{2}) GMT", re.I | re.M
)


def coordinator_time_s(url: str, ca_pem: str, proxy: str = "") -> float:
    """Seconds since 1970, right to a second or two. `url` is https://HOST:PORT.

    Raises UnavailableError when the coordinator is not reached, is not who it should be, or takes
    so long that its answer means nothing.
    """
    import ssl  # 11 ms that most guests never need

    host, _, port = url.removeprefix("https://").rstrip("/").rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ca_pem)
        context.verify_flags |= ssl.VerifyFlags(_X509_V_FLAG_NO_CHECK_TIME)
        began_s = time.monotonic()
        asked = f"GET /v1/ca HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        with (
            _connect(host, int(port), proxy) as plain,
            context.wrap_socket(plain, server_hostname=host) as line,
        ):
            line.sendall(asked.encode())
            head = _head(line)
        delay_s = time.monotonic() - began_s
    except (OSError, ValueError, TypeError, OverflowError) as error:
        # TypeError is ssl's word for a certificate that is no ASCII text.
        why = getattr(error, "strerror", None) or str(error) or "The address is wrong"
        raise _no_time(f"{why}.") from None
    found = http_date_s(head)
    if found is None:
        raise _no_time("Its answer has no date.")
    if delay_s > _MOST_DELAY_S:
        raise _no_time(f"Its answer took {delay_s:.0f} s.")
    return found + 0.5 + delay_s / 2


def http_date_s(head: bytes) -> float | None:
    """The `Date` of an HTTP answer (RFC 9110, 5.6.7, IMF-fixdate) in seconds since 1970."""
    found = _DATE.search(head)
    if found is None:
        return None
    day, month, year, hour, minute, second = (part.decode("ascii") for part in found.groups())
    if month.title() not in _MONTHS:
        return None
    fields = (int(year), _MONTHS.index(month.title()) + 1, int(day), int(hour), int(minute))
    try:
        return float(calendar.timegm((*fields, int(second), 0, 0, 0)))
    except ValueError:  # the year 0
        return None


def _connect(host: str, port: int, proxy: str) -> socket.socket:
    """A TCP connection, through `CONNECT` of an HTTP proxy (RFC 9110, 9.3.6) where one is set."""
    if not proxy:
        return socket.create_connection((host, port), timeout=TIMEOUT_S)
    proxy_host, _, proxy_port = proxy.removeprefix("http://").rstrip("/").rpartition(":")
    plain = socket.create_connection((proxy_host.strip("[]"), int(proxy_port)), timeout=TIMEOUT_S)
    try:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        plain.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        status = _head(plain).split(b" ", 2)
        if len(status) < 2 or not status[1].startswith(b"2"):
            raise OSError(f"The proxy {proxy} does not let us through")
    except BaseException:
        plain.close()
        raise
    return plain


def _head(line: socket.socket) -> bytes:
    """The head of an HTTP answer, byte by byte on purpose: what follows belongs to others."""
    received = bytearray()
    give_up_at_s = time.monotonic() + TIMEOUT_S
    while not received.endswith(b"\r\n\r\n") and len(received) < _MOST_BYTES:
        byte = line.recv(1)
        if not byte:
            break
        received += byte
        if time.monotonic() > give_up_at_s:
            raise TimeoutError("The answer takes too long")
    return bytes(received)


def _no_time(why: str) -> UnavailableError:
    return UnavailableError("The coordinator does not tell the time.", why, "It is asked again.")
