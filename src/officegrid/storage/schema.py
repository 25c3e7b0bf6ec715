"""The tables: the single source of the schema for every database.

Types are portable. Times are seconds since the epoch, record ranges are half open, JSON is kept
as compact text. Column names equal the field names of the dataclasses in `storage.api`.
`migrations/` brings a database to this state; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    text,
)

HEAD = "0004"  # the newest revision in migrations/versions

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("dataset", Text),
    Column("bundle", Text),
    Column("priority", Integer, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("submitter", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("pending", BigInteger, nullable=False, server_default=text("0")),
    Column("leased", BigInteger, nullable=False, server_default=text("0")),
    Column("done", BigInteger, nullable=False, server_default=text("0")),
    Column("quarantined", BigInteger, nullable=False, server_default=text("0")),
    Column("live_leases", BigInteger, nullable=False, server_default=text("0")),
    Column("records_out", BigInteger, nullable=False, server_default=text("0")),
    Column("units", BigInteger, nullable=False, server_default=text("0")),
    Column("generation", Integer, nullable=False, server_default=text("0")),
    Column("reason", Text, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("template", Text),
    Index("ix_jobs_state", "state"),
    Index("ix_jobs_name", "name", "created_at"),
    Index("ix_jobs_created", "created_at", "id"),
)

SPANS = Table(
    "spans",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("end", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("length", BigInteger, Computed('"end" - start', persisted=True), nullable=False),
    CheckConstraint('start >= 0 AND "end" > start', name="range"),
    sqlite_with_rowid=False,
)
_PENDING = text("state = 'pending'")
Index(
    "ix_spans_largest_pending",
    SPANS.c.job,
    SPANS.c.length.desc(),
    SPANS.c.start,
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)

LEASES = Table(
    "leases",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("job", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("machine", Text, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("renewed_at", Double, nullable=False),
    Column("expected_s", Double, nullable=False),
    Column("state", Text, nullable=False),
    sqlite_with_rowid=False,
)
# Leases are kept for ever; only the live ones are looked for by anything but their id.
_LIVE = text("state = 'live'")
for _name, _columns in {
    "ix_leases_live_deadline": ("deadline", "id"),
    "ix_leases_live_machine": ("machine", "job", "start", "id"),
    "ix_leases_live_job": ("job", "start", "id"),
}.items():
    Index(
        _name,
        *(LEASES.c[column] for column in _columns),
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )

PARTS = Table(
    "parts",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("end", BigInteger, nullable=False),
    Column("lease_id", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("bundle", Text),
    Column("records_out", BigInteger, nullable=False),
    Column("compute_s", Double, nullable=False),
    Column("committed_at", Double, nullable=False),
    Column("gaps", Text, nullable=False),
    Column("blocks", Text, nullable=False),
    Index("uq_parts_lease_id", "lease_id", unique=True),
    sqlite_with_rowid=False,
)
_RETRIED = text("generation > 0")
Index(
    "ix_parts_retried",
    PARTS.c.job,
    PARTS.c.start,
    PARTS.c.generation,
    sqlite_where=_RETRIED,
    postgresql_where=_RETRIED,
)

QUARANTINE = Table(
    "quarantine",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("record", BigInteger, primary_key=True, autoincrement=False),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("raw_cut", Boolean, nullable=False),
    Column("machine", Text, nullable=False),
    Column("at", Double, nullable=False),
)

DATASETS = Table(
    "datasets",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("layout", Text, nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("raw_bytes", BigInteger, nullable=False),
    Column("blocks", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    # The distinct `columns` of its blocks; dataset_blocks.columns is an index into this list.
    Column("column_lists", Text, nullable=False),
)

DATASET_BLOCKS = Table(
    "dataset_blocks",
    METADATA,
    Column("dataset", Text, primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("sha256", Text, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("raw_bytes", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("columns", Integer),
    sqlite_with_rowid=False,
)

MACHINES = Table(
    "machines",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("token_hash", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("facts", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("last_seen", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("host", Text),
    Column("status", Text, nullable=False, server_default=text("'{}'")),
    Column("stats", Text, nullable=False, server_default=text("'{}'")),
    Column("drain", Boolean, nullable=False, server_default=false()),
    Column("cloned_from", Text),
    Index("ix_machines_token_hash", "token_hash"),
    Index("ix_machines_host", "host", "id"),
)

JOIN_CODES = Table(
    "join_codes",
    METADATA,
    Column("code_hash", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("host", Text),
)

IMAGES = Table(
    "images",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("pushed_by", Text, nullable=False),
    Column("rollout", Text, nullable=False),
    Index("uq_images_version", "version", unique=True),
)

# Which objects desktops may read: the pieces of images.
IMAGE_CHUNKS = Table(
    "image_chunks",
    METADATA,
    Column("sha256", Text, primary_key=True),
    Column("image", Text, primary_key=True),
    sqlite_with_rowid=False,
)

IMAGE_USES = Table(
    "image_uses",
    METADATA,
    Column("image", Text, primary_key=True),
    Column("machine", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("text", Text, nullable=False),
    Column("done_bytes", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("pushed_by", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("file_name", Text, nullable=False, server_default=text("''")),
    Column("gone", Boolean, nullable=False, server_default=false()),
    Index("ix_versions_digest", "digest"),
    sqlite_with_rowid=False,
)

ARCHIVES = Table(
    "archives",
    METADATA,
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("raw_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

DELTAS = Table(
    "deltas",
    METADATA,
    Column("new", Text, primary_key=True),
    Column("old", Text, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

JOB_PINS = Table(
    "job_pins",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("pin", Integer, primary_key=True, autoincrement=False),
    Column("bundle", Text),
    Column("code_version", Integer),
    Column("data", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("why", Text, nullable=False),
    sqlite_with_rowid=False,
)

# Every archive that any pin of a job names: what its workers may read, and what must be kept.
JOB_ARCHIVES = Table(
    "job_archives",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("archive", Text, primary_key=True),
    Index("ix_job_archives_archive", "archive"),
    sqlite_with_rowid=False,
)

DELIVERIES = Table(
    "deliveries",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_deliveries_state", "state"),
    sqlite_with_rowid=False,
)

RATES = Table(
    "rates",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("machine", Text, primary_key=True),
    Column("records_per_s", Double, nullable=False),
    Column("last_size", BigInteger, nullable=False),
    Column("last_end", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

EVENTS = Table(
    "events",
    METADATA,
    Column("n", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Double, nullable=False),
    Column("subject", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Index("ix_events_subject", "subject", "n"),
)

SETTINGS = Table(
    "settings",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
