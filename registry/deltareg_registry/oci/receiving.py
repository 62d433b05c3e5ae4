"""The body of a request on its way into an upload: one piece is written while the next one arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request
from sqlalchemy import Connection

from deltareg.errors import Busy, DeltaregError, TooLarge
from deltareg_registry.problems import late
from deltareg_registry.records.uploads import Upload, advance
from deltareg_registry.state import State, state_of
from deltareg_registry.storage.uploads import UploadWriter

__all__ = ["exclusive", "receive"]

# So much is sent again at most after a crash of the server.
_NOTED = 64 << 20
_PAUSE = 0.02


@asynccontextmanager
async def exclusive(state: State, identity: str, *, patience: float = 0) -> AsyncGenerator[None]:
    """Keep other requests from an upload. Raises Busy where one still has it after `patience` seconds."""
    end = asyncio.get_running_loop().time() + patience
    with ExitStack() as stack:
        while True:
            try:
                await run_sync(stack.enter_context, state.storage.uploads.exclusive(identity))
                break
            except Busy:
                if asyncio.get_running_loop().time() >= end:
                    raise
                await asyncio.sleep(_PAUSE)
        yield


async def receive(request: Request, upload: Upload, limit: int, check: Callable[[Connection, int], None]) -> Upload:
    """Append the body of a request to an upload. What arrived stays, also where the client goes away in the middle.

    `check` raises unless the upload may have so many bytes; it is asked whenever they are noted. Raises what it does,
    TooLarge above `limit` bytes, OciError after a long silence, ClientDisconnect, DiskFull, BucketUnavailable, Busy.
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
        self._waiting: list[bytes | memoryview] = []
        self._size = 0
        self._writing: asyncio.Future[None] | None = None
        self._failed = False

    async def take(self, request: Request, limit: int) -> None:
        """Write the whole body."""
        received = 0
        async with aclosing(_heard(request, self._state.settings.silence)) as body:
            async for data in body:
                received += len(data)
                if received > limit:
                    self._failed = True
                    raise TooLarge(f"more than {limit} bytes cannot be taken here")
                self._waiting.append(data)
                self._size += len(data)
                while self._size >= self._writer.piece:
                    await self._written()
                    self._writing = asyncio.ensure_future(run_sync(self._write, self._piece()))
        await self._written()

    async def settle(self) -> None:
        """Write what is left, and note how far the upload has come, unless writing is what failed."""
        try:
            await self._written()
            if self._size and not self._failed:
                rest, self._waiting, self._size = self._waiting, [], 0
                await run_sync(self._write, rest)
        finally:
            await run_sync(self._note)

    def _piece(self) -> list[bytes | memoryview]:
        """The next piece, of exactly the size that the storage takes; what was received is not copied for it."""
        piece, over = self._waiting, self._size - self._writer.piece
        self._waiting, self._size = [], over
        if over:
            last = memoryview(piece.pop())
            piece.append(last[:-over])
            self._waiting.append(last[-over:])
        return piece

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _write(self, piece: list[bytes | memoryview]) -> None:
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
    stream, clock = request.stream(), asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(None) as patience:
            while True:
                patience.reschedule(clock() + silence)
                data = await anext(stream, None)
                patience.reschedule(None)
                if data is None:
                    return
                yield data
    except TimeoutError as error:
        raise late(f"nothing was sent for {silence:g} seconds", "BLOB_UPLOAD_INVALID") from error
