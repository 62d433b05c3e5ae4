"""Tags: versions, which never change, and names that move; `latest` is computed where there are versions."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update

from deltareg.digest import Digest
from deltareg.errors import NotAllowed, NotFound
from deltareg.names import LATEST, Reference, is_version, latest_of
from deltareg.store import version_exists
from deltareg_registry.access.principal import Principal
from deltareg_registry.database import now
from deltareg_registry.database.tables import removed, tags, versions
from deltareg_registry.records.audit import record
from deltareg_registry.records.events import announce, emit
from deltareg_registry.records.namespaces import insert_if_absent
from deltareg_registry.records.policies import policy_of

__all__ = [
    "check_free",
    "delete_tag",
    "digest_of_tag",
    "has_version_of",
    "latest_version",
    "move_tag",
    "moving_digest",
    "put_tag",
    "remove_version",
    "tags_of",
    "versions_with",
]


def digest_of_tag(connection: Connection, repository: int, tag: str) -> Digest | None:
    """What a tag names; None where there is no such tag."""
    if is_version(tag):
        where = (versions.c.repository == repository, versions.c.version == tag)
        found = connection.execute(select(versions.c.digest).where(*where)).scalar_one_or_none()
        if found is not None:
            return Digest(found)
    if tag == LATEST:
        latest = latest_version(connection, repository)
        if latest is not None:
            return digest_of_tag(connection, repository, latest)
    return moving_digest(connection, repository, tag)


def moving_digest(connection: Connection, repository: int, tag: str) -> Digest | None:
    """What a tag that moves names; None where there is no such tag, also for what is a delta's version."""
    where = (tags.c.repository == repository, tags.c.tag == tag)
    found = connection.execute(select(tags.c.digest).where(*where)).scalar_one_or_none()
    return None if found is None else Digest(found)


def put_tag(connection: Connection, repository: int, tag: str, digest: Digest) -> None:
    """Let a tag that moves name a manifest, whatever it named before."""
    values = {"repository": repository, "tag": tag, "digest": digest, "updated": now()}
    if not insert_if_absent(connection, tags, values):
        connection.execute(update(tags).where(tags.c.repository == repository, tags.c.tag == tag).values(values))


def latest_version(connection: Connection, repository: int) -> str | None:
    """The version that `latest` means; None in a repository without versions."""
    columns = select(versions.c.version, versions.c.yanked).where(versions.c.repository == repository)
    rows = connection.execute(columns).all()
    return latest_of([row.version for row in rows], {row.version for row in rows if row.yanked is not None})


def tags_of(connection: Connection, repository: int) -> list[str]:
    """Every tag of a repository, in the order of their bytes."""
    found = set(connection.execute(select(versions.c.version).where(versions.c.repository == repository)).scalars())
    if found:
        found.add(LATEST)
    found |= set(connection.execute(select(tags.c.tag).where(tags.c.repository == repository)).scalars())
    # Databases sort as their locale has it.
    return sorted(found)


def versions_with(connection: Connection, repository: int, digest: Digest) -> list[str]:
    """The versions that have a manifest, also those of manifests that are no deltas."""
    where = (versions.c.repository == repository, versions.c.digest == digest)
    found = set(connection.execute(select(versions.c.version).where(*where)).scalars())
    named = select(tags.c.tag).where(tags.c.repository == repository, tags.c.digest == digest)
    return sorted(found | {tag for tag in connection.execute(named).scalars() if is_version(tag)})


def has_version_of(connection: Connection, repository: int, digest: Digest) -> bool:
    """Whether a delta was published under some version."""
    where = (versions.c.repository == repository, versions.c.digest == digest)
    return connection.execute(select(versions.c.id).where(*where).limit(1)).first() is not None


def check_free(connection: Connection, repository: int, reference: Reference, digest: Digest) -> None:
    """Raise VersionExists where a version has other bytes, or had them before it was removed."""
    version = reference.version
    assert version is not None
    found = digest_of_tag(connection, repository, version)
    if found is not None and found != digest:
        raise version_exists(reference, found)
    gone = (removed.c.repository == repository, removed.c.version == version)
    before = connection.execute(select(removed.c.digest).where(*gone)).scalar_one_or_none()
    if before is not None and before != digest:
        raise version_exists(reference, Digest(before), " and was removed")


def move_tag(
    connection: Connection,
    principal: Principal,
    reference: Reference,
    repository: int,
    digest: Digest,
    address: str | None = None,
) -> None:
    """Let a tag name a manifest of the repository. Raises VersionExists, NotAllowed.

    A version stays what it is. `latest` is computed where there are versions.
    """
    tag = reference.tag
    assert tag is not None
    if reference.version is not None:
        check_free(connection, repository, reference, digest)
    if tag == LATEST and latest_version(connection, repository) is not None:
        if digest_of_tag(connection, repository, tag) == digest:
            return
        raise NotAllowed(
            f"{reference} is the highest version that is not yanked: it is not set",
            hint="publish a higher version, or choose another channel",
        )
    before = moving_digest(connection, repository, tag)
    if before == digest:
        return
    put_tag(connection, repository, tag, digest)
    detail = {"from": before, "to": digest}
    record(
        connection,
        principal,
        "tag.set",
        str(reference),
        namespace=reference.namespace,
        address=address,
        detail=detail,
    )
    if reference.version is None:
        emit(connection, reference.namespace, "channel.set", str(reference), detail)


def delete_tag(
    connection: Connection, principal: Principal, reference: Reference, repository: int, address: str | None = None
) -> None:
    """Take a tag away. A version is removed for ever, where the namespace lets its owners do that.

    Raises NotFound, NotAllowed.
    """
    tag = reference.tag
    assert tag is not None
    if reference.version is not None:
        remove_version(connection, principal, reference, repository, address)
        return
    digest = moving_digest(connection, repository, tag)
    if digest is None:
        if digest_of_tag(connection, repository, tag) is None:
            raise NotFound(f"there is no {reference}")
        raise NotAllowed(f"{reference} is computed from the versions", hint="yank the version instead")
    connection.execute(delete(tags).where(tags.c.repository == repository, tags.c.tag == tag))
    record(
        connection,
        principal,
        "tag.delete",
        str(reference),
        namespace=reference.namespace,
        address=address,
        detail={"from": digest},
    )
    emit(connection, reference.namespace, "channel.remove", str(reference), {"from": digest})


def remove_version(
    connection: Connection, principal: Principal, reference: Reference, repository: int, address: str | None = None
) -> None:
    """Remove a version; it never becomes free. Raises NotFound, NotAllowed unless the namespace's policy allows it."""
    version = reference.version
    assert version is not None
    digest = digest_of_tag(connection, repository, version)
    if digest is None:
        raise NotFound(f"there is no {reference}")
    if not policy_of(connection, reference.namespace).deletion:
        raise NotAllowed(
            f"{reference} is a version: {reference.namespace} does not let versions be removed",
            hint=f"deltareg yank {reference} --reason '…' keeps people from it",
        )
    same = (versions.c.repository == repository, versions.c.version == version)
    was_delta = connection.execute(delete(versions).where(*same)).rowcount > 0
    connection.execute(delete(tags).where(tags.c.repository == repository, tags.c.tag == version))
    insert_if_absent(connection, removed, {"repository": repository, "version": version, "digest": digest})
    if was_delta and not has_version_of(connection, repository, digest):
        # Channels of deltas name versions.
        connection.execute(delete(tags).where(tags.c.repository == repository, tags.c.digest == digest))
    announce(connection, principal, "version.remove", reference, {"digest": digest}, address=address)
