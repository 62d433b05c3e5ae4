"""Alembic runs this to bring a database up to date; `Database.upgrade` gives the connection."""

from __future__ import annotations

from alembic import context

from deltareg_registry.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot change a table in place.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
