"""Who belongs to a namespace."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from deltareg.errors import Conflict, NotFound
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.database import now
from deltareg_registry.database.tables import members
from deltareg_registry.records.audit import record
from deltareg_registry.records.namespaces import insert_if_absent, lock_namespace
from deltareg_registry.records.users import user_named

__all__ = ["Member", "list_members", "remove_member", "set_member"]

_NAMED = 10


@dataclass(frozen=True)
class Member:
    """A user's role in a namespace."""

    user: str
    role: str
    since: str


def list_members(connection: Connection, namespace: str) -> list[Member]:
    """The members of a namespace, by name."""
    wanted = select(members.c.user, members.c.role, members.c.since).where(members.c.namespace == namespace)
    return [Member(row.user, row.role, row.since) for row in connection.execute(wanted.order_by(members.c.user))]


def set_member(
    connection: Connection, principal: Principal, namespace: str, user: str, role: Role, *, address: str | None = None
) -> Member:
    """Give a user a role in a namespace, instead of the one that they have.

    Raises NotFound; Conflict where the namespace would have no owner.
    """
    lock_namespace(connection, namespace)
    user_named(connection, user)
    before = _role(connection, namespace, user)
    if before == Role.OWNER.label and role is not Role.OWNER:
        _check_owners(connection, namespace, user)
    values = {"namespace": namespace, "user": user, "role": role.label, "since": now()}
    if not insert_if_absent(connection, members, values):
        connection.execute(update(members).where(*_one(namespace, user)).values(role=role.label))
    if before != role.label:
        detail = {"role": role.label, "before": before}
        record(connection, principal, "member.set", user, namespace=namespace, address=address, detail=detail)
    return next(member for member in list_members(connection, namespace) if member.user == user)


def remove_member(
    connection: Connection, principal: Principal, namespace: str, user: str, *, address: str | None = None
) -> None:
    """Take a user's role in a namespace away. Raises NotFound; Conflict for its last owner."""
    lock_namespace(connection, namespace)
    before = _role(connection, namespace, user)
    if before is None:
        there = [member.user for member in list_members(connection, namespace)]
        more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
        raise NotFound(
            f"{user} is not a member of {namespace}", hint=f"its members are {', '.join(there[:_NAMED])}{more}"
        )
    if before == Role.OWNER.label:
        _check_owners(connection, namespace, user)
    connection.execute(delete(members).where(*_one(namespace, user)))
    detail = {"role": before}
    record(connection, principal, "member.remove", user, namespace=namespace, address=address, detail=detail)


def _one(namespace: str, user: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return members.c.namespace == namespace, members.c.user == user


def _role(connection: Connection, namespace: str, user: str) -> str | None:
    return connection.execute(select(members.c.role).where(*_one(namespace, user))).scalar_one_or_none()


def _check_owners(connection: Connection, namespace: str, leaving: str) -> None:
    others = (members.c.namespace == namespace, members.c.role == Role.OWNER.label, members.c.user != leaving)
    if connection.execute(select(func.count()).where(*others)).scalar_one() == 0:
        raise Conflict(f"{leaving} is the last owner of {namespace}", hint="make somebody else an owner first")
