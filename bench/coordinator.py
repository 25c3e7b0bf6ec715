"""The coordinator: round trips per second, the ledger alone, memory, and what waiting costs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import ssl
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.fake_workers import FakeWorker, Tally, connected
from bench.report import Figure, heading, show
from officegrid.coordinator.app import open_coordinator
from officegrid.coordinator.service import claims, commits, lifecycle, machines
from officegrid.data.blocks import pack_block
from officegrid.demo.local_grid import LocalGrid
from officegrid.storage.api import Dataset, PlacedBlock, Tx
from officegrid.transport.http import Connection
from officegrid.transport.join import join
from officegrid.wire.data import BlockSlice, DatasetSpec, Layout
from officegrid.wire.jobs import DatasetReply, JobSpec, JobView, JoinCodeReply, JoinCodeRequest
from officegrid.wire.work import ClaimRequest, CommitRequest, Program

BLOCK_RECORDS = 10_000  # what 1 MiB hold at 100 bytes a record
WORKERS = 64
CROWD = 1000
MEASURE_S = 10.0


def run(folder: Path) -> None:
    _ledger_alone(folder / "ledger")
    with LocalGrid(folder / "grid", lease_s=60) as grid, grid.connection() as connection:
        server = psutil.Process(grid.pid("coordinator"))
        cores = sorted(os.sched_getaffinity(0))
        for thread in psutil.Process(server.pid).threads():
            os.sched_setaffinity(thread.id, cores[:1])
        os.sched_setaffinity(0, cores[-1:])
        try:
            tokens = _join_many(grid.url, connection, CROWD)
            tls = ssl.create_default_context(cadata=_ca(folder))
            port = int(grid.url.rpartition(":")[2])
            asyncio.run(_idle(port, tls, tokens, server))
            _submit(connection, "many", 100_000_000)
            asyncio.run(_round_trips(folder, port, tls, tokens[:WORKERS], cores))
            asyncio.run(_crowd(port, tls, tokens, server))
        finally:
            os.sched_setaffinity(0, cores)


def _ca(folder: Path) -> str:
    return (folder / "grid" / "coordinator" / "pki" / "ca.pem").read_text()


def _join_many(url: str, connection: Connection, count: int) -> list[str]:
    request = JoinCodeRequest(role="worker", uses=count, ttl_s=3600)
    reply = connection.call("POST", "/v1/join-codes", body=request, reply=JoinCodeReply)
    return [join(url, reply.code, name=f"bench-{n}", facts={}).token for n in range(count)]


def _slices(records: int) -> tuple[bytes, list[BlockSlice]]:
    block = pack_block(b"1,2,3\n" * BLOCK_RECORDS, BLOCK_RECORDS)
    return block.payload, [block.slice] * (records // BLOCK_RECORDS)


def _submit(connection: Connection, name: str, records: int) -> JobView:
    payload, slices = _slices(records)
    connection.upload(f"/v1/objects/{slices[0].sha256}", payload)
    layout = Layout(columns=["a", "b", "c"])
    spec = DatasetSpec(layout=layout, records=records, source="bench", blocks=slices)
    dataset = connection.call("POST", "/v1/datasets", body=spec, reply=DatasetReply, timeout_s=120)
    job = JobSpec(name=name, dataset=dataset.id, program=Program(python="bench:record"))
    return connection.call("POST", "/v1/jobs", body=job, reply=JobView)


# --- round trips over HTTPS ------------------------------------------------------------------


async def _round_trips(
    folder: Path, port: int, tls: ssl.SSLContext, tokens: list[str], cores: list[int]
) -> None:
    heading(f"Durable commit + claim over HTTPS, {len(tokens)} workers, coordinator on one core")
    bare = await _bare(folder, tls, tokens, cores)
    tally = await _measure(await connected(port, tls, tokens))
    rate = tally.round_trips / MEASURE_S
    ms = sorted(1000 * one for one in tally.latencies_s)
    show(
        Figure("bare server", f"{bare:,.0f} round trips/s", "same TLS and server, no work"),
        Figure("coordinator", f"{rate:,.0f} round trips/s", "aim >= 1,500"),
        Figure("ratio", f"{rate / bare:.2f} of the bare server"),
        Figure("latency", f"p50 {ms[len(ms) // 2]:.1f} ms, p99 {ms[len(ms) * 99 // 100]:.1f} ms"),
        Figure("refused", f"{tally.errors}", "must be 0"),
    )


async def _measure(workers: list[FakeWorker]) -> Tally:
    tally = Tally()
    until = time.perf_counter() + MEASURE_S
    await asyncio.gather(*(worker.commit_for(until, tally) for worker in workers))
    for worker in workers:
        worker.close()
    return tally


async def _bare(folder: Path, tls: ssl.SSLContext, tokens: list[str], cores: list[int]) -> float:
    pki = folder / "grid" / "coordinator" / "pki"
    port = 18999
    command = [sys.executable, "-m", "bench.bare_server", str(pki / "server.pem"),
               str(pki / "server-key.pem"), str(port)]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        os.sched_setaffinity(process.pid, cores[:1])
        deadline = time.perf_counter() + 20
        while time.perf_counter() < deadline:
            with contextlib.suppress(OSError):
                workers = await connected(port, tls, tokens)
                break
            await asyncio.sleep(0.1)
        return (await _measure(workers)).round_trips / MEASURE_S
    finally:
        process.kill()
        process.wait()


# --- waiting, and a crowd --------------------------------------------------------------------


async def _idle(port: int, tls: ssl.SSLContext, tokens: list[str], server: psutil.Process) -> None:
    heading(f"{len(tokens):,} workers waiting for work")
    workers = await connected(port, tls, tokens)
    until = time.perf_counter() + 35
    waiting = [asyncio.create_task(worker.wait_for(until)) for worker in workers]
    await asyncio.sleep(4)
    before, started = server.cpu_times(), time.perf_counter()
    await asyncio.sleep(28)
    after, seconds = server.cpu_times(), time.perf_counter() - started
    used = after.user + after.system - before.user - before.system
    show(Figure("coordinator CPU", f"{100 * used / seconds:.1f} % of a core", "must < 5 %"))
    await asyncio.gather(*waiting)
    for worker in workers:
        worker.close()


async def _crowd(port: int, tls: ssl.SSLContext, tokens: list[str], server: psutil.Process) -> None:
    heading(f"Memory: {len(tokens):,} connected workers, a job of 100 million records")
    workers = await connected(port, tls, tokens)
    tally = Tally()
    until = time.perf_counter() + MEASURE_S
    await asyncio.gather(*(worker.commit_for(until, tally) for worker in workers))
    rss = server.memory_info().rss / 1e6
    show(
        Figure("coordinator memory", f"{rss:.0f} MB", "must < 250 MB"),
        Figure("round trips", f"{tally.round_trips / MEASURE_S:,.0f}/s"),
    )
    for worker in workers:
        worker.close()


# --- ledger and storage alone ----------------------------------------------------------------


def _ledger_alone(folder: Path) -> None:
    heading("Ledger + storage alone: claim and commit, 50 operations a transaction")
    here = open_coordinator(folder, names=[])
    payload, slices = _slices(100_000_000 // 10)
    here.objects.put_bytes(payload)
    ids = itertools.count()
    here.grid.new_id = lambda: f"{next(ids):024d}"

    def prepare(tx: Tx) -> None:
        placed = [PlacedBlock(n * BLOCK_RECORDS, one) for n, one in enumerate(slices)]
        tx.add_dataset(
            Dataset("d" * 64, Layout(), len(slices) * BLOCK_RECORDS, 0, 0, "", 0.0), placed
        )
        spec = JobSpec(name="bench", program=Program(python="bench:record"))
        job = lifecycle.create(
            here.grid, tx, spec.model_copy(update={"dataset": "d" * 64}), "me", 0.0
        )
        assert job.total
        for n in range(50):
            machines.add_machine(
                tx, role="worker", name=f"w{n}", token_hash=f"{n}", facts={}, now=0
            )

    here.storage.write(prepare)
    crew = here.storage.read(lambda tx: tx.machines())
    claims = [ClaimRequest(session_id="s", units=1) for _ in crew]

    def first(tx: Tx) -> list[CommitRequest]:
        return [_commit_of(here, tx, m.id, c) for m, c in zip(crew, claims, strict=True)]

    pending = here.storage.write(first)
    rates = []
    for _ in range(3):
        started, pairs = time.perf_counter(), 0
        while time.perf_counter() - started < 3:
            operations = [_operation(here, m.id, c) for m, c in zip(crew, pending, strict=True)]
            pending = [done.value for done in here.storage.write_many(operations)]
            pairs += len(pending)
        rates.append(pairs / (time.perf_counter() - started))
    show(Figure("claim + commit", f"{statistics.median(rates):,.0f} pairs/s", "aim >= 10,000"))
    here.writer.stop()
    here.storage.close()


def _commit_of(here, tx: Tx, machine_id: str, request: ClaimRequest) -> CommitRequest:  # type: ignore[no-untyped-def]
    machine = tx.machine(machine_id)
    assert machine is not None
    unit = claims.claim(here.grid, tx, machine, request, 1.0).units[0]
    return _next_commit(unit)


def _next_commit(unit) -> CommitRequest:  # type: ignore[no-untyped-def]
    return CommitRequest(
        session_id="s", lease_id=unit.lease_id, job_id=unit.job_id, start=unit.start,
        end=unit.end, compute_s=float(unit.end - unit.start),
        claim=ClaimRequest(session_id="s", units=1),
    )  # fmt: skip


def _operation(here, machine_id: str, request: CommitRequest):  # type: ignore[no-untyped-def]
    def run(tx: Tx) -> CommitRequest:
        machine = tx.machine(machine_id)
        assert machine is not None
        reply = commits.commit(here.grid, tx, machine, request, 2.0)
        assert reply.outcome == "committed"
        assert reply.next is not None
        return _next_commit(reply.next.units[0])

    return run
