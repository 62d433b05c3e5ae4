"""The audit log: who changed what, when, from where. It is written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, insert

from deltareg_registry.access.principal import Principal
from deltareg_registry.database import now
from deltareg_registry.database.tables import audit

__all__ = ["record"]


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
