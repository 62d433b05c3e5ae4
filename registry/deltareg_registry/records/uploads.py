"""Uploads that are open: whose they are, and how far they have come."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from deltareg.errors import Busy, NotFound
from deltareg_registry.database import now
from deltareg_registry.database.tables import uploads
from deltareg_registry.storage.uploads import Progress

__all__ = [
    "Upload",
    "advance",
    "expired_uploads",
    "find_upload",
    "forget_upload",
    "open_among",
    "start_upload",
    "unknown_upload",
]

_BATCH = 500


@dataclass(frozen=True)
class Upload:
    """An open upload to a repository."""

    id: str
    repository: int
    progress: Progress


def start_upload(connection: Connection, repository: int, user: str | None) -> Upload:
    """Open an upload, which belongs to a user."""
    time = now()
    identity = uuid.uuid4().hex
    values = {"id": identity, "repository": repository, "user": user, "created": time, "updated": time}
    connection.execute(insert(uploads).values(**values, size=0, parts=[]))
    return Upload(identity, repository, Progress())


def find_upload(connection: Connection, repository: int, identity: str, user: str | None) -> Upload:
    """An upload that a user opened to a repository. Raises NotFound."""
    wanted = select(uploads).where(uploads.c.id == identity, uploads.c.repository == repository)
    row = connection.execute(wanted).one_or_none()
    if row is None or row.user != user:
        raise unknown_upload(identity)
    return Upload(row.id, row.repository, Progress.of(row.size, row.parts))


def advance(connection: Connection, upload: Upload, progress: Progress) -> Upload:
    """Note how far an upload has come. Raises Busy where another request was quicker."""
    changed = (
        update(uploads)
        # It only grows: who finds the size that it began with was alone.
        .where(uploads.c.id == upload.id, uploads.c.size == upload.progress.size)
        .values(size=progress.size, parts=progress.parts, updated=now())
    )
    if connection.execute(changed).rowcount == 0:
        raise Busy("another request writes to this upload", hint="ask how far it is, and go on there", retry_after=1)
    return Upload(upload.id, upload.repository, progress)


def forget_upload(connection: Connection, identity: str) -> None:
    """Close an upload."""
    connection.execute(delete(uploads).where(uploads.c.id == identity))


def expired_uploads(connection: Connection, before: str) -> list[str]:
    """Uploads that nobody has continued since a time."""
    return list(connection.execute(select(uploads.c.id).where(uploads.c.updated < before)).scalars())


def open_among(connection: Connection, identities: Sequence[str]) -> set[str]:
    """Those of `identities` that are open uploads."""
    found: set[str] = set()
    for start in range(0, len(identities), _BATCH):
        wanted = select(uploads.c.id).where(uploads.c.id.in_(identities[start : start + _BATCH]))
        found.update(connection.execute(wanted).scalars())
    return found


def unknown_upload(identity: str) -> NotFound:
    """The error of an upload that is not there."""
    return NotFound(f"there is no upload {identity!r:.80}", hint="begin it again")
