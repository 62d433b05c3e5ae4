"""The body of a request on its way into an upload: one piece is written while the next one arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request
from sqlalchemy import Connection

from deltareg.errors import DeltaregError
from deltareg_registry.problems import OciError
from deltareg_registry.records.uploads import Upload, advance
from deltareg_registry.state import State, state_of
from deltareg_registry.storage.uploads import UploadWriter

__all__ = ["exclusive", "receive"]

# So much is sent again at most after a crash of the server.
_NOTED = 64 << 20


@asynccontextmanager
async def exclusive(state: State, identity: str) -> AsyncGenerator[None]:
    """Keep other requests from an upload. Raises Busy."""
    with ExitStack() as stack:
        await run_sync(stack.enter_context, state.storage.uploads.exclusive(identity))
        yield


async def receive(request: Request, upload: Upload, limit: int, check: Callable[[Connection, int], None]) -> Upload:
    """Append the body of a request to an upload. What arrived stays, also where the client goes away in the middle.

    `check` raises unless the upload may have so many bytes; it is asked whenever they are noted. Raises what it does,
    OciError above `limit` bytes and after a long silence, ClientDisconnect, DiskFull, BucketUnavailable, Busy.
    """
    with ExitStack() as stack:
        state = state_of(request)
        writer = await run_sync(stack.enter_context, state.storage.uploads.writer(upload.id, upload.progress))
        receiver = _Receiver(state, upload, writer, check)
        try:
            await receiver.take(request, limit)
        finally:
            # Also where the task is cancelled because the server stops.
            with CancelScope(shield=True):
                await receiver.settle()
        return receiver.upload


class _Receiver:
    def __init__(
        self, state: State, upload: Upload, writer: UploadWriter, check: Callable[[Connection, int], None]
    ) -> None:
        self.upload = upload
        self._state = state
        self._writer = writer
        self._check = check
        self._buffer = bytearray()
        self._writing: asyncio.Future[None] | None = None
        self._failed = False

    async def take(self, request: Request, limit: int) -> None:
        """Write the whole body."""
        received = 0
        async for data in _heard(request, self._state.settings.silence):
            received += len(data)
            if received > limit:
                self._failed = True
                raise OciError("SIZE_INVALID", 413, f"more than {limit} bytes cannot be taken here")
            self._buffer += data
            while len(self._buffer) >= self._writer.piece:
                await self._written()
                piece, self._buffer = self._split()
                self._writing = asyncio.ensure_future(run_sync(self._write, piece))
        await self._written()

    async def settle(self) -> None:
        """Write what is left, and note how far the upload has come, unless writing is what failed."""
        try:
            await self._written()
            if self._buffer and not self._failed:
                piece, self._buffer = self._buffer, bytearray()
                await run_sync(self._write, piece)
        finally:
            await run_sync(self._note)

    def _split(self) -> tuple[bytearray, bytearray]:
        size = self._writer.piece
        if len(self._buffer) == size:
            return self._buffer, bytearray()
        view = memoryview(self._buffer)
        return bytearray(view[:size]), bytearray(view[size:])

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _write(self, piece: bytearray) -> None:
        try:
            self._writer.write(piece)
        except DeltaregError:
            self._failed = True
            raise
        if self._writer.progress.size - self.upload.progress.size >= _NOTED:
            self._note()

    def _note(self) -> None:
        if self._writer.progress.size != self.upload.progress.size:
            with self._state.database.writing() as connection:
                self._check(connection, self._writer.progress.size)
                self.upload = advance(connection, self.upload, self._writer.progress)


async def _heard(request: Request, silence: float) -> AsyncGenerator[bytes]:
    """The body, piece by piece. Raises OciError where nothing comes for `silence` seconds.

    Whoever lost the connection could not go on while the server still waits at the other end of it.
    """
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(silence):
                data = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise OciError("BLOB_UPLOAD_INVALID", 408, f"nothing was sent for {silence:g} seconds") from error
        yield data
