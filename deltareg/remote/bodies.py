"""What is sent and received piece by piece: parts of files going out, answers coming in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltareg.errors import RemoteUnavailable, translate_os_errors
from deltareg.remote.bandwidth import Bandwidth
from deltareg.store.writer import mismatch

__all__ = ["PIECE", "Body", "Download", "FilePart", "first_byte", "stream"]

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")

PIECE = 64 << 10
"""Bytes that go out at a time: few enough for a limit of bandwidth to be even."""


@dataclass(frozen=True)
class FilePart:
    """`length` bytes of the file at `path` from `offset` on; `digest` is of the whole file, for an error's message.

    `sent` hears of the bytes that go out, and where in the file they begin; once more for each try.
    """

    path: Path
    offset: int
    length: int
    digest: str
    sent: Callable[[bytes, int], None] | None = None


Body = bytes | FilePart


@dataclass(frozen=True)
class Download:
    """A blob to be fetched: its bytes are `size`, whose digest is `digest`."""

    url: str
    size: int
    digest: str
    scope: str = ""


def stream(body: Body, bandwidth: Bandwidth) -> Iterator[bytes]:
    """The bytes of a body, as fast as may be. Raises DigestMismatch where a file is shorter than it was, NotAllowed."""
    if isinstance(body, bytes):
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            bandwidth.take(len(piece))
            yield piece
        return
    with translate_os_errors("read a blob", body.path), body.path.open("rb", buffering=0) as file:
        left = body.length
        while left:
            piece = os.pread(file.fileno(), min(PIECE, left), body.offset + body.length - left)
            if not piece:
                whole = body.offset + body.length
                raise mismatch(body.digest, body.path, expected=whole, found=whole - left)
            bandwidth.take(len(piece))
            if body.sent is not None:
                body.sent(piece, body.offset + body.length - left)
            left -= len(piece)
            yield piece


def first_byte(status: int, headers: Mapping[str, str], wanted: Download, offset: int, place: str) -> int:
    """Which byte of the blob an answer begins with. Raises DigestMismatch where it is not of that blob's size."""
    if status == 416:
        raise mismatch(wanted.digest, place, expected=wanted.size, found=f"at most {offset}")
    if status == 206:
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if found is None or int(found[1]) != offset:
            raise RemoteUnavailable(
                f"{place} was sent from another byte on than was asked for",
                cause=f"content-range {headers.get('content-range')!r:.80}, and not from {offset} on",
                hint="ask the owner of the remote to check it",
            )
        if found[3] not in ("*", str(wanted.size)):
            raise mismatch(wanted.digest, place, expected=wanted.size, found=found[3])
        return offset
    length = headers.get("content-length")
    if length is not None and length != str(wanted.size):
        raise mismatch(wanted.digest, place, expected=wanted.size, found=length[:20])
    return 0
