"""Namespaces and the repositories in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from deltareg.errors import NotFound
from deltareg.names import parse_reference
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.database import now
from deltareg_registry.database.tables import members, namespaces, repositories
from deltareg_registry.records.audit import record

__all__ = [
    "insert_all_if_absent",
    "insert_if_absent",
    "is_public",
    "make_namespace",
    "make_repository",
    "repository_id",
]


def make_namespace(connection: Connection, name: str, principal: Principal, *, public: bool) -> bool:
    """Make a namespace, of which `principal` is an owner; False where it is there already. Raises BadName."""
    parse_reference(f"{name}/x")
    made = insert_if_absent(connection, namespaces, {"name": name, "public": public, "created": now(), "policy": {}})
    if made:
        if principal.user is not None:
            insert_if_absent(
                connection,
                members,
                {"namespace": name, "user": principal.user, "role": Role.OWNER.label, "since": now()},
            )
        record(connection, principal, "namespace.create", name, namespace=name)
    return made


def is_public(connection: Connection, namespace: str) -> bool | None:
    """Whether everybody may read a namespace; None where it does not exist."""
    return connection.execute(select(namespaces.c.public).where(namespaces.c.name == namespace)).scalar_one_or_none()


def repository_id(connection: Connection, namespace: str, name: str) -> int:
    """The number of a repository. Raises NotFound."""
    found = _find(connection, namespace, name)
    if found is None:
        raise NotFound(f"{namespace}/{name} is not in the registry", hint="deltareg search --remote URL")
    return found


def make_repository(connection: Connection, namespace: str, name: str) -> int:
    """The number of a repository, which is made where it is absent."""
    found = _find(connection, namespace, name)
    if found is None:
        insert_if_absent(connection, repositories, {"namespace": namespace, "name": name, "created": now()})
        found = _find(connection, namespace, name)
    assert found is not None
    return found


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, object]) -> bool:
    """Put in a row unless one with its key is there, another process's just now too; whether it was put in."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(dict(values)).on_conflict_do_nothing()
    # SQLAlchemy keeps the number of rows of an INSERT only where it is told to; SQLite's is there anyway.
    done = connection.execute(statement, execution_options={"preserve_rowcount": True})
    return done.rowcount > 0


def insert_all_if_absent(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Put in those rows whose keys are not there."""
    if rows:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), [dict(row) for row in rows])


def _find(connection: Connection, namespace: str, name: str) -> int | None:
    where = (repositories.c.namespace == namespace, repositories.c.name == name)
    return connection.execute(select(repositories.c.id).where(*where)).scalar_one_or_none()
