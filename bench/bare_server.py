"""The baseline for round trips: the same server program and TLS, an application that does nothing.

Run as `python -m bench.bare_server CERT KEY PORT`.
"""

from __future__ import annotations

import ssl
import sys
from typing import Any

import uvicorn

CLAIMED = b'{"units":[{"lease_id":"x","job_id":"x","start":0,"end":1}]}'
COMMITTED = b'{"outcome":"committed","next":' + CLAIMED + b"}"


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    reply = COMMITTED if scope["path"] == "/v1/commit" else CLAIMED
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply})


if __name__ == "__main__":
    cert, key, port = sys.argv[1:]
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        ssl_certfile=cert,
        ssl_keyfile=key,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        log_level="error",
    )
