"""Writing a checkpoint: preallocated files in a hidden directory beside the goal, then one rename."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltareg.checkpoint.header import encode_header, lay_out
from deltareg.checkpoint.layout import INDEX_FILE, index_json, output_path
from deltareg.checkpoint.reader import Tensor
from deltareg.checkpoint.source import bytes_of
from deltareg.checkpoint.staging import check_free, create_staging, publish, remove_stale
from deltareg.closing import Closing
from deltareg.errors import BadCheckpoint, DiskFull, translate_os_errors
from deltareg.progress import Progress

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["CheckpointWriter", "ShardPlan"]

_BLOCK = 4 * 2**20
_COPY_STEP = 64 * 2**20
_NO_COPY_RANGE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True)
class ShardPlan:
    """One safetensors file to write: tensors as (name, dtype, shape), laid out in this order."""

    file: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class _Place:
    """Where a tensor lies in the output, and how much of it has been written."""

    file: int
    start: int
    nbytes: int
    written: int = 0


class CheckpointWriter(Closing):
    """Writes one checkpoint directory, all or nothing.

        with CheckpointWriter(out, plans) as writer:
            writer.write("embed.weight", 0, data)
            writer.commit()

    The files are built in `.NAME.deltareg-RANDOM` beside `out` and appear by one rename in `commit`. Without it, and
    on every exception, nothing stays. The directory is locked, so that the next writer to the same `out` removes what
    a killed process left, and nothing else.
    """

    def __init__(self, out: Path | str, shards: Sequence[ShardPlan], *, overwrite: bool = False) -> None:
        """Create and preallocate the files.

        Raises OutputExists unless `out` is absent or an empty directory (with `overwrite`: or a checkpoint), DiskFull
        if the tensors do not fit, NotAllowed where nothing may be written.
        """
        # A link is followed: a rename would replace the link, not what it points to.
        self.out = Path(os.path.realpath(out))
        self._overwrite = overwrite
        self._files: dict[str, int] = {}
        self._places: dict[str, _Place] = {}
        self._counting = threading.Lock()
        self._missing: dict[int, int] = {}
        self._syncs: dict[int, Future[None]] = {}
        self._syncing = ThreadPoolExecutor(1, thread_name_prefix="deltareg-sync")
        self._directory: Path | None = None
        self._held = -1
        self._weight_map: dict[str, str] = {}
        headers = [encode_header(plan.tensors, plan.metadata) for plan in shards]
        remove_stale(self.out)
        check_free(self.out, overwrite)
        try:
            with translate_os_errors("create the output", self.out):
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self._directory, self._held = create_staging(self.out)
                self._reserve(shards, headers)
        except BaseException:
            self.close()
            raise

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Write `data` at a byte offset of a tensor. May be called from many threads. Raises DiskFull."""
        place = self._places[tensor]
        view = bytes_of(data)
        if offset < 0 or offset + len(view) > place.nbytes:
            raise ValueError(
                f"bytes {offset} to {offset + len(view)} are not within {tensor!r} of {place.nbytes} bytes"
            )
        with translate_os_errors("write the checkpoint", self.out):
            _write_all(place.file, view, place.start + offset)
        self._count(place, len(view))

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """Write all of a tensor from another checkpoint, inside the kernel where that is possible."""
        place = self._places[tensor]
        if source.nbytes != place.nbytes:
            raise ValueError(f"{tensor!r} has {place.nbytes} bytes, its source {source.nbytes}")
        done = self._copy_range(place, source, progress)
        buffer = memoryview(bytearray(min(_BLOCK, place.nbytes - done)))
        while done < place.nbytes:
            block = buffer[: place.nbytes - done]
            source.read_into(done, block)
            self.write(tensor, done, block)
            done += len(block)
            if progress is not None:
                progress.advance(len(block))

    def add_file(self, relative: str, data: bytes) -> None:
        """Add a file such as `config.json` or `1_Pooling/config.json`. Raises BadCheckpoint where it may not lie."""
        with translate_os_errors("write the checkpoint", self.out):
            _write_all(self._create(relative), memoryview(data), 0)

    def commit(self) -> None:
        """Make the checkpoint durable and visible under its name. Raises OutputExists if another process was faster."""
        directory = self._open_directory()
        missing = [name for name, place in self._places.items() if place.written < place.nbytes]
        if missing:
            raise RuntimeError(f"{len(missing)} tensors are not written: {', '.join(missing[:5])}")
        if len(set(self._weight_map.values())) > 1:
            sizes = {name: place.nbytes for name, place in self._places.items()}
            self.add_file(INDEX_FILE, index_json(self._weight_map, sizes))
        with translate_os_errors("write the checkpoint", self.out):
            for file in self._files.values():
                early = self._syncs.pop(file, None)
                if early is not None:
                    early.result()
                else:
                    os.fsync(file)
            self._directory = publish(directory, self.out, overwrite=self._overwrite)
        self.close()

    def close(self) -> None:
        """Close the files, and remove them unless they were committed."""
        self._syncing.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _open_directory(self) -> Path:
        if self._directory is None:
            raise ValueError("the writer is closed")
        return self._directory

    def _reserve(self, shards: Sequence[ShardPlan], headers: Sequence[bytes]) -> None:
        directory = self._open_directory()
        placed = [lay_out(plan.tensors) for plan in shards]
        sizes = [len(header) + (infos[-1].end if infos else 0) for header, infos in zip(headers, placed, strict=True)]
        free = shutil.disk_usage(directory).free
        if sum(sizes) > free:
            raise DiskFull(
                f"the output takes {sum(sizes)} bytes, {free} are free: {self.out}",
                hint="free some space or choose another disk, then run this again",
                path=self.out,
                needed=sum(sizes),
                free=free,
            )
        for plan, header, infos, size in zip(shards, headers, placed, sizes, strict=True):
            file = self._create(plan.file)
            _allocate(file, size)
            _write_all(file, memoryview(header), 0)
            self._missing[file] = sum(info.nbytes for info in infos)
            for info in infos:
                if info.name in self._places:
                    raise BadCheckpoint(f"tensor {info.name!r} is planned in two shards", tensor=info.name)
                self._places[info.name] = _Place(file, len(header) + info.start, info.nbytes)
                self._weight_map[info.name] = plan.file

    def _create(self, relative: str) -> int:
        """Create a file of the output. Raises BadCheckpoint for a path that leads out of it, or is taken."""
        path = output_path(relative, self._files)
        place = self._open_directory() / path
        place.parent.mkdir(parents=True, exist_ok=True)
        self._files[path] = file = os.open(place, _FLAGS, 0o666)
        return file

    def _copy_range(self, place: _Place, source: Tensor, progress: Progress | None) -> int:
        """Copy inside the kernel as far as it goes; the bytes that were copied."""
        origin = source.file_range()
        if origin is None or not hasattr(os, "copy_file_range"):
            return 0
        file, start = origin
        done = 0
        while done < place.nbytes:
            step = min(_COPY_STEP, place.nbytes - done)
            with translate_os_errors("write the checkpoint", self.out):
                try:
                    count = os.copy_file_range(file, place.file, step, start + done, place.start + done)
                except OSError as error:
                    if error.errno not in _NO_COPY_RANGE:
                        raise
                    count = 0
            if count == 0:
                break
            done += count
            if progress is not None:
                progress.advance(count)
        self._count(place, done)
        return done

    def _count(self, place: _Place, count: int) -> None:
        """Note that bytes were written, and begin to make a file durable once it has all of its own."""
        with self._counting:
            place.written += count
            self._missing[place.file] -= count
            if count and self._missing[place.file] == 0:
                # The disk works on it while the other files are still computed.
                self._syncs[place.file] = self._syncing.submit(os.fsync, place.file)
            elif self._missing[place.file] < 0:  # something was written twice: the file is synced in the end
                self._syncs.pop(place.file, None)


def _allocate(file: int, size: int) -> None:
    os.ftruncate(file, size)
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS):
            raise


def _write_all(file: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)
