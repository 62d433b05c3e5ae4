"""Uploads that nobody continued: their rows and their bytes are removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from deltareg.errors import Busy
from deltareg_registry.database import at
from deltareg_registry.records.uploads import expired_uploads, forget_upload, open_among
from deltareg_registry.state import State

__all__ = ["remove_expired_uploads"]

_PATIENCE = 24
"""An upload is kept so many grace periods after it was continued last."""


def remove_expired_uploads(state: State) -> int:
    """Remove uploads that nobody continued for long, and bytes that no upload has; returns how many.

    May run while the server does: an upload that is being written to is left alone.
    """
    before = datetime.now(UTC) - timedelta(seconds=state.settings.grace * _PATIENCE)
    removed = 0
    with state.database.reading() as connection:
        expired = expired_uploads(connection, at(before))
    for identity in expired:
        removed += _remove(state, identity)
    stray = state.storage.uploads.identities(before.timestamp())
    with state.database.reading() as connection:
        known = open_among(connection, stray)
    for identity in stray:
        if identity not in known:
            state.storage.uploads.remove(identity)
            removed += 1
    return removed


def _remove(state: State, identity: str) -> bool:
    try:
        with state.storage.uploads.exclusive(identity):
            with state.database.writing() as connection:
                forget_upload(connection, identity)
            state.storage.uploads.remove(identity)
    except Busy:
        return False
    return True
