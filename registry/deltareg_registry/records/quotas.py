"""How many bytes a namespace holds, and how many it may.

Whoever adds a blob calls `lock_quota`, and then `check_room`: two uploads at once would each count without the other.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from deltareg.digest import Digest
from deltareg.errors import QuotaExceeded
from deltareg_registry.database.tables import blobs, namespaces, repositories, repository_blobs, uploads

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


def check_room(
    connection: Connection, namespace: str, digest: Digest | None, size: int, *, upload: str | None = None
) -> None:
    """Raise QuotaExceeded where a namespace has no room for a blob of `size` bytes, which `upload` sends."""
    room = room_of(connection, namespace, digest, upload=upload)
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


def room_of(connection: Connection, namespace: str, digest: Digest | None, *, upload: str | None = None) -> int | None:
    """How many bytes a blob may have that comes to a namespace by `upload`; None for any number.

    Uploads that are open count, but for this one: nobody has to end what they began. A blob that the namespace has
    already may come again, also where it holds more than it may.
    """
    wanted = select(namespaces.c.quota).where(namespaces.c.name == namespace)
    quota = connection.execute(wanted).scalar_one_or_none()
    if quota is None:
        return None
    free = quota - used_bytes(connection, namespace)
    size = None if digest is None else _size_of(connection, namespace, digest)
    return (free if size is None else max(0, free) + size) - _open_bytes(connection, namespace, upload)


def _size_of(connection: Connection, namespace: str, digest: Digest) -> int | None:
    """The size of a blob that a namespace has."""
    wanted = (
        select(blobs.c.size)
        .join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
        .join(repositories, repositories.c.id == repository_blobs.c.repository)
        .where(repositories.c.namespace == namespace, blobs.c.digest == digest)
        .limit(1)
    )
    return connection.execute(wanted).scalar_one_or_none()


def _open_bytes(connection: Connection, namespace: str, but: str | None) -> int:
    """The bytes that have arrived of a namespace's open uploads, but for one of them."""
    wanted = (
        select(func.coalesce(func.sum(uploads.c.size), 0))
        .join(repositories, repositories.c.id == uploads.c.repository)
        .where(repositories.c.namespace == namespace)
    )
    if but is not None:
        wanted = wanted.where(uploads.c.id != but)
    return int(connection.execute(wanted).scalar_one())
