"""One blob being written: hashed on the way, resumed where it was cut off, visible only once it is whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deltareg.digest import Digest
from deltareg.errors import DigestMismatch, DiskFull, translate_os_errors
from deltareg.manifest import Descriptor
from deltareg.progress import Progress
from deltareg.store.files import open_locked

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from deltareg.store.blobs import Blobs

__all__ = ["BLOCK", "BlobWriter", "mismatch"]

BLOCK = 1 << 20
"""Bytes that are read, hashed and written at a time."""


class BlobWriter:
    """One blob being written; `commit` makes it visible, leaving without it does not.

    With a descriptor the file in `tmp/` outlives a failure and a kill, and `offset` says where to go on. Without one it
    is removed.
    """

    offset: int
    """Bytes that are there already."""

    def __init__(self, blobs: Blobs, path: Path, expected: Descriptor | None) -> None:
        self._blobs = blobs
        self._expected = expected
        self._path = path
        self._handle = -1
        self._keep = expected is not None
        self._hasher = hashlib.sha256()
        self.offset = 0

    def __enter__(self) -> Self:
        self._blobs.scratch()
        with translate_os_errors("write a blob", self._path):
            self._handle = self._open()
            try:
                self._take_over()
            except BaseException:
                os.close(self._handle)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle < 0:
            return
        if not self._keep or self.offset == 0 or isinstance(error, (DigestMismatch, DiskFull)):
            self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = -1

    def write(self, data: Buffer) -> None:
        """Append `data`."""
        view = memoryview(data).cast("B")
        with translate_os_errors("write a blob", self._path):
            written = 0
            while written < len(view):
                written += os.pwrite(self._handle, view[written:], self.offset + written)
        self._hasher.update(view)
        self.offset += len(view)

    def fill(self, pieces: Callable[[int], Iterable[Buffer]], progress: Progress, *, origin: str) -> int:
        """Append what `pieces(offset)` gives until the blob is whole; return the bytes appended.

        Starts again from zero where the bytes that were there turn out to be wrong. `progress` advances by these too.
        Raises DigestMismatch, naming `origin`, where `pieces` are not what the descriptor says.
        """
        kept = self.offset
        progress.advance(kept)
        appended = self._append(pieces, progress, origin)
        if kept and not self.matches():
            progress.advance(-self.offset)
            self.restart()
            appended += self._append(pieces, progress, origin)
        if self._expected is not None and not self.matches():
            raise mismatch(self._expected.digest, origin, expected=self._expected.size, found=self.offset)
        return appended

    def _append(self, pieces: Callable[[int], Iterable[Buffer]], progress: Progress, origin: str) -> int:
        begun = self.offset
        if self._expected is not None and begun == self._expected.size:
            return 0
        for piece in pieces(begun):
            count = memoryview(piece).nbytes
            if self._expected is not None and self.offset + count > self._expected.size:
                found = f"{self.offset + count} or more"
                raise mismatch(self._expected.digest, origin, expected=self._expected.size, found=found)
            self.write(piece)
            progress.advance(count)
        return self.offset - begun

    def restart(self) -> None:
        """Forget the bytes that are there."""
        with translate_os_errors("write a blob", self._path):
            os.ftruncate(self._handle, 0)
        self._hasher = hashlib.sha256()
        self.offset = 0

    def matches(self) -> bool:
        """Whether the bytes are those that the descriptor names."""
        return self._expected is None or (
            self.offset == self._expected.size and "sha256:" + self._hasher.hexdigest() == self._expected.digest
        )

    def commit(self) -> tuple[Digest, int]:
        """Make the blob visible; return its digest and size. Raises DigestMismatch where the descriptor differs."""
        digest = Digest("sha256:" + self._hasher.hexdigest())
        if self._expected is not None and not self.matches():
            raise mismatch(self._expected.digest, self._path, expected=self._expected.size, found=self.offset)
        with translate_os_errors("write a blob", self._path):
            os.fsync(self._handle)
        self._blobs.settle(self._path, digest)
        os.close(self._handle)
        self._handle = -1
        return digest, self.offset

    def _open(self) -> int:
        handle, path = open_locked(lambda: self._path, otherwise=lambda: self._blobs.scratch(".part"))
        if path != self._path:
            # Another process is at this very blob. Both write it, each its own file; the last rename wins.
            self._path = path
            self._keep = False
        return handle

    def _take_over(self) -> None:
        size = os.fstat(self._handle).st_size
        if self._expected is None or size > self._expected.size:
            os.ftruncate(self._handle, 0)
            return
        while chunk := os.pread(self._handle, BLOCK, self.offset):
            self._hasher.update(chunk)
            self.offset += len(chunk)


def mismatch(
    digest: str, origin: Path | str, *, expected: int | None = None, found: int | str | None = None
) -> DigestMismatch:
    """The error for bytes from a file or a remote that are not those of `digest`."""
    sizes = None if found is None or found == expected else f"{found} bytes instead of {expected}"
    return DigestMismatch(
        f"the bytes of {origin} are not those of {digest}" + (f": {sizes}" if sizes else ""),
        cause=sizes or "at least one bit differs",
        hint="run `deltareg cache fsck`, then pull again",
        digest=digest,
    )
