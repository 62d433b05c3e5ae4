"""Namespaces and the repositories in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from deltareg.errors import Conflict, NotFound
from deltareg.names import parse_reference
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.database import now
from deltareg_registry.database.tables import (
    manifests,
    members,
    namespaces,
    removed,
    repositories,
    tags,
    versions,
)
from deltareg_registry.records.audit import record
from deltareg_registry.records.readable import readable

__all__ = [
    "Namespace",
    "change_namespace",
    "delete_namespace",
    "find_namespace",
    "insert_all_if_absent",
    "insert_if_absent",
    "is_public",
    "list_namespaces",
    "lock_namespace",
    "lock_repository",
    "locked_repository",
    "make_namespace",
    "make_repository",
    "namespace_named",
    "readable_names",
    "repository_id",
]


@dataclass(frozen=True)
class Namespace:
    """A namespace as the tables have it."""

    name: str
    public: bool
    created: str
    quota: int | None
    policy: Mapping[str, Any]


def make_namespace(
    connection: Connection,
    name: str,
    principal: Principal,
    *,
    public: bool,
    owner: str | None = None,
    address: str | None = None,
) -> bool:
    """Make a namespace, owned by `owner` or else by `principal`; False where it is there already. Raises BadName."""
    parse_reference(f"{name}/x")
    made = insert_if_absent(connection, namespaces, {"name": name, "public": public, "created": now(), "policy": {}})
    if made:
        user = owner or principal.user
        if user is not None:
            values = {"namespace": name, "user": user, "role": Role.OWNER.label, "since": now()}
            insert_if_absent(connection, members, values)
        record(connection, principal, "namespace.create", name, namespace=name, address=address)
    return made


def list_namespaces(connection: Connection, principal: Principal, *, after: str, limit: int) -> list[Namespace]:
    """The namespaces that somebody may read, by name, those that come behind `after`."""
    wanted = select(namespaces).where(namespaces.c.name > after, readable(principal, namespaces.c.name))
    return [_namespace(row) for row in connection.execute(wanted.order_by(namespaces.c.name).limit(limit))]


def readable_names(principal: Principal) -> Select[Any]:
    """The names of the namespaces that somebody may read."""
    return select(namespaces.c.name).where(readable(principal, namespaces.c.name))


def namespace_named(connection: Connection, name: str) -> Namespace:
    """A namespace. Raises NotFound."""
    found = find_namespace(connection, name)
    if found is None:
        raise _unknown(name)
    return found


def find_namespace(connection: Connection, name: str) -> Namespace | None:
    """A namespace; None where there is none of that name."""
    row = connection.execute(select(namespaces).where(namespaces.c.name == name)).one_or_none()
    return None if row is None else _namespace(row)


def lock_namespace(connection: Connection, name: str) -> None:
    """Let others that change what belongs to a namespace wait until this transaction ends. Raises NotFound."""
    # In SQLite the transaction itself sees to that.
    found = select(namespaces.c.name).where(namespaces.c.name == name).with_for_update()
    if connection.execute(found).one_or_none() is None:
        raise _unknown(name)


def change_namespace(
    connection: Connection,
    principal: Principal,
    name: str,
    changes: Mapping[str, object],
    *,
    address: str | None = None,
) -> Namespace:
    """Change columns of a namespace: public, quota, policy. Raises NotFound."""
    lock_namespace(connection, name)
    if changes:
        connection.execute(update(namespaces).where(namespaces.c.name == name).values(dict(changes)))
        record(connection, principal, "namespace.change", name, namespace=name, address=address, detail=changes)
    return namespace_named(connection, name)


def delete_namespace(connection: Connection, principal: Principal, name: str, *, address: str | None = None) -> None:
    """Remove a namespace that is empty, with its members and webhooks. Raises NotFound, Conflict."""
    lock_namespace(connection, name)
    inside = select(repositories.c.id).where(repositories.c.namespace == name)
    tables = ((versions, "versions"), (manifests, "manifests"), (tags, "tags"), (removed, "removed versions"))
    for table, what in tables:
        if connection.execute(select(exists().where(table.c.repository.in_(inside)))).scalar_one():
            raise Conflict(
                f"{name} is not empty: it has {what}",
                cause="a removed version's name is never free for other bytes" if table is removed else None,
                hint="remove the versions first" if table is not removed else None,
            )
    connection.execute(delete(repositories).where(repositories.c.namespace == name))
    connection.execute(delete(namespaces).where(namespaces.c.name == name))
    record(connection, principal, "namespace.delete", name, namespace=name, address=address)


def is_public(connection: Connection, namespace: str) -> bool | None:
    """Whether everybody may read a namespace; None where it does not exist."""
    return connection.execute(select(namespaces.c.public).where(namespaces.c.name == namespace)).scalar_one_or_none()


def repository_id(connection: Connection, namespace: str, name: str) -> int:
    """The number of a repository. Raises NotFound."""
    found = _find(connection, namespace, name)
    if found is None:
        raise NotFound(f"{namespace}/{name} is not in the registry", hint="deltareg search --remote URL")
    return found


def locked_repository(connection: Connection, namespace: str, name: str) -> int:
    """The number of a repository, of which nobody else changes a name until the transaction ends. Raises NotFound."""
    found = repository_id(connection, namespace, name)
    lock_repository(connection, found)
    return found


def lock_repository(connection: Connection, repository: int) -> None:
    """Let one transaction at a time change the names of a repository; in SQLite there is only one anyway."""
    connection.execute(select(repositories.c.id).where(repositories.c.id == repository).with_for_update())


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
    adding = dialect.insert(table).values(dict(values)).on_conflict_do_nothing()
    # Not by the count of rows: of an INSERT, psycopg does not always tell it.
    return connection.execute(adding.returning(*table.primary_key.columns)).first() is not None


def insert_all_if_absent(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Put in those rows whose keys are not there."""
    if rows:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(dialect.insert(table).on_conflict_do_nothing(), [dict(row) for row in rows])


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no namespace {name}", hint="deltareg-registry admin namespace list --data DIR")


def _find(connection: Connection, namespace: str, name: str) -> int | None:
    where = (repositories.c.namespace == namespace, repositories.c.name == name)
    return connection.execute(select(repositories.c.id).where(*where)).scalar_one_or_none()


def _namespace(row: Any) -> Namespace:
    return Namespace(row.name, row.public, row.created, row.quota, row.policy)
