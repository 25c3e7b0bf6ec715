"""Desktops: which agent a worker belongs to, what agents report, and draining."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Rebuilt rather than altered, so that the tables are those of a new database to the letter.
    with op.batch_alter_table("machines", recreate="always") as machines:
        machines.add_column(sa.Column("host", sa.Text(), nullable=True))
        machines.add_column(
            sa.Column("status", sa.Text(), nullable=False, server_default=sa.text("'{}'"))
        )
        machines.add_column(
            sa.Column("stats", sa.Text(), nullable=False, server_default=sa.text("'{}'"))
        )
        machines.add_column(
            sa.Column("drain", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        machines.create_index("ix_machines_host", ["host", "id"])
    with op.batch_alter_table("join_codes", recreate="always") as codes:
        codes.add_column(sa.Column("host", sa.Text(), nullable=True))
