"""Which blobs there are, and in which repositories they may be read.

Those that the collector has condemned are not there: `add_blob` alone, once their bytes are, makes them whole again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, delete, select, update

from deltareg.digest import Digest
from deltareg.errors import NotFound
from deltareg_registry.database import now
from deltareg_registry.database.tables import CONDEMNED, blobs, repository_blobs
from deltareg_registry.records.namespaces import insert_if_absent
from deltareg_registry.records.quotas import check_room, lock_quota

__all__ = [
    "add_blob",
    "blob_of",
    "keep_a_while",
    "make_way",
    "mount_blob",
    "sizes_of",
    "touch",
    "unlink_blob",
]

# Databases take only so many parameters in one statement.
_BATCH = 500
_THERE = blobs.c.touched != CONDEMNED


def add_blob(connection: Connection, repository: int, digest: Digest, size: int) -> None:
    """Note that a blob is in the storage, and that a repository has it. Its namespace has room: see `quotas`."""
    time = now()
    row = {"digest": digest, "size": size, "created": time, "touched": time}
    kept = update(blobs).where(blobs.c.digest == digest).values(touched=time)
    # A row that is there and held by a collector is gone once that has ended.
    while not insert_if_absent(connection, blobs, row) and connection.execute(kept).rowcount == 0:
        pass
    insert_if_absent(connection, repository_blobs, {"repository": repository, "digest": digest})


def sizes_of(
    connection: Connection, repository: int, digests: Iterable[Digest], *, hold: bool = False
) -> Mapping[Digest, int]:
    """The sizes of those of `digests` that a repository has; with `hold` they stay until the transaction ends."""
    found: dict[Digest, int] = {}
    wanted = list(digests)
    for start in range(0, len(wanted), _BATCH):
        query = (
            select(blobs.c.digest, blobs.c.size)
            .join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
            .where(repository_blobs.c.repository == repository, blobs.c.digest.in_(wanted[start : start + _BATCH]))
            .where(_THERE)
        )
        # Locked against the collector alone: others may name the same blobs at the same time.
        rows = connection.execute(query.with_for_update(read=True, of=blobs) if hold else query)
        found.update({Digest(row.digest): row.size for row in rows})
    return found


def touch(connection: Connection, digests: Iterable[Digest]) -> None:
    """Keep blobs from being collected for the grace period from now on."""
    wanted = sorted(digests)
    time = now()
    for start in range(0, len(wanted), _BATCH):
        some = blobs.c.digest.in_(wanted[start : start + _BATCH])
        connection.execute(update(blobs).where(some, _THERE).values(touched=time))


def blob_of(connection: Connection, repository: int, digest: Digest) -> tuple[int, str]:
    """The size of a blob of a repository, and when it was touched. Raises NotFound."""
    row = connection.execute(
        select(blobs.c.size, blobs.c.touched)
        .join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
        .where(repository_blobs.c.repository == repository, blobs.c.digest == digest, _THERE)
    ).one_or_none()
    if row is None:
        raise NotFound(f"the repository has no blob {digest}", hint="push it, or check the digest")
    return row.size, row.touched


def keep_a_while(connection: Connection, digest: Digest) -> bool:
    """Keep the collector from a blob that is about to be used; False where there is no such blob.

    The collector looks at the time again before it removes one.
    """
    kept = update(blobs).where(blobs.c.digest == digest, _THERE).values(touched=now())
    return connection.execute(kept).rowcount > 0


def make_way(connection: Connection, digest: Digest) -> None:
    """Take a condemned blob out of the collector's hands before its bytes are put down anew: nothing tells of it then.

    Where the collector is removing it, that is waited for.
    """
    condemned = select(blobs.c.digest).where(blobs.c.digest == digest, ~_THERE).with_for_update()
    if connection.execute(condemned).first() is not None:
        connection.execute(delete(repository_blobs).where(repository_blobs.c.digest == digest))
        connection.execute(delete(blobs).where(blobs.c.digest == digest))


def mount_blob(connection: Connection, source: int, target: int, namespace: str, digest: Digest) -> bool:
    """Let a repository of a namespace have a blob of another one; False where that one lacks it.

    Raises QuotaExceeded.
    """
    # The row is locked before it is read: a collector that removes it ends first.
    size = sizes_of(connection, source, [digest]).get(digest) if keep_a_while(connection, digest) else None
    if size is None:
        return False
    lock_quota(connection, namespace)
    check_room(connection, namespace, digest, size)
    add_blob(connection, target, digest, size)
    return True


def unlink_blob(connection: Connection, repository: int, digest: Digest) -> None:
    """Take a blob away from a repository. Raises NotFound."""
    where = (repository_blobs.c.repository == repository, repository_blobs.c.digest == digest)
    if connection.execute(delete(repository_blobs).where(*where)).rowcount == 0:
        raise NotFound(f"the repository has no blob {digest}")
