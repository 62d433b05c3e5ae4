"""Collection while the server runs: blobs that nothing names go, and none that somebody counts on.

A blob that nothing names is condemned first, in a transaction of its own: from then on it is absent to everybody. Then
its row is deleted in the transaction in which its bytes are removed. A collector that is killed in between leaves rows
that are condemned, perhaps without bytes, and the next one goes on with them.

Whoever publishes locks the rows of its blobs before it names them. Whoever sends the same blob meanwhile has touched
its row first, which keeps it for the grace period; where its bytes take longer than that to be put into place, it finds
them gone when it writes the row, and is told to send them again. Where it writes the row first, the blob is not
condemned any more. Files without a row are given one for as long as they are removed. So nobody can meet a blob that is
half gone, whatever the grace period.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, select, update

from deltareg.digest import Digest
from deltareg.errors import InvalidArgument
from deltareg.manifest import Document
from deltareg_registry.database import Database, from_now, now
from deltareg_registry.database.tables import (
    CONDEMNED,
    blobs,
    manifest_blobs,
    manifests,
    repository_blobs,
    tags,
    versions,
)
from deltareg_registry.records.namespaces import insert_if_absent, lock_repository
from deltareg_registry.storage import Storage
from deltareg_registry.upkeep.uploads import remove_expired_uploads

__all__ = ["CollectReport", "collect"]

# Few enough that nobody waits long for a transaction that removes files.
_BATCH = 100
_ORPHAN_FACTOR = 24
_LONGEST = 10 * 365 * 86400


class CollectReport(Document):
    """What was removed, or would be."""

    blobs: int = Field(description="blobs that no manifest names")
    bytes: int
    links: int = Field(description="rights of a repository to a blob that none of its manifests names")
    manifests: int = Field(description="manifests without a name, where they were to be removed too")
    orphans: int = Field(description="files of the storage that no blob is known by")
    uploads: int = Field(description="uploads that nobody continued")
    dry_run: bool


def collect(
    database: Database, storage: Storage, grace: float, *, untagged: bool = False, dry_run: bool = False
) -> CollectReport:
    """Remove blobs that no manifest names, once nobody has sent or asked for them for `grace` seconds.

    With `untagged` the manifests go first that neither a version, a tag, an index nor a subject holds. May run at any
    time, beside pushes and other collections. Raises InvalidArgument for a grace that is negative or above ten years;
    BucketUnavailable, and what the database raises: what was removed until then stays removed, and the registry is
    sound.
    """
    if not 0 <= grace <= _LONGEST:
        raise InvalidArgument(f"the grace period is {grace}; it takes seconds from 0 to {_LONGEST}")
    cutoff = from_now(-grace)
    gone = _manifests(database, cutoff, dry_run=dry_run) if untagged else 0
    links = _links(database, cutoff, dry_run=dry_run)
    count = size = 0
    for some in _batches(database, cutoff):
        with database.reading() if dry_run else database.writing() as connection:
            removed = _still(connection, _unnamed(cutoff), some)
            if not dry_run:
                connection.execute(update(blobs).where(blobs.c.digest.in_(list(removed))).values(touched=CONDEMNED))
        if not dry_run:
            removed = _remove(database, storage, list(removed))
        count += len(removed)
        size += sum(removed.values())
    orphans = _orphans(database, storage, grace * _ORPHAN_FACTOR, dry_run=dry_run)
    uploads = remove_expired_uploads(database, storage, grace, dry_run=dry_run)
    return CollectReport(
        blobs=count, bytes=size, links=links, manifests=gone, orphans=orphans, uploads=uploads, dry_run=dry_run
    )


def _unnamed(cutoff: str) -> ColumnElement[bool]:
    named = exists().where(manifest_blobs.c.digest == blobs.c.digest)
    return and_(blobs.c.touched < cutoff, ~named)


def _batches(database: Database, cutoff: str) -> Iterator[list[Digest]]:
    last = ""
    while True:
        with database.reading() as connection:
            wanted = select(blobs.c.digest).where(_unnamed(cutoff), blobs.c.digest > last)
            found = connection.execute(wanted.order_by(blobs.c.digest).limit(_BATCH)).scalars().all()
        if not found:
            return
        yield [Digest(one) for one in found]
        last = found[-1]


def _still(connection: Connection, condition: ColumnElement[bool], some: Sequence[Digest]) -> dict[Digest, int]:
    """Those that can go, with their sizes, locked: whoever came first has named or sent them, or has their rows."""
    locked = select(blobs.c.digest, blobs.c.size).where(blobs.c.digest.in_(some)).with_for_update(skip_locked=True)
    held = {Digest(row.digest) for row in connection.execute(locked)}
    # Asked again: what the other transaction did before the lock was given is seen only now.
    rows = connection.execute(select(blobs.c.digest, blobs.c.size).where(condition, blobs.c.digest.in_(held)))
    return {Digest(row.digest): row.size for row in rows}


def _remove(database: Database, storage: Storage, condemned: Sequence[Digest]) -> dict[Digest, int]:
    """Remove blobs that are known to be condemned, but for those that were sent again; with their sizes."""
    with database.writing() as connection:
        removed = _still(connection, blobs.c.touched == CONDEMNED, condemned)
        digests = list(removed)
        connection.execute(delete(repository_blobs).where(repository_blobs.c.digest.in_(digests)))
        connection.execute(delete(blobs).where(blobs.c.digest.in_(digests)))
        storage.delete(digests)
    return removed


def _links(database: Database, cutoff: str, *, dry_run: bool) -> int:
    """Take back a repository's rights to blobs of which it names none, though another one does."""
    used = exists().where(
        manifest_blobs.c.repository == repository_blobs.c.repository,
        manifest_blobs.c.digest == repository_blobs.c.digest,
    )
    old = exists().where(blobs.c.digest == repository_blobs.c.digest, blobs.c.touched < cutoff)
    elsewhere = exists().where(manifest_blobs.c.digest == repository_blobs.c.digest)
    condition = and_(~used, old, elsewhere)
    return _delete(database, repository_blobs.c.digest, condition, dry_run=dry_run)


def _manifests(database: Database, cutoff: str, *, dry_run: bool) -> int:
    tagged = exists().where(tags.c.repository == manifests.c.repository, tags.c.digest == manifests.c.digest)
    versioned = exists().where(versions.c.repository == manifests.c.repository, versions.c.digest == manifests.c.digest)
    part = exists().where(
        manifest_blobs.c.repository == manifests.c.repository, manifest_blobs.c.digest == manifests.c.digest
    )
    other = manifests.alias("subjects")
    refers = exists().where(other.c.repository == manifests.c.repository, other.c.digest == manifests.c.subject)
    condition = and_(manifests.c.touched < cutoff, ~tagged, ~versioned, ~part, ~refers)
    if dry_run:
        with database.reading() as connection:
            return connection.execute(select(func.count()).select_from(manifests).where(condition)).scalar_one()
    count = 0
    while True:
        # Again and again: what only a removed index held can go in the next round.
        with database.reading() as connection:
            found = select(manifests.c.repository).where(condition).distinct().order_by(manifests.c.repository)
            repositories = connection.execute(found).scalars().all()
        removed = sum(_remove_manifests(database, repository, condition) for repository in repositories)
        if removed == 0:
            return count
        count += removed


def _remove_manifests(database: Database, repository: int, condition: ColumnElement[bool]) -> int:
    """Remove the manifests of a repository for which a condition holds while nobody else changes its names."""
    with database.writing() as connection:
        lock_repository(connection, repository)
        going = delete(manifests).where(manifests.c.repository == repository, condition)
        digests = connection.execute(going.returning(manifests.c.digest)).scalars().all()
        for digest in digests:
            mine = (manifest_blobs.c.repository == repository, manifest_blobs.c.manifest == digest)
            connection.execute(delete(manifest_blobs).where(*mine))
    return len(digests)


def _delete(database: Database, column: ColumnElement[str], condition: ColumnElement[bool], *, dry_run: bool) -> int:
    if dry_run:
        with database.reading() as connection:
            return len(connection.execute(select(column).where(condition)).all())
    with database.writing() as connection:
        return connection.execute(delete(repository_blobs).where(condition)).rowcount


def _orphans(database: Database, storage: Storage, seconds: float, *, dry_run: bool) -> int:
    """Files that a killed process left: no row knows them, and they are older than any push takes."""
    count = 0
    for some in storage.listed(before=datetime.now(UTC) - timedelta(seconds=seconds)):
        if dry_run:
            with database.reading() as connection:
                known = connection.execute(select(blobs.c.digest).where(blobs.c.digest.in_(some))).scalars().all()
            count += len(set(some) - set(known))
        else:
            count += _remove_unknown(database, storage, some)
    return count


def _remove_unknown(database: Database, storage: Storage, some: Iterable[Digest]) -> int:
    with database.writing() as connection:
        # Their rows are nobody's to see, and keep whoever has just sent the same bytes from writing one until these are
        # gone. In one order, or two collectors would wait for one another.
        row = {"size": 0, "created": now(), "touched": now()}
        unknown = [one for one in sorted(some) if insert_if_absent(connection, blobs, {"digest": one, **row})]
        storage.delete(unknown)
        connection.execute(delete(blobs).where(blobs.c.digest.in_(unknown)))
    return len(unknown)
