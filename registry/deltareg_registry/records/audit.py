"""The audit log: who changed what, when, from where. It is written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, exists, insert, select

from deltareg_registry.access.principal import Principal
from deltareg_registry.database import now
from deltareg_registry.database.tables import audit, namespaces

__all__ = ["AuditQuery", "Recorded", "find_records", "record"]


@dataclass(frozen=True)
class Recorded:
    """One change of the past."""

    id: int
    time: str
    actor: str | None
    token: str | None
    address: str | None
    action: str
    namespace: str | None
    subject: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class AuditQuery:
    """Which changes are wanted; None: whichever. Times are those of the tables."""

    namespaces: Collection[str] | None = None
    before_made: bool = True
    """Also what concerns namespaces of the same names that were removed, and may have belonged to others."""
    actor: str | None = None
    action: str | None = None
    since: str | None = None
    until: str | None = None
    before: int | None = None
    """The id of the last one that is known already."""
    limit: int = 100


def record(
    connection: Connection,
    principal: Principal,
    action: str,
    subject: str,
    *,
    namespace: str | None = None,
    address: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Note that `principal` did `action`, such as `version.publish`, to `subject`."""
    connection.execute(
        insert(audit).values(
            time=now(),
            actor=principal.user,
            token=principal.token,
            address=address,
            action=action,
            namespace=namespace,
            subject=subject,
            detail=dict(detail or {}),
        )
    )


def find_records(connection: Connection, query: AuditQuery) -> list[Recorded]:
    """The changes that a query asks for, the latest first."""
    table = audit.c
    wanted = select(audit).order_by(table.id.desc()).limit(query.limit)
    for column, value in ((table.actor, query.actor), (table.action, query.action)):
        if value is not None:
            wanted = wanted.where(column == value)
    if query.namespaces is not None:
        wanted = wanted.where(table.namespace.in_(sorted(query.namespaces)))
    if not query.before_made:
        made = (namespaces.c.name == table.namespace, namespaces.c.created <= table.time)
        wanted = wanted.where(exists().where(*made))
    if query.since is not None:
        wanted = wanted.where(table.time >= query.since)
    if query.until is not None:
        wanted = wanted.where(table.time < query.until)
    if query.before is not None:
        wanted = wanted.where(table.id < query.before)
    return [Recorded(**row) for row in connection.execute(wanted).mappings()]
