"""The audit log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from deltareg.errors import NotAllowed
from deltareg.manifest import Document
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.api.asking import PROBLEMS, Asking, problems
from deltareg_registry.api.bodies import bounded
from deltareg_registry.api.documents import DOCUMENT_LIMIT, Limit, NamespaceQuery, Shown, TimeQuery, WordQuery
from deltareg_registry.database import parse_time
from deltareg_registry.records.audit import AuditQuery, Recorded, find_records
from deltareg_registry.state import state_of

__all__ = ["audit_router"]

audit_router = APIRouter(
    prefix="/api/v1/audit",
    tags=["audit"],
    responses=PROBLEMS | problems(413),
    route_class=bounded(DOCUMENT_LIMIT),
)


class AuditRecord(Document):
    """One change: who did what, when, from where."""

    id: int
    time: str
    actor: str | None = Field(description="the user; null: the server itself, or its operator")
    token: str | None = Field(description="the id of the token")
    address: str | None
    action: str = Field(description="such as version.publish")
    namespace: str | None
    subject: str = Field(description="what it was done to")
    detail: dict[str, Any]


class AuditPage(Shown):
    """A page of the audit log, the latest first."""

    records: list[AuditRecord]


@audit_router.get("")
def audit_log(
    request: Request,
    asking: Asking,
    namespace: NamespaceQuery = None,
    actor: WordQuery = None,
    action: WordQuery = None,
    since: TimeQuery = None,
    until: TimeQuery = None,
    cursor: Annotated[str | None, Query(pattern="^[0-9]{1,18}$")] = None,
    limit: Limit = 100,
) -> AuditPage:
    """What was changed: everything for administrators, for others what concerns the namespaces that they own."""
    query = AuditQuery(
        namespaces=_namespaces(asking, namespace),
        before_made=asking.admin and asking.unlimited,
        actor=actor,
        action=action,
        since=None if since is None else parse_time(since),
        until=None if until is None else parse_time(until),
        before=None if cursor is None else int(cursor),
        limit=limit + 1,
    )
    with state_of(request).database.reading() as connection:
        found = find_records(connection, query)
    page = [_record(one) for one in found[:limit]]
    return AuditPage(records=page, cursor=str(page[-1].id) if len(found) > limit else None)


def _namespaces(asking: Principal, namespace: str | None) -> list[str] | None:
    if asking.admin and asking.unlimited:
        return None if namespace is None else [namespace]
    owned = [name for name in asking.roles if asking.role_in(name, public=False) is Role.OWNER]
    wanted = owned if namespace is None else [name for name in owned if name == namespace]
    if not wanted:
        raise NotAllowed("the audit log is for owners and administrators", hint="ask one of them")
    return wanted


def _record(one: Recorded) -> AuditRecord:
    return AuditRecord(
        id=one.id,
        time=one.time,
        actor=one.actor,
        token=one.token,
        address=one.address,
        action=one.action,
        namespace=one.namespace,
        subject=one.subject,
        detail=one.detail,
    )
