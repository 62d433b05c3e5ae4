"""Who is known to the registry."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from deltareg.errors import BadName, Conflict, NotFound
from deltareg.names import parse_reference
from deltareg_registry.access.principal import Principal
from deltareg_registry.database import now
from deltareg_registry.database.tables import users
from deltareg_registry.records.audit import record
from deltareg_registry.records.namespaces import insert_if_absent

__all__ = ["User", "add_user", "change_user", "list_users", "user_named"]


@dataclass(frozen=True)
class User:
    """A user as the tables have one."""

    name: str
    admin: bool
    created: str
    disabled: str | None


def list_users(connection: Connection, *, after: str = "", limit: int | None = None) -> list[User]:
    """The users by name, those that come behind `after`."""
    wanted = select(users).where(users.c.name > after).order_by(users.c.name).limit(limit)
    return [User(row.name, row.admin, row.created, row.disabled) for row in connection.execute(wanted)]


def user_named(connection: Connection, name: str) -> User:
    """A user. Raises NotFound."""
    row = connection.execute(select(users).where(users.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no user {name}", hint="deltareg-registry admin user list --data DIR")
    return User(row.name, row.admin, row.created, row.disabled)


def add_user(
    connection: Connection, principal: Principal, name: str, *, admin: bool = False, address: str | None = None
) -> User:
    """Make a user, who cannot do anything before a token is made for them. Raises BadName, Conflict."""
    try:
        parse_reference(f"{name}/x")
    except BadName as error:
        raise BadName(
            f"{name[:80]!r} cannot be the name of a user",
            cause=error.cause,
            hint="write lower-case letters and digits, single '.', '_' or '-' between them",
        ) from error
    if not insert_if_absent(connection, users, {"name": name, "admin": admin, "created": now()}):
        raise Conflict(f"there is a user {name} already")
    record(connection, principal, "user.create", name, address=address, detail={"admin": admin})
    return user_named(connection, name)


def change_user(
    connection: Connection,
    principal: Principal,
    name: str,
    *,
    admin: bool | None = None,
    disabled: bool | None = None,
    address: str | None = None,
) -> User:
    """Make a user an administrator or none, shut them out or let them in again.

    Raises NotFound; Conflict where nobody would be left who rules the registry.
    """
    # All administrators are locked, so that two of them do not take each other's right at once.
    connection.execute(select(users.c.name).where(users.c.admin).order_by(users.c.name).with_for_update())
    before = user_named(connection, name)
    if before.admin and before.disabled is None and (admin is False or disabled):
        others = (users.c.admin, users.c.disabled.is_(None), users.c.name != name)
        if connection.execute(select(func.count()).where(*others)).scalar_one() == 0:
            raise Conflict(f"{name} is the last administrator", hint="make somebody else an administrator first")
    changes: dict[str, object] = {}
    if admin is not None and admin != before.admin:
        changes["admin"] = admin
    if disabled is not None and disabled != (before.disabled is not None):
        changes["disabled"] = now() if disabled else None
    if changes:
        connection.execute(update(users).where(users.c.name == name).values(changes))
        record(connection, principal, "user.change", name, address=address, detail=changes)
    return user_named(connection, name)
