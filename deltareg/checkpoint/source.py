"""Where the bytes of a checkpoint come from: exact reads at an offset, from any thread, and folders of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from deltareg.errors import BadCheckpoint, BadHeader, CheckpointNotFound, translate_os_errors

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    import typing_extensions
    from numpy.typing import NDArray

    # numpy declares its arrays as buffers from Python 3.12 on.
    Buffer: TypeAlias = typing_extensions.Buffer | NDArray[Any]

__all__ = ["ByteSource", "FileSource", "Folder", "LocalFolder", "bytes_of", "too_large", "truncated"]


class ByteSource(Protocol):
    """A file of known size that is read at offsets. Reads may come from any thread."""

    @property
    def name(self) -> str:
        """The file's name, as errors give it."""
        ...

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        ...

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill the writable, contiguous `buffer` with the bytes from `offset` on. Raises BadHeader where they end."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises BadHeader where they end."""
        ...

    def close(self) -> None:
        """Give back what the source holds. It is not read again."""
        ...


class Folder(Protocol):
    """The files of one checkpoint: a directory, or a model on the hub."""

    @property
    def label(self) -> str:
        """How errors call the folder."""
        ...

    def names(self) -> Sequence[str]:
        """The files at the top, and `config.json` of each directory there: POSIX names, sorted."""
        ...

    def open(self, name: str) -> ByteSource:
        """Open one file. Raises CheckpointNotFound."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """One small file as a whole. Raises BadCheckpoint if it has more than `limit` bytes."""
        ...


def bytes_of(buffer: Buffer) -> memoryview:
    """A C-contiguous `buffer` as a flat view of its bytes."""
    view = memoryview(cast("typing_extensions.Buffer", buffer))
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def truncated(name: str, byte: int, size: int) -> BadHeader:
    """The error of a read that found the file's end before it was full."""
    return BadHeader(
        f"{name} is truncated: it ends before byte {byte}, {size} bytes were expected",
        cause="the file is shorter than when it was opened, or than its header says",
        file=name,
        tensor=None,
        byte=byte,
    )


def too_large(name: str, label: str, size: int, limit: int) -> BadCheckpoint:
    """The error of a file that is larger than such a file is."""
    return BadCheckpoint(f"{name} of {label} has {size} bytes, at most {limit} are read", file=name)


class FileSource:
    """A file on disk, read with `pread`.

    Not memory-mapped: a file that shrinks while it is read gives an error here, where a mapping would kill the process.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or path.name
        with translate_os_errors("open the checkpoint", path):
            # O_NONBLOCK: opening a named pipe must not wait for a writer.
            try:
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError as error:
                raise CheckpointNotFound(f"{path} does not exist", path=path) from error
            status = os.fstat(self._file)
        self.size = status.st_size
        self.stamp = f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointNotFound(f"{path} is not a regular file", path=path)

    def fileno(self) -> int:
        """The open file descriptor."""
        return self._file

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises BadHeader where the file is too short."""
        view = bytes_of(buffer)
        done = 0
        with translate_os_errors("read the checkpoint", self.name):
            while done < len(view):
                count = os.preadv(self._file, [view[done:]], offset + done)
                if count == 0:
                    raise truncated(self.name, offset + done, self.size)
                done += count

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises BadHeader where the file is too short."""
        if offset + length > self.size:  # before the buffer is allocated
            raise truncated(self.name, self.size, offset + length)
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LocalFolder:
    """A directory on disk."""

    def __init__(self, root: Path, label: str | None = None) -> None:
        self.root = root
        self.label = label or str(root)

    def names(self) -> Sequence[str]:
        """The regular files at the top, and `config.json` of each directory there."""
        found: list[str] = []
        with translate_os_errors("list the checkpoint", self.root), os.scandir(self.root) as entries:
            for entry in entries:
                if entry.is_file():
                    found.append(entry.name)
                elif not entry.name.startswith(".") and (self.root / entry.name / "config.json").is_file():
                    found.append(f"{entry.name}/config.json")
        return sorted(found)

    def open(self, name: str) -> FileSource:
        """Open one file."""
        return FileSource(self.root / name, name)

    def read(self, name: str, limit: int) -> bytes:
        """One small file as a whole."""
        source = FileSource(self.root / name, name)
        try:
            if source.size > limit:
                raise too_large(name, self.label, source.size, limit)
            return source.read(0, source.size)
        finally:
            source.close()
