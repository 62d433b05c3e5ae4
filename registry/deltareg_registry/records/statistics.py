"""How much there is, and how often it is fetched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, select

from deltareg_registry.database.tables import blobs, pulls, repositories, repository_blobs, versions

__all__ = ["NamespaceCount", "VersionPulls", "count_all", "count_namespaces", "pulls_by_digest", "version_pulls"]


@dataclass(frozen=True)
class NamespaceCount:
    """What a namespace holds."""

    namespace: str
    repositories: int
    versions: int
    size: int
    pulls: int


@dataclass(frozen=True)
class VersionPulls:
    """How often a version was fetched."""

    name: str
    version: str
    count: int
    last: str | None


def count_namespaces(connection: Connection, names: Collection[str]) -> list[NamespaceCount]:
    """What each of these namespaces holds, by name."""
    wanted = repositories.c.namespace.in_(sorted(names))
    holds = connection.execute(
        select(repositories.c.namespace, func.count()).where(wanted).group_by(repositories.c.namespace)
    )
    repositories_of = {row[0]: row[1] for row in holds}
    published = connection.execute(
        select(versions.c.namespace, func.count())
        .where(versions.c.namespace.in_(sorted(names)))
        .group_by(versions.c.namespace)
    )
    versions_of = {row[0]: row[1] for row in published}
    fetched = connection.execute(
        select(repositories.c.namespace, func.sum(pulls.c.count))
        .join(pulls, pulls.c.repository == repositories.c.id)
        .where(wanted)
        .group_by(repositories.c.namespace)
    )
    pulls_of = {row[0]: int(row[1]) for row in fetched}
    once = (
        select(repositories.c.namespace, blobs.c.digest, blobs.c.size)
        .join(repository_blobs, repository_blobs.c.repository == repositories.c.id)
        .join(blobs, blobs.c.digest == repository_blobs.c.digest)
        .where(wanted)
        .distinct()
        .subquery()
    )
    sizes = connection.execute(select(once.c.namespace, func.sum(once.c.size)).group_by(once.c.namespace))
    size_of = {row[0]: int(row[1]) for row in sizes}
    return [
        NamespaceCount(
            name, repositories_of.get(name, 0), versions_of.get(name, 0), size_of.get(name, 0), pulls_of.get(name, 0)
        )
        for name in sorted(names)
    ]


def count_all(connection: Connection, names: Select[Any]) -> NamespaceCount:
    """What all namespaces that a query names hold together; its own name is empty. Each blob is counted once."""
    mine = repositories.c.namespace.in_(names)
    inside = select(repositories.c.id).where(mine)
    digests = select(repository_blobs.c.digest).where(repository_blobs.c.repository.in_(inside))
    return NamespaceCount(
        "",
        connection.execute(select(func.count()).select_from(repositories).where(mine)).scalar_one(),
        connection.execute(
            select(func.count()).select_from(versions).where(versions.c.namespace.in_(names))
        ).scalar_one(),
        _sum(connection, select(func.sum(blobs.c.size)).where(blobs.c.digest.in_(digests))),
        _sum(connection, select(func.sum(pulls.c.count)).where(pulls.c.repository.in_(inside))),
    )


def version_pulls(connection: Connection, namespace: str, *, limit: int) -> list[VersionPulls]:
    """How often the versions of a namespace were fetched, the most fetched first."""
    count = func.coalesce(pulls.c.count, 0)
    wanted = (
        select(versions.c.name, versions.c.version, count, pulls.c.last)
        .outerjoin(pulls, (pulls.c.repository == versions.c.repository) & (pulls.c.digest == versions.c.digest))
        .where(versions.c.namespace == namespace)
        .order_by(count.desc(), versions.c.name, versions.c.id)
        .limit(limit)
    )
    return [VersionPulls(row[0], row[1], int(row[2]), row[3]) for row in connection.execute(wanted)]


def pulls_by_digest(connection: Connection, repository: int) -> dict[str, int]:
    """How often the manifests of a repository were fetched; what never was is absent."""
    wanted = select(pulls.c.digest, pulls.c.count).where(pulls.c.repository == repository)
    return {row[0]: int(row[1]) for row in connection.execute(wanted)}


def _sum(connection: Connection, wanted: Select[Any]) -> int:
    return int(connection.execute(wanted).scalar_one() or 0)
