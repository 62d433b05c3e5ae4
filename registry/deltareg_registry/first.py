"""The first user of a new registry."""

from __future__ import annotations

from deltareg_registry.access.principal import ANONYMOUS
from deltareg_registry.database import Database, now
from deltareg_registry.database.tables import users
from deltareg_registry.records.audit import record
from deltareg_registry.records.namespaces import insert_if_absent
from deltareg_registry.records.tokens import issue_token

__all__ = ["FIRST_USER", "first_token"]

FIRST_USER = "owner"


def first_token(database: Database) -> str | None:
    """Make the first administrator of a registry that has none yet, and return the token; None where there is one."""
    with database.writing() as connection:
        # Of several processes that start at once, one makes the user.
        if not insert_if_absent(connection, users, {"name": FIRST_USER, "admin": True, "created": now()}):
            return None
        record(connection, ANONYMOUS, "user.create", FIRST_USER, detail={"admin": True})
        _, token = issue_token(connection, ANONYMOUS, FIRST_USER, "first")
    return token
