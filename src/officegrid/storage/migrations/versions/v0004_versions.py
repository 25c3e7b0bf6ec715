"""Versions of code and data, what each job pinned, and output on its way into tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("pushed_by", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.Column("gone", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("kind", "name", "n", name="pk_versions"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_table(
        "archives",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("raw_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_archives"),
    )
    op.create_table(
        "deltas",
        sa.Column("new", sa.Text(), nullable=False),
        sa.Column("old", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("new", "old", name="pk_deltas"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_pins",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("pin", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("bundle", sa.Text(), nullable=True),
        sa.Column("code_version", sa.Integer(), nullable=True),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job", "pin", name="pk_job_pins"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job_archives",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("archive", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job", "archive", name="pk_job_archives"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_archives_archive", "job_archives", ["archive"])
    op.create_table(
        "deliveries",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job", "generation", name="pk_deliveries"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_deliveries_state", "deliveries", ["state"])
    # Jobs of before have run one version all along.
    op.execute(
        "INSERT INTO job_pins (job, pin, bundle, data, at, why) "
        "SELECT id, 0, bundle, '{}', created_at, 'as submitted' FROM jobs"
    )
    op.execute(
        "INSERT INTO job_archives (job, archive) "
        "SELECT id, bundle FROM jobs WHERE bundle IS NOT NULL"
    )
