"""How much a whole registry holds: what its operator watches."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from deltareg_registry.database.tables import blobs, deliveries, uploads, versions

__all__ = ["RegistryCount", "count_registry"]


@dataclass(frozen=True)
class RegistryCount:
    """What is there at one moment. `bytes` are those of all blobs, each of them once."""

    versions: int
    blobs: int
    bytes: int
    uploads: int
    deliveries: int


def count_registry(connection: Connection) -> RegistryCount:
    """Count; takes a pass over the rows of blobs and of versions, so nobody should do so each second."""
    count, size = connection.execute(select(func.count(), func.coalesce(func.sum(blobs.c.size), 0))).one()
    return RegistryCount(
        versions=connection.execute(select(func.count()).select_from(versions)).scalar_one(),
        blobs=count,
        bytes=int(size),
        uploads=connection.execute(select(func.count()).select_from(uploads)).scalar_one(),
        deliveries=connection.execute(
            select(func.count()).select_from(deliveries).where(deliveries.c.due.is_not(None))
        ).scalar_one(),
    )
