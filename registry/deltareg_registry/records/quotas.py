"""How many bytes a namespace holds, and how many it may.

Whoever adds a blob calls `lock_quota`, and then `check_room`: two uploads at once would each count without the other.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from deltareg.digest import Digest
from deltareg.errors import QuotaExceeded
from deltareg_registry.database.tables import blobs, namespaces, repositories, repository_blobs

__all__ = ["check_room", "lock_quota", "room_of", "used_bytes"]


def used_bytes(connection: Connection, namespace: str) -> int:
    """The bytes of all blobs of a namespace's repositories, each blob counted once."""
    digests = (
        select(repository_blobs.c.digest)
        .join(repositories, repositories.c.id == repository_blobs.c.repository)
        .where(repositories.c.namespace == namespace)
    )
    total = select(func.coalesce(func.sum(blobs.c.size), 0)).where(blobs.c.digest.in_(digests))
    return int(connection.execute(total).scalar_one())


def check_room(connection: Connection, namespace: str, digest: Digest | None, size: int) -> None:
    """Raise QuotaExceeded where a namespace has no room for a blob of `size` bytes, and does not have it already."""
    room = room_of(connection, namespace, digest)
    if room is not None and size > room:
        raise QuotaExceeded(
            f"{namespace} has room for {max(0, room)} more bytes, not for {size}",
            hint="ask an administrator of the registry for a larger quota",
            room=max(0, room),
        )


def lock_quota(connection: Connection, namespace: str) -> None:
    """Let one transaction at a time use up a namespace's quota, if it has one."""
    where = (namespaces.c.name == namespace, namespaces.c.quota.is_not(None))
    connection.execute(select(namespaces.c.name).where(*where).with_for_update())


def room_of(connection: Connection, namespace: str, digest: Digest | None) -> int | None:
    """How many bytes may be added to a namespace; None for any number, and for a blob that it has already."""
    wanted = select(namespaces.c.quota).where(namespaces.c.name == namespace)
    quota = connection.execute(wanted).scalar_one_or_none()
    if quota is None or (digest is not None and _has(connection, namespace, digest)):
        return None
    return quota - used_bytes(connection, namespace)


def _has(connection: Connection, namespace: str, digest: Digest) -> bool:
    wanted = (
        select(repository_blobs.c.digest)
        .join(repositories, repositories.c.id == repository_blobs.c.repository)
        .where(repositories.c.namespace == namespace, repository_blobs.c.digest == digest)
        .limit(1)
    )
    return connection.execute(wanted).first() is not None
