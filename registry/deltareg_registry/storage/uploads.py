"""Blobs that are being sent: their bytes are in the storage before it is known whether they are the right ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from deltareg.digest import Digest
from deltareg.errors import DigestMismatch

__all__ = ["NOTHING_YET", "Progress", "Run", "UploadWriter", "Uploads", "other_digest"]


@dataclass(frozen=True)
class Run:
    """`count` pieces of `size` bytes each, which one request wrote; `label` begins their names."""

    label: str
    size: int
    count: int


@dataclass(frozen=True)
class Progress:
    """How far an upload has come: its bytes, and the pieces that hold them where the storage keeps pieces."""

    size: int = 0
    runs: tuple[Run, ...] = ()

    def with_piece(self, label: str, size: int) -> Progress:
        """The progress after one more piece."""
        last = self.runs[-1] if self.runs else None
        if last is not None and (last.label, last.size) == (label, size):
            runs = (*self.runs[:-1], Run(label, size, last.count + 1))
        else:
            runs = (*self.runs, Run(label, size, 1))
        return Progress(self.size + size, runs)

    @property
    def parts(self) -> list[list[object]]:
        """The runs as the table of uploads has them."""
        return [[run.label, run.size, run.count] for run in self.runs]

    @classmethod
    def of(cls, size: int, parts: Sequence[Sequence[object]]) -> Progress:
        """The progress that the table of uploads tells of."""
        return cls(size, tuple(Run(str(label), int(str(one)), int(str(count))) for label, one, count in parts))


NOTHING_YET = Progress()


class UploadWriter(Protocol):
    """Takes the next bytes of one upload, in the order in which they belong."""

    piece: int
    """How many bytes it takes at a time, but for the last."""

    @property
    def progress(self) -> Progress:
        """What has been written."""
        ...

    def write(self, data: Sequence[bytes | memoryview]) -> None:
        """Write what follows, one part behind the other. Raises DiskFull, BucketUnavailable, NotAllowed:
        `progress` is then as before.
        """
        ...


class Uploads(Protocol):
    """Where the bytes of uploads lie. Its methods may be called from any thread, in any process."""

    def exclusive(self, identity: str) -> AbstractContextManager[None]:
        """Keep other requests from writing to an upload. Raises Busy where one does, where that can be known."""
        ...

    def writer(self, identity: str, progress: Progress) -> AbstractContextManager[UploadWriter]:
        """Go on where an upload is; what was written after that is dropped."""
        ...

    def finish(self, identity: str, progress: Progress, digest: Digest) -> None:
        """Let the bytes be seen as the blob of this digest. Raises DigestMismatch where they have another one."""
        ...

    def store(self, digest: Digest, size: int, pieces: Iterable[bytes]) -> None:
        """Let bytes that come piece by piece be seen as the blob of this digest, without an upload; `size`: how many.

        Raises DigestMismatch where they have another one, DiskFull, NotAllowed, BucketUnavailable: none are seen then.
        """
        ...

    def remove(self, identity: str) -> None:
        """Drop the bytes of an upload."""
        ...

    def identities(self, before: float) -> list[str]:
        """The uploads of which there are bytes, all of them written before a time (seconds since 1970)."""
        ...


def other_digest(found: str, expected: Digest) -> DigestMismatch:
    """The error of an upload whose bytes are not what was said."""
    return DigestMismatch(
        f"what was sent has the digest {found}, not {expected}", hint="send it again", found=found, expected=expected
    )
