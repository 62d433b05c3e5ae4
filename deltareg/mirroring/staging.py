"""Where blobs lie on their way from one remote to another."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltareg.digest import Digest
from deltareg.errors import translate_os_errors
from deltareg.manifest import Descriptor
from deltareg.progress import Progress
from deltareg.remote import Remote
from deltareg.store import Blobs, FileLock

__all__ = ["Staging"]

_WAIT_SECONDS = 1.0


class Staging:
    """A directory of blobs that are passed on, apart by repository. One process has it at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def held(self) -> Generator[Staging]:
        """Hold it. Raises Busy where another process does; NotAllowed, DiskFull."""
        with translate_os_errors("make a directory", self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        # No namespace is called so: each has a directory beside it.
        with FileLock(self.root / ".lock", wait=_WAIT_SECONDS).exclusive():
            yield self

    def carry(self, repository: str, blob: Descriptor, source: Remote, destination: Remote, progress: Progress) -> int:
        """Bring a blob from one remote to another; return its size. What was fetched before a cut is kept.

        Raises what `get_blob` and `put_blob` raise, and DigestMismatch where the source's bytes are wrong.
        """
        blobs = Blobs(self.root / repository)
        digest = Digest(blob.digest)
        if not blobs.has(digest):
            with blobs.resume(blob) as writer:
                writer.fill(lambda offset: source.get_blob(repository, blob, offset), progress, origin=source.url)
                writer.commit()
        else:
            progress.advance(blob.size)
        destination.put_blob(repository, blob, blobs.path(digest), _Quiet(progress))
        with suppress(OSError):
            blobs.place(digest).unlink()
        return blob.size


class _Quiet(Progress):
    """Hears of the second half of the way: it counts nothing, and may be stopped."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner

    def advance(self, count: int) -> None:
        self._inner.advance(0)
