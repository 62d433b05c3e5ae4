"""Which blobs there are, and in which repositories they may be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select, update

from deltareg.digest import Digest
from deltareg_registry.database import now
from deltareg_registry.database.tables import blobs, repository_blobs
from deltareg_registry.records.namespaces import insert_if_absent
from deltareg_registry.records.quotas import check_quota

__all__ = ["add_blob", "sizes_of", "touch"]

# Databases take only so many parameters in one statement.
_BATCH = 500


def add_blob(connection: Connection, repository: int, digest: Digest, size: int) -> None:
    """Note that a blob is in the storage, and that a repository has it.

    Raises QuotaExceeded where the repository's namespace has no room for it.
    """
    time = now()
    insert_if_absent(connection, blobs, {"digest": digest, "size": size, "created": time, "touched": time})
    connection.execute(update(blobs).where(blobs.c.digest == digest).values(touched=time))
    if insert_if_absent(connection, repository_blobs, {"repository": repository, "digest": digest}):
        check_quota(connection, repository)


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
        connection.execute(update(blobs).where(blobs.c.digest.in_(wanted[start : start + _BATCH])).values(touched=time))
