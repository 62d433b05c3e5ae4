"""Manifests some at a time: each may have megabytes, so that a number of them alone bounds no memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, select, tuple_

from deltareg_registry.database.tables import manifests

__all__ = ["BATCH", "BATCH_BYTES", "Place", "manifests_after"]

BATCH = 500
"""Rows that are held at once, at most."""
BATCH_BYTES = 8 << 20
"""Bytes that are held at once, but for a single row that has more."""

Place = tuple[int, str]
"""The key of a manifest: repository and digest."""

_PLACE = (manifests.c.repository, manifests.c.digest)


def manifests_after(
    connection: Connection, last: Place | None, *columns: ColumnElement[Any]
) -> tuple[Sequence[RowMapping], Place | None]:
    """The rows that follow a place, in the order of their keys, and the place of the last of them; None at the end."""
    after = () if last is None else (tuple_(*_PLACE) > tuple_(*last),)
    wanted = select(*_PLACE, manifests.c.size).where(*after).order_by(*_PLACE).limit(BATCH)
    end: Place | None = None
    total = 0
    for row in connection.execute(wanted):
        total += row.size
        if end is not None and total > BATCH_BYTES:
            break
        end = (row.repository, row.digest)
    if end is None:
        return [], None
    within = select(*columns).where(*after, tuple_(*_PLACE) <= tuple_(*end)).order_by(*_PLACE)
    return connection.execute(within).mappings().all(), end
