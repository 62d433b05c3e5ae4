"""How an answer's bytes are waited for: never without end, and never more of them than were asked for."""

from __future__ import annotations

import time
from collections.abc import Generator

import httpx2

from deltareg.remote.network import Patience

__all__ = ["arriving", "bounded"]

_SLOWEST = 1 << 10
"""Bytes a second that an answer has to bring, beyond the time that all tries of a request have together."""


def arriving(response: httpx2.Response, patience: Patience) -> Generator[bytes]:
    """The bytes of an answer as they come. Raises httpx2.ReadTimeout where each is in time, and all would never be."""
    pieces, waited, count = response.iter_raw(), 0.0, 0
    while True:
        begun = time.monotonic()
        piece = next(pieces, None)
        # Only the waiting counts: whoever takes the pieces may be slow for reasons of their own.
        waited += time.monotonic() - begun
        if piece is None:
            return
        count += len(piece)
        if waited > patience.total + count / _SLOWEST:
            raise httpx2.ReadTimeout(f"{count} bytes in {waited:.0f} s")
        yield piece


def bounded(response: httpx2.Response, limit: int, patience: Patience) -> bytes | None:
    """All bytes of an answer; None where they are more than `limit`. Raises as `arriving` does."""
    data = bytearray()
    for piece in arriving(response, patience):
        data += piece
        if len(data) > limit:
            return None
    return bytes(data)
