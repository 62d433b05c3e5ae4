"""Uploads as files: each is one that grows, and that is renamed once its digest is known to be right."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltareg.digest import Digest
from deltareg.errors import Busy
from deltareg_registry.storage.errors import translated
from deltareg_registry.storage.uploads import NOTHING_YET, Progress, other_digest

__all__ = ["FileUploads"]

PIECE = 1 << 20
# Written to the disk as it comes, so that the end does not wait for all of a large blob.
_FLUSH = 64 << 20
# What a process remembers of uploads that are between two requests.
_HASHES = 4096


class _Hash(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass
class _Hashed:
    """The hash of the first `size` bytes of an upload."""

    size: int
    state: _Hash


class FileUploads:
    """Uploads below `root`; `place` says where the file of a blob belongs."""

    def __init__(self, root: Path, place: Callable[[Digest], Path]) -> None:
        self._root = root / "uploads"
        self._place = place
        self._hashes: OrderedDict[str, _Hashed] = OrderedDict()
        self._mutex = threading.Lock()

    @contextmanager
    def exclusive(self, identity: str) -> Generator[None]:
        """Hold the lock of an upload's file. Raises Busy where another request has it."""
        with translated(None, "an upload"):
            file = self._open(identity)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(
                    "another request writes to this upload", hint="ask how far it is, and go on there", retry_after=1
                ) from error
            yield
        finally:
            os.close(file)

    @contextmanager
    def writer(self, identity: str, progress: Progress) -> Generator[_FileWriter]:
        """Go on at the end of what is known to have arrived."""
        path = self._path(identity)
        with translated(None, "an upload"):
            file = self._open(identity)
        try:
            with translated(None, "an upload"):
                os.ftruncate(file, progress.size)
            writer = _FileWriter(file, path, self._hash_of(identity, file, progress.size))
            try:
                yield writer
            finally:
                self._remember(identity, writer.hashed)
        finally:
            os.close(file)

    def finish(self, identity: str, progress: Progress, digest: Digest) -> None:
        """Check the digest, and rename the file once it is on the disk."""
        path, goal = self._path(identity), self._place(digest)
        with translated(None, "an upload"):
            file = self._open(identity)
            try:
                os.ftruncate(file, progress.size)
                found = f"sha256:{self._hash_of(identity, file, progress.size).state.hexdigest()}"
                if found != digest:
                    raise other_digest(found, digest)
                os.fchmod(file, 0o644)
                # To a collector, an old file that no row tells of would be one that was left behind.
                os.utime(file)
                os.fsync(file)
            finally:
                os.close(file)
            if not goal.parent.is_dir():
                goal.parent.mkdir(parents=True, exist_ok=True)
                _sync_directory(goal.parent.parent)
            # One that is there already has the same bytes, or is damaged: either may be replaced.
            path.rename(goal)
            _sync_directory(goal.parent)
        with self._mutex:
            self._hashes.pop(identity, None)

    def store(self, digest: Digest, size: int, pieces: Iterable[bytes]) -> None:
        """Write a file of no upload beside those of uploads, and put it into place as one of them is."""
        identity = secrets.token_hex(16)
        try:
            # Held, so that no collector takes it for one that was left behind.
            with self.exclusive(identity):
                with self.writer(identity, NOTHING_YET) as writer:
                    for piece in pieces:
                        writer.write([piece])
                self.finish(identity, writer.progress, digest)
        except BaseException:
            # Of one that was killed, the collector removes the file.
            self.remove(identity)
            raise

    def remove(self, identity: str) -> None:
        """Remove an upload's file, if there is one."""
        with translated(None, "an upload"):
            self._path(identity).unlink(missing_ok=True)
        with self._mutex:
            self._hashes.pop(identity, None)

    def identities(self, before: float) -> list[str]:
        """The files that were written last before a time."""
        found: list[str] = []
        with translated(None, "an upload"), suppress(FileNotFoundError):
            for entry in os.scandir(self._root):
                with suppress(FileNotFoundError):
                    if entry.stat().st_mtime < before:
                        found.append(entry.name)
        return found

    def _path(self, identity: str) -> Path:
        return self._root / identity

    def _open(self, identity: str) -> int:
        path = self._path(identity)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self._root.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _hash_of(self, identity: str, file: int, size: int) -> _Hashed:
        """The hash of what has arrived: remembered, or computed anew where another process received it."""
        with self._mutex:
            found = self._hashes.pop(identity, None)
        if found is not None and found.size == size:
            return found
        fresh = _Hashed(0, hashlib.sha256())
        while fresh.size < size:
            data = os.pread(file, min(PIECE, size - fresh.size), fresh.size)
            if not data:
                # The file is shorter than the database tells: a disk lost it. The digest will say so.
                break
            fresh.state.update(data)
            fresh.size += len(data)
        return fresh

    def _remember(self, identity: str, hashed: _Hashed) -> None:
        with self._mutex:
            self._hashes[identity] = hashed
            while len(self._hashes) > _HASHES:
                self._hashes.popitem(last=False)


class _FileWriter:
    """Appends to the file of an upload."""

    piece = PIECE

    def __init__(self, file: int, path: Path, hashed: _Hashed) -> None:
        self._file = file
        self._path = path
        self._flushed = hashed.size
        self.hashed = hashed

    @property
    def progress(self) -> Progress:
        """The bytes that were written."""
        return Progress(self.hashed.size)

    def write(self, data: Sequence[bytes | memoryview]) -> None:
        """Append."""
        end = self.hashed.size
        with translated(None, "an upload"):
            for part in data:
                done = 0
                while done < len(part):
                    done += os.pwrite(self._file, memoryview(part)[done:], end + done)
                end += done
        for part in data:
            self.hashed.state.update(part)
        self.hashed.size = end
        if self.hashed.size - self._flushed >= _FLUSH:
            with translated(None, "an upload"):
                os.fdatasync(self._file)
            self._flushed = self.hashed.size


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
