"""Many simulated workers in one process: real TLS, real requests, no program to run.

A hand-written HTTP/1.1 client keeps the measuring side cheap, so that the coordinator is what is
measured.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

RECORDS_PER_S = 1.0  # what the workers claim to manage; with 30 s units: 30 records a unit


@dataclass
class Tally:
    round_trips: int = 0
    latencies_s: list[float] = field(default_factory=list)
    errors: int = 0


class FakeWorker:
    def __init__(self, port: int, tls: ssl.SSLContext, token: str, number: int) -> None:
        self._port = port
        self._tls = tls
        self._token = token
        self._session = f"bench-{number}"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname="localhost"
        )

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(head.encode() + content)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        payload = await self._reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{answer[:40]!r} {payload[:300]!r}")
        found: dict[str, Any] = json.loads(payload)
        return found

    def claim_body(self, wait_s: float = 0.0, held: list[str] | None = None) -> dict[str, Any]:
        return {
            "session_id": self._session,
            "slots": 1,
            "units": 1,
            "wait_s": wait_s,
            "held_leases": held or [],
        }

    async def commit_for(self, until: float, tally: Tally) -> None:
        """Claim, then commit + claim in one round trip, again and again."""
        reply = await self.ask("/v1/claim", self.claim_body(5.0))
        while time.perf_counter() < until and reply["units"]:
            unit = reply["units"][0]
            body = {
                "session_id": self._session,
                "lease_id": unit["lease_id"],
                "job_id": unit["job_id"],
                "start": unit["start"],
                "end": unit["end"],
                "compute_s": (unit["end"] - unit["start"]) / RECORDS_PER_S,
                "claim": self.claim_body(),
            }
            started = time.perf_counter()
            answer = await self.ask("/v1/commit", body)
            tally.latencies_s.append(time.perf_counter() - started)
            tally.round_trips += 1
            if answer["outcome"] != "committed":
                tally.errors += 1
            reply = answer["next"]

    async def wait_for(self, until: float) -> None:
        """What an idle worker does: long polls."""
        while (left := until - time.perf_counter()) > 0:
            await self.ask("/v1/claim", self.claim_body(min(25.0, left)))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


async def connected(
    port: int, tls: ssl.SSLContext, tokens: list[str], batch: int = 50
) -> list[FakeWorker]:
    workers = [FakeWorker(port, tls, token, n) for n, token in enumerate(tokens)]
    for start in range(0, len(workers), batch):
        await asyncio.gather(*(worker.connect() for worker in workers[start : start + batch]))
    return workers
