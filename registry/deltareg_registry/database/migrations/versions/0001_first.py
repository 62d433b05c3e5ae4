"""The first tables."""

from __future__ import annotations

from alembic import op

from deltareg_registry.database.tables import metadata
from deltareg_registry.database.triggers import FULLTEXT, REVISIONS

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    connection = op.get_bind()
    metadata.create_all(connection)
    for statement in (*FULLTEXT[connection.dialect.name], *REVISIONS[connection.dialect.name]):
        op.execute(statement)
