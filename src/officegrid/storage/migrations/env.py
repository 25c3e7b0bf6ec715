"""Alembic's entry point. Revisions run on the connection, and in the transaction, of the caller."""

from alembic import context

from officegrid.storage.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
