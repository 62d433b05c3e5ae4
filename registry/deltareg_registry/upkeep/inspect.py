"""The check of a whole registry: what the database says against the bytes in the storage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from sqlalchemy import exists, func, select

from deltareg.digest import Digest, sha256
from deltareg.errors import NotFound
from deltareg.manifest import Document
from deltareg.progress import SILENT, Progress
from deltareg_registry.database import Database
from deltareg_registry.database.tables import (
    CONDEMNED,
    blobs,
    manifest_blobs,
    manifests,
    repositories,
    tags,
    versions,
)
from deltareg_registry.storage import Storage
from deltareg_registry.upkeep.batches import BATCH, Place, manifests_after

__all__ = ["Fault", "InspectReport", "inspect_registry"]

_STEP = 8 << 20
# What the collector has condemned is nobody's any more, and may have no bytes.
_THERE = blobs.c.touched != CONDEMNED


class Fault(Document):
    """One thing that is wrong: `subject` is a digest or a name."""

    kind: Literal["corrupt", "missing", "wrong-size", "bad-manifest", "dangling"]
    subject: str
    message: str


class InspectReport(Document):
    """What the check found: no faults in a sound registry."""

    blobs: int
    bytes: int
    manifests: int
    versions: int
    read: bool = Field(description="whether every byte was read, and not only sizes")
    faults: list[Fault]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def inspect_registry(
    database: Database, storage: Storage, *, read: bool = True, progress: Progress = SILENT
) -> InspectReport:
    """Compare every row with what it stands for. With `read` all bytes are read, `progress` advances by these.

    May run beside everything else: what is removed meanwhile is no fault. Raises BucketUnavailable, and what the
    database raises.
    """
    faults: list[Fault] = []
    count = size = 0
    with database.reading() as connection:
        total = connection.execute(select(func.coalesce(func.sum(blobs.c.size), 0)).where(_THERE)).scalar_one()
        number = connection.execute(select(func.count()).select_from(versions)).scalar_one()
    with progress.step("fsck", int(total) if read else 0):
        for digest, length in _blobs(database):
            count += 1
            size += length
            fault = _fault_of(storage, digest, length, read=read, progress=progress)
            # Looked up again: the collector may have taken it since.
            if fault is not None and _is_known(database, digest):
                faults.append(fault)
    checked = _check_manifests(database, faults)
    _check_names(database, faults)
    return InspectReport(blobs=count, bytes=size, manifests=checked, versions=number, read=read, faults=faults)


def _blobs(database: Database) -> Iterator[tuple[Digest, int]]:
    last = ""
    while True:
        with database.reading() as connection:
            wanted = select(blobs.c.digest, blobs.c.size).where(blobs.c.digest > last, _THERE)
            rows = connection.execute(wanted.order_by(blobs.c.digest).limit(BATCH)).all()
        for row in rows:
            yield Digest(row.digest), row.size
        if len(rows) < BATCH:
            return
        last = rows[-1].digest


def _fault_of(storage: Storage, digest: Digest, length: int, *, read: bool, progress: Progress) -> Fault | None:
    try:
        found = storage.size(digest)
        if found != length:
            message = f"{digest} has {found} bytes in the storage, {length} in the database"
            return Fault(kind="wrong-size", subject=digest, message=message)
        if read and _hash(storage, digest, length, progress) != digest:
            return Fault(kind="corrupt", subject=digest, message=f"the stored bytes of {digest} are damaged")
    except NotFound:
        return Fault(kind="missing", subject=digest, message=f"{digest} is in the database and not in the storage")
    return None


def _hash(storage: Storage, digest: Digest, length: int, progress: Progress) -> str:
    hasher = hashlib.sha256()
    for start in range(0, length, _STEP):
        data = storage.read_range(digest, start, min(_STEP, length - start))
        hasher.update(data)
        progress.advance(len(data))
    return "sha256:" + hasher.hexdigest()


def _is_known(database: Database, digest: Digest) -> bool:
    with database.reading() as connection:
        return connection.execute(select(blobs.c.digest).where(blobs.c.digest == digest, _THERE)).first() is not None


def _check_manifests(database: Database, faults: list[Fault]) -> int:
    count = 0
    last: Place | None = None
    while True:
        with database.reading() as connection:
            rows, last = manifests_after(connection, last, manifests.c.digest, manifests.c.content)
        if last is None:
            return count
        for row in rows:
            if sha256(row["content"]) != row["digest"]:
                message = f"the bytes of the manifest {row['digest']} in the database are damaged"
                faults.append(Fault(kind="bad-manifest", subject=row["digest"], message=message))
        count += len(rows)


def _check_names(database: Database, faults: list[Fault]) -> None:
    """Names without a manifest, and manifests without their blobs."""
    with database.reading() as connection:
        for table, column in ((versions, versions.c.version), (tags, tags.c.tag)):
            kept = exists().where(manifests.c.repository == table.c.repository, manifests.c.digest == table.c.digest)
            wanted = select(repositories.c.namespace, repositories.c.name, column.label("tag"), table.c.digest)
            found = wanted.join(repositories, repositories.c.id == table.c.repository).where(~kept)
            for row in connection.execute(found):
                name = f"{row.namespace}/{row.name}:{row.tag}"
                message = f"{name} names {row.digest}, which is not there"
                faults.append(Fault(kind="dangling", subject=name, message=message))
        present = exists().where(blobs.c.digest == manifest_blobs.c.digest, _THERE)
        nested = exists().where(
            manifests.c.repository == manifest_blobs.c.repository, manifests.c.digest == manifest_blobs.c.digest
        )
        lost = select(manifest_blobs.c.manifest, manifest_blobs.c.digest).where(~present, ~nested)
        for row in connection.execute(lost):
            message = f"the manifest {row.manifest} needs {row.digest}, which is not there"
            faults.append(Fault(kind="missing", subject=row.digest, message=message))
