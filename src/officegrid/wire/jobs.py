"""Messages about jobs and machines: what people submit and what they see."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from officegrid.wire.agent import DeskView
from officegrid.wire.catalogue import CodeRef, DataKey, DataRef, colliding
from officegrid.wire.data import BlockSlice, FileFormat, Layout, Message, Sha256
from officegrid.wire.sql import DeliveryView, QueryInput, TableOutput
from officegrid.wire.work import Limits, OutputSpec, Program

SUSPENDED_LEASE_MOST_S = 30 * 86400.0


class JobPolicy(Message):
    unit_seconds: float = Field(default=30.0, gt=0, le=86400)
    suspended_lease_s: float = Field(
        default=7200.0,
        ge=0,
        le=SUSPENDED_LEASE_MOST_S,
        description="how long a suspended VM keeps a record that takes longer than a unit",
    )
    quarantine_limit: str = "1%"
    priority: int = Field(default=0, ge=-100, le=100)
    schedule: str | None = None
    follow_latest: bool = Field(
        default=False, description="switch to newer code and data while the job runs"
    )


class JobSpec(Message):
    """A job as submitted. `dataset` may be missing only when `input_job` names its source."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    bundle: Sha256 | None = Field(default=None, description="code uploaded with the job")
    code: CodeRef | None = Field(default=None, description="code by name, instead of `bundle`")
    data: dict[DataKey, DataRef] = Field(default_factory=dict, max_length=100)
    program: Program
    dataset: Sha256 | None = None
    input_job: str | None = Field(
        default=None, description="name of a job: its output is the input"
    )
    query: QueryInput | None = Field(
        default=None, description="the coordinator reads the input when the job starts"
    )
    table: TableOutput | None = Field(default=None, description="where the output is put as well")
    after: list[str] = Field(default_factory=list, max_length=100)
    output: OutputSpec = Field(default_factory=OutputSpec)
    output_file_format: FileFormat = "csv"
    output_path: str = ""
    limits: Limits = Field(default_factory=Limits)
    policy: JobPolicy = Field(default_factory=JobPolicy)
    rerun_of: str | None = Field(default=None, description="id of the job whose versions it runs")

    @field_validator("data")
    @classmethod
    def _keys_apart(cls, value: dict[str, DataRef]) -> dict[str, DataRef]:
        if words := colliding(value):
            raise ValueError(words)
        return value


class JobCheck(Message):
    """What of a job can be looked at before anything of it is uploaded."""

    policy: JobPolicy = Field(default_factory=JobPolicy)
    query: QueryInput | None = None
    table: TableOutput | None = None


class JobView(Message):
    """A job as people see it."""

    id: str
    name: str
    state: str
    reason: str = ""
    priority: int = 0
    total: int
    pending: int
    leased: int
    done: int
    quarantined: int
    records_out: int
    units: int
    units_running: int
    records_per_s: float = 0.0
    eta_s: float | None = None
    running_done: int = Field(default=0, description="records finished inside running units")
    generation: int = 0
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    submitter: str = ""
    dataset: str | None = None
    bundle: str | None = None
    output_path: str = ""
    output_file_format: FileFormat = "csv"
    schedule: str | None = None
    next_start_at: float | None = None
    template: str | None = None
    code_name: str | None = None
    code_version: int | None = None
    delivery: DeliveryView | None = None
    pins: int = Field(default=0, description="versions of code and data it has run so far")
    spec: dict[str, Any] | None = None


class JobList(Message):
    jobs: list[JobView]


class HoldRequest(Message):
    reason: str = Field(default="", max_length=1024)


class ReleaseJobRequest(Message):
    """Let a held job go on; `quarantine_limit` replaces the limit it was held for."""

    quarantine_limit: str | None = Field(default=None, max_length=32)


class RetryRequest(Message):
    """Run the quarantined records again, with newer code when `bundle` is given."""

    bundle: Sha256 | None = None
    program: Program | None = None
    limits: Limits | None = None


class QuarantineRow(Message):
    record: int
    error: str
    attempts: int
    raw_base64: str
    raw_cut: bool
    machine: str
    at: float


class QuarantinePage(Message):
    rows: list[QuarantineRow]
    next_record: int | None = None
    layout: Layout | None = None


class OutputHead(Message):
    """First line of an output stream; every further line is a BlockSlice in record order."""

    job_id: str
    state: str
    layout: Layout
    file_format: FileFormat
    columns: list[str] | None
    records_out: int
    complete: bool
    generation: int = Field(default=0, description="how often the job was retried")
    up_to: int = Field(default=0, description="records before this one are all done")


class OutputPage(Message):
    """Consecutive slices of the finished prefix of a job's output."""

    slices: list[BlockSlice]
    next_record: int = Field(description="ask from here for the next page")
    end: bool = Field(description="the job has ended and nothing follows")


class MachineView(Message):
    id: str
    name: str
    role: str
    state: str
    last_seen: float
    created_at: float
    online: bool
    revoked: bool
    units_running: int = 0
    facts: dict[str, Any] = Field(default_factory=dict)
    host: str | None = Field(
        default=None, description="of a worker in a desktop's VM: id of the desktop's agent"
    )
    drain: bool = False
    desk: DeskView | None = Field(default=None, description="of a desktop, by its agent")
    alarm: str | None = Field(
        default=None, description="its identity seems to be in two places: what happened"
    )
    below_floor: str | None = Field(
        default=None, description="it gets no units, because a program of it is too old"
    )
    cloned_from: str | None = Field(
        default=None, description="id of the machine whose copy this one joined as"
    )


class MachineList(Message):
    machines: list[MachineView]


class WhyReply(Message):
    subject: str
    sentences: list[str]


class EventView(Message):
    n: int
    at: float
    subject: str
    kind: str
    text: str
    facts: dict[str, Any] = Field(default_factory=dict)


class StoryReply(Message):
    events: list[EventView]


class JoinCodeRequest(Message):
    role: Literal["worker", "agent", "submitter", "viewer", "admin"]
    uses: int = Field(default=1, ge=1, le=100_000)
    ttl_s: float = Field(default=3600.0, gt=0, le=366 * 86400)


class JoinCodeReply(Message):
    code: str
    role: str
    uses: int
    expires_at: float


class MissingRequest(Message):
    digests: list[Sha256] = Field(max_length=10_000)


class MissingReply(Message):
    missing: list[Sha256]


class DatasetReply(Message):
    id: Sha256
    records: int


class ServerInfo(Message):
    name: str = "officegrid"
    version: str
    protocol: int
    protocol_oldest: int
    max_object_bytes: int
