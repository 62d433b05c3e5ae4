"""Cursors: where the next page begins, written so that clients pass them on and read nothing into them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import cast

from deltareg.errors import InvalidArgument

__all__ = ["read_cursor", "write_cursor"]

_LIMIT = 1000

Place = Sequence[str | int]


def write_cursor(place: Place) -> str:
    """The cursor of a place: the sort key of the last row of a page."""
    return base64.urlsafe_b64encode(json.dumps(list(place)).encode()).decode().rstrip("=")


def read_cursor(cursor: str, like: Place) -> list[str | int]:
    """The place of a cursor, of as many parts as `like`, and of the same types. Raises InvalidArgument."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found: object = json.loads(base64.b64decode(padded.encode("ascii"), b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise _unknown(cursor) from error
    if not isinstance(found, list) or len(cursor) > _LIMIT:
        raise _unknown(cursor)
    parts = cast("list[object]", found)
    if [type(part) for part in parts] != [type(part) for part in like]:
        raise _unknown(cursor)
    numbers = [part for part in parts if isinstance(part, int)]
    texts = [part for part in parts if isinstance(part, str)]
    # PostgreSQL takes no NUL in texts, and no larger numbers.
    if any(abs(number) >= 1 << 63 for number in numbers) or any(not text.isprintable() for text in texts):
        raise _unknown(cursor)
    return cast("list[str | int]", parts)


def _unknown(cursor: str) -> InvalidArgument:
    return InvalidArgument(
        f"the cursor {cursor[:100]!r} is none that the registry gave", hint="take nextCursor of the page before"
    )
