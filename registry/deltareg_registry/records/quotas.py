"""How many bytes a namespace holds, and how many it may."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from deltareg.errors import QuotaExceeded
from deltareg_registry.database.tables import blobs, namespaces, repositories, repository_blobs

__all__ = ["check_quota", "check_room", "used_bytes"]


def used_bytes(connection: Connection, namespace: str) -> int:
    """The bytes of all blobs of a namespace's repositories, each blob counted once."""
    digests = (
        select(repository_blobs.c.digest)
        .join(repositories, repositories.c.id == repository_blobs.c.repository)
        .where(repositories.c.namespace == namespace)
    )
    total = select(func.coalesce(func.sum(blobs.c.size), 0)).where(blobs.c.digest.in_(digests))
    return int(connection.execute(total).scalar_one())


def check_room(connection: Connection, namespace: str, size: int) -> None:
    """Raise QuotaExceeded where `size` bytes more would be too many; asked before they are sent."""
    quota = connection.execute(select(namespaces.c.quota).where(namespaces.c.name == namespace)).scalar_one_or_none()
    if quota is not None:
        _check(namespace, used_bytes(connection, namespace) + size, quota)


def check_quota(connection: Connection, repository: int) -> None:
    """Raise QuotaExceeded where the namespace of a repository holds too much, which undoes the transaction."""
    row = connection.execute(
        # Locked, so that two uploads at once do not each count without the other.
        select(namespaces.c.name, namespaces.c.quota)
        .join(repositories, repositories.c.namespace == namespaces.c.name)
        .where(repositories.c.id == repository, namespaces.c.quota.is_not(None))
        .with_for_update(of=namespaces)
    ).one_or_none()
    if row is not None:
        _check(row.name, used_bytes(connection, row.name), row.quota)


def _check(namespace: str, total: int, quota: int) -> None:
    if total > quota:
        raise QuotaExceeded(
            f"{namespace} may hold {quota} bytes; these would make {total}",
            hint=f"remove versions of {namespace}, or ask an administrator for a larger quota",
            quota=quota,
            needed=total,
        )
