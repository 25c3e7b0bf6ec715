"""Messages between a worker and the coordinator: claim, renew, commit, release."""

from __future__ import annotations

import base64
from typing import Literal

from pydantic import Field

from officegrid.wire.data import BlockSlice, Format, Layout, Message, Sha256


class Program(Message):
    """What to run: exactly one of `python` ("module:function") and `run` (argv)."""

    python: str | None = None
    call: Literal["record", "batch"] = "record"
    run: list[str] | None = None
    stdin: Literal["csv", "ndjson", "lines"] | None = None
    stdout: Literal["csv", "ndjson", "lines"] | None = None
    header: bool = Field(default=True, description="run: CSV on stdin and stdout has a header line")
    env: dict[str, str] = Field(default_factory=dict)


class OutputSpec(Message):
    """How output records are stored in blocks; the client converts to other file formats."""

    format: Format = "csv"
    columns: list[str] | None = None
    count: Literal["same", "any"] = Field(
        default="any", description="same: a `run` program prints one record per input record"
    )


class Limits(Message):
    attempts: int = Field(default=3, ge=1, le=100)
    record_timeout_s: float = Field(default=60.0, gt=0)
    memory_mb: int = Field(default=1024, ge=16)
    batch_records: int = Field(default=10_000, ge=1)
    output_mb: int = Field(default=256, ge=1, description="most that one batch may print")


class UnitData(Message):
    """Reference data of a unit: what the program knows as the key it stands under."""

    digest: Sha256
    name: str
    n: int
    file_name: str = ""
    load: Literal["", "mariadb"] = ""


class Unit(Message):
    """One lease and all a worker needs to carry it out."""

    lease_id: str
    job_id: str
    job_name: str
    start: int
    end: int
    generation: int = 0
    lease_s: float
    renew_every_s: float
    bundle: Sha256 | None = None
    data: dict[str, UnitData] = Field(default_factory=dict)
    program: Program
    layout: Layout
    output: OutputSpec
    limits: Limits
    input: list[BlockSlice]
    skip_records: int = Field(default=0, description="records of the first slice before `start`")


class UpdateFailure(Message):
    """A release that does not work on a machine, and the order it was tried for."""

    digest: Sha256
    version: str = Field(default="", max_length=64)
    number: int = Field(ge=0)
    why: str = Field(max_length=1024)


class UpdateOrder(Message):
    """What a worker is told about its own program.

    With `digest`: run that release, `GET /v1/release/{sha256}`. With `home`: run the installed
    program again. With neither: it is below the floor, and nothing can be ordered.
    """

    digest: Sha256 | None = None
    version: str = ""
    size: int = Field(default=0, description="bytes of the wheel")
    number: int = Field(default=0, description="of the order: grows with each new one")
    home: bool = False
    text: str = Field(default="", description="why there are no units, as a sentence")
    mark: int = Field(default=0, description="changes with each change to floor or releases")


class ClaimRequest(Message):
    session_id: str = Field(min_length=1, max_length=64)
    slots: int = Field(default=1, ge=1, le=1024)
    units: int = Field(default=1, ge=0, le=64, description="how many units are wanted")
    wait_s: float = Field(default=0.0, ge=0, le=120)
    prefer_job: str | None = None
    held_leases: list[str] = Field(default_factory=list, max_length=4096)
    hardware_id: str = Field(
        default="", max_length=64, description="the computer the worker is on; empty: not known"
    )
    version: str = Field(default="", max_length=64, description="of officegrid; empty: not told")
    release: Sha256 | None = Field(
        default=None, description="the pushed release it runs; null: what is installed there"
    )
    update_failed: UpdateFailure | None = None
    update_mark: int = Field(default=0, description="`mark` of the last order it has got")


class ClaimReply(Message):
    units: list[Unit] = Field(default_factory=list)
    retry_after_s: float = 1.0
    idle: bool = Field(default=False, description="nothing is left to do on the whole grid")
    update: UpdateOrder | None = None


class LeaseProgress(Message):
    lease_id: str
    records_done: int = Field(default=0, ge=0)


class RenewRequest(Message):
    session_id: str = Field(min_length=1, max_length=64)
    leases: list[LeaseProgress] = Field(max_length=4096)


class RenewReply(Message):
    alive: list[str]
    lost: list[str]


class QuarantinedRecord(Message):
    """A record set aside, and where in the part its output would have gone."""

    record: int = Field(ge=0)
    error: str = Field(max_length=8192)
    attempts: int = Field(ge=1)
    raw: str = Field(description="the record's bytes, base64; cut at 64 KiB")
    raw_cut: bool = False
    block: int = Field(ge=0, description="index into `blocks`; len(blocks) means after the last")
    offset: int = Field(ge=0, description="raw byte offset inside that block")
    rows_before: int = Field(ge=0, description="output records inside that block before the gap")

    def raw_bytes(self) -> bytes:
        """The record's bytes. Raises ValueError when `raw` is not base64."""
        return base64.b64decode(self.raw, validate=True)


class CommitRequest(Message):
    session_id: str = Field(min_length=1, max_length=64)
    lease_id: str = Field(min_length=1, max_length=64)
    job_id: str = Field(min_length=1, max_length=64)
    start: int = Field(ge=0)
    end: int = Field(ge=1)
    blocks: list[BlockSlice] = Field(default_factory=list)
    quarantined: list[QuarantinedRecord] = Field(default_factory=list)
    compute_s: float = Field(default=0.0, ge=0)
    bundle: Sha256 | None = Field(
        default=None, description="the program folder that ran; null: none, or not told"
    )
    claim: ClaimRequest | None = None


class CommitReply(Message):
    outcome: Literal["committed", "repeated", "refused"]
    reason: str = ""
    next: ClaimReply | None = None


class ReleaseRequest(Message):
    """Give units back. `fault` says that the machine, not its user, is to blame."""

    session_id: str = Field(min_length=1, max_length=64)
    leases: list[str] = Field(max_length=4096)
    fault: bool = False
    reason: str = Field(default="", max_length=1024)
    rest_s: float = Field(
        default=0.0, ge=0, le=3600,
        description="for that reason the machine takes no units of any job for so long",
    )  # fmt: skip


class FailRequest(Message):
    """The unit cannot be run here at all (bundle, environment, interpreter missing)."""

    session_id: str = Field(min_length=1, max_length=64)
    lease_id: str
    error: str = Field(max_length=8192)


class MachineEvent(Message):
    """What happens on a desktop; the coordinator releases that machine's units when it yields."""

    session_id: str = Field(default="", max_length=64)
    kind: Literal[
        "worker_started",
        "worker_stopped",
        "idle",
        "starting",
        "running",
        "paused",
        "saved",
        "user_back",
        "thawed",
    ]
    text: str = Field(default="", max_length=1024)
