"""Worker images and who runs them; which machine a copied worker is a copy of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("machines", recreate="always") as machines:
        machines.add_column(sa.Column("cloned_from", sa.Text(), nullable=True))
    op.create_table(
        "images",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("pushed_by", sa.Text(), nullable=False),
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
    )
    op.create_index("uq_images_version", "images", ["version"], unique=True)
    op.create_table(
        "image_chunks",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", "image", name="pk_image_chunks"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "image_uses",
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("done_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("image", "machine", name="pk_image_uses"),
        sqlite_with_rowid=False,
    )
