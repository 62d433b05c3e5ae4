"""Objects that are sent while their bytes come in: from many threads, nearly in order, of several objects at a time."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from deltareg.checkpoint.source import bytes_of
from deltareg.errors import translate_os_errors

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["MOST_WAITING", "Upload", "Uploads"]

MOST_WAITING = 64 * 2**20
"""So many bytes wait for their turn in memory unless another number is given."""


@dataclass(frozen=True)
class _Spooled:
    """A piece that waits on disk."""

    offset: int
    length: int


@dataclass
class Upload:
    """One object of `size` bytes: `send` takes them in order, `sent` counts them. Used through `Uploads` alone."""

    name: str
    size: int
    send: Callable[[bytes], None]
    sent: int = 0
    busy: bool = False
    waiting: dict[int, bytes | _Spooled] = field(default_factory=dict[int, "bytes | _Spooled"])


class Uploads:
    """Puts pieces of uploads into order.

    obstore sends the parts of an object in order only, while tensors come as their steps are done: whoever brings the
    piece that is next sends it, and all that waits behind it. Others leave theirs, and wait where `memory` bytes are
    taken and somebody sends. Where nobody does, what is next has yet to be computed, maybe by the thread that would
    wait: such pieces go to a file without a name in the directory for temporary files, whose room is used again. A step
    that measures several tensors before it writes the first can make that many megabytes; most never make a file.
    """

    def __init__(self, memory: int = MOST_WAITING) -> None:
        self._memory = memory
        self._turn = threading.Condition()
        self._held = 0
        self._senders = 0
        self._failure: BaseException | None = None
        self._spool = _Spool()

    @property
    def spooled(self) -> int:
        """The size that the file of waiting pieces has reached, in bytes."""
        return self._spool.size

    def give(self, upload: Upload, start: int, data: Buffer) -> None:
        """Take the bytes of an object from `start` on. May send them, and others. Raises what `send` raises."""
        view = bytes_of(data)
        if not len(view):
            return
        with self._turn:
            self._wait_for_room(upload, start, len(view))
            if start < upload.sent or start in upload.waiting:
                raise ValueError(f"byte {start} of {upload.name} was given twice")
            upload.waiting[start] = self._keep(upload, start, view)
            piece = self._take(upload)
        if piece is not None:
            self._send(upload, piece)

    def close(self) -> None:
        """Give back memory and disk."""
        self._spool.close()

    def _wait_for_room(self, upload: Upload, start: int, length: int) -> None:
        while self._failure is None and self._senders and not self._fits(upload, start, length):
            self._turn.wait()
        if self._failure is not None:
            raise self._failure

    def _fits(self, upload: Upload, start: int, length: int) -> bool:
        is_next = start == upload.sent and not upload.busy
        return is_next or self._held + length <= self._memory

    def _keep(self, upload: Upload, start: int, view: memoryview) -> bytes | _Spooled:
        if self._fits(upload, start, len(view)):
            self._held += len(view)
            # A copy: the caller's memory is used again before the piece has been sent.
            return bytes(view)
        return self._spool.put(view)

    def _take(self, upload: Upload) -> bytes | None:
        """The next piece, if it is there and nobody else sends. Whoever gets it has to send it."""
        if upload.busy or upload.sent not in upload.waiting:
            return None
        piece = upload.waiting.pop(upload.sent)
        if isinstance(piece, _Spooled):
            piece = self._spool.take(piece)
        else:
            self._held -= len(piece)
        upload.busy = True
        self._senders += 1
        return piece

    def _send(self, upload: Upload, first: bytes) -> None:
        piece: bytes | None = first
        while piece is not None:
            try:
                upload.send(piece)
            except BaseException as error:
                with self._turn:
                    self._failure = self._failure or error
                    self._end(upload)
                raise
            with self._turn:
                upload.sent += len(piece)
                self._end(upload)
                piece = self._take(upload)

    def _end(self, upload: Upload) -> None:
        upload.busy = False
        self._senders -= 1
        self._turn.notify_all()


class _Spool:
    """Pieces in a file without a name, made when the first one comes."""

    def __init__(self) -> None:
        self.size = 0
        self._file: IO[bytes] | None = None
        self._free: list[_Spooled] = []

    def put(self, view: memoryview) -> _Spooled:
        """Write a piece where one of at least its length was, or at the end. Raises DiskFull."""
        with translate_os_errors("keep bytes until it is their turn", tempfile.gettempdir()):
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            number = next((number for number, room in enumerate(self._free) if room.length >= len(view)), None)
            offset = self.size if number is None else self._free.pop(number).offset
            done = 0
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], offset + done)
        self.size = max(self.size, offset + len(view))
        return _Spooled(offset, len(view))

    def take(self, piece: _Spooled) -> bytes:
        """Read a piece, and give up its room."""
        assert self._file is not None
        with translate_os_errors("read bytes whose turn it is", tempfile.gettempdir()):
            data = bytearray(piece.length)
            done = 0
            while done < piece.length:
                count = os.preadv(self._file.fileno(), [memoryview(data)[done:]], piece.offset + done)
                if count == 0:
                    raise OSError(f"the file ends after {done} of {piece.length} bytes")
                done += count
        self._free.append(piece)
        return bytes(data)

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
