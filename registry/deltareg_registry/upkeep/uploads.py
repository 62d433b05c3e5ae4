"""Uploads that nobody continued: their rows and their bytes are removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from deltareg.errors import Busy
from deltareg_registry.database import Database, at
from deltareg_registry.records.uploads import expired_uploads, forget_upload, open_among
from deltareg_registry.storage import Storage

__all__ = ["remove_expired_uploads"]

# An upload is kept so many grace periods after it was continued last.
_PATIENCE = 24


def remove_expired_uploads(database: Database, storage: Storage, grace: float, *, dry_run: bool = False) -> int:
    """Remove uploads that nobody continued for 24 times `grace` seconds, and bytes that no upload has.

    Returns how many. May run while the server does: an upload that is being written to is left alone.
    """
    before = datetime.now(UTC) - timedelta(seconds=grace * _PATIENCE)
    stray = storage.uploads.identities(before.timestamp())
    with database.reading() as connection:
        expired = expired_uploads(connection, at(before))
        known = open_among(connection, stray)
    strays = [identity for identity in stray if identity not in known]
    if dry_run:
        return len(expired) + len(strays)
    return sum(_remove(database, storage, identity) for identity in (*expired, *strays))


def _remove(database: Database, storage: Storage, identity: str) -> bool:
    try:
        with storage.uploads.exclusive(identity):
            with database.writing() as connection:
                forget_upload(connection, identity)
            storage.uploads.remove(identity)
    except Busy:
        return False
    return True
