"""A blob on its way to a client: the whole or a range of it, a piece at a time."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from anyio.to_thread import run_sync
from fastapi import Response
from starlette.types import Receive, Scope, Send

from deltareg.digest import Digest
from deltareg.errors import DeltaregError, NotFound
from deltareg_registry.problems import OciError
from deltareg_registry.storage import Storage
from deltareg_registry.storage.errors import translated

__all__ = ["BlobResponse", "byte_range"]

_FILE_PIECE = 256 << 10
_OBJECT_PIECE = 4 << 20
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,19})-(?P<last>[0-9]{0,19})", re.ASCII)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the end of the range that a header asks for; None for the whole.

    Several ranges, and what is not understood, are answered by the whole, as RFC 9110 has it. Raises OciError (416)
    where the blob has no such bytes.
    """
    found = None if header is None else _RANGE.fullmatch(header.strip().replace(" ", ""))
    if found is None or not (found["first"] or found["last"]):
        return None
    if not found["first"]:
        start, end = max(0, size - int(found["last"])), size
    else:
        start, end = int(found["first"]), min(size, int(found["last"] or size) + 1)
        if found["last"] and int(found["last"]) < start:
            return None
    if start >= end:
        raise OciError("SIZE_INVALID", 416, f"the blob has {size} bytes: none of {header!r:.60}")
    return start, end


class BlobResponse(Response):
    """Sends the bytes from `start` to `end` of a blob. Reads one piece while another one is on its way."""

    def __init__(
        self, storage: Storage, digest: Digest, start: int, end: int, *, status_code: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(None, status_code, headers)
        self.headers["content-length"] = str(end - start)
        self._storage = storage
        self._digest = digest
        self._start = start
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._start == self._end:
            await Response(status_code=self.status_code, headers=dict(self.headers))(scope, receive, send)
            return
        path = self._storage.path(self._digest)
        if path is None:
            read = partial(self._storage.read_range, self._digest)
            await self._send(read, _OBJECT_PIECE, receive, send)
            return
        try:
            file = await run_sync(self._open, path)
        except NotFound as error:
            raise _lost() from error
        try:
            await self._send(partial(_read, file), _FILE_PIECE, receive, send)
        finally:
            os.close(file)

    def _open(self, path: os.PathLike[str]) -> int:
        with translated(None, "a blob"):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, self._start, self._end - self._start, os.POSIX_FADV_SEQUENTIAL)
            return file

    async def _send(self, read: Callable[[int, int], bytes], piece: int, receive: Receive, send: Send) -> None:
        position = self._start
        following = asyncio.ensure_future(_piece(read, position, min(piece, self._end - position)))
        # Servers drop what is sent to a client that went away, without a word.
        gone = asyncio.ensure_future(_disconnected(receive))
        started = False
        try:
            while position < self._end:
                data = await following
                # Not before there is a piece: a blob that the store lacks is told as an error.
                if not started:
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    started = True
                position += len(data)
                if position < self._end:
                    following = asyncio.ensure_future(_piece(read, position, min(piece, self._end - position)))
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": data, "more_body": position < self._end})
        finally:
            gone.cancel()
            if not following.done():
                # It reads from a file that is about to be closed.
                await asyncio.wait([following])
            if not following.cancelled():
                following.exception()


async def _piece(read: Callable[[int, int], bytes], start: int, length: int) -> bytes:
    try:
        data = await run_sync(read, start, length)
    except NotFound as error:
        raise _lost() from error
    if len(data) != length:
        raise _lost()
    return data


def _lost() -> DeltaregError:
    """The error of bytes that the registry should have: not 404, by which whoever asks would be at fault."""
    return DeltaregError(
        "the registry has lost bytes of this blob", hint="tell whoever runs it: deltareg-registry fsck"
    )


async def _disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return


def _read(file: int, start: int, length: int) -> bytes:
    with translated(None, "a blob"):
        return os.pread(file, length, start)
