"""What a principal may read, as a condition of SQL."""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_, select, true

from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.database.tables import namespaces

__all__ = ["readable"]


def readable(principal: Principal, namespace: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether `principal` may read the namespace that a column names."""
    if principal.admin and (principal.scopes is None or any(scope.namespace == "*" for scope in principal.scopes)):
        return true()
    asked = {scope.namespace for scope in principal.scopes or ()} if principal.admin else set(principal.roles)
    own = sorted(name for name in asked if principal.role_in(name, public=False) >= Role.READER)
    # One list: the database looks into it for each row that it considers.
    wanted = or_(namespaces.c.public, namespaces.c.name.in_(own)) if own else namespaces.c.public
    return namespace.in_(select(namespaces.c.name).where(wanted))
