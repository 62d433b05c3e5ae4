"""Writing a checkpoint: preallocated files in a hidden directory beside the goal, then one rename."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deltareg.checkpoint.header import encode_header, lay_out
from deltareg.checkpoint.journal import Block, Journal, block_digest, finished_in, journals_in
from deltareg.checkpoint.layout import INDEX_FILE, index_json, output_path
from deltareg.checkpoint.reader import Tensor
from deltareg.checkpoint.source import bytes_of
from deltareg.checkpoint.staging import (
    adopt_stale,
    check_free,
    create_staging,
    is_locked,
    left_beside,
    publish,
    remove_stale,
)
from deltareg.closing import Closing
from deltareg.errors import BadCheckpoint, DiskFull, NotAllowed, translate_os_errors
from deltareg.progress import Progress
from deltareg.threads import in_order

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["CheckpointWriter", "Job", "Member", "Seal", "ShardPlan"]

_BLOCK = 4 * 2**20
_COPY_STEP = 64 * 2**20
_NO_COPY_RANGE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY)
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


Seal = Callable[[Path | None, Sequence[str]], Mapping[str, bytes]]
"""What an output is sealed with once all else is written: files made of its directory and of its files' names.

There is no directory where the output goes to an object store.
"""


@dataclass(frozen=True)
class ShardPlan:
    """One safetensors file to write: tensors as (name, dtype, shape), laid out in this order."""

    file: str
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Job:
    """What is written, so that it can be gone on with after a kill.

    `digest` stands for everything that decides the output's bytes. With `resume` a directory that a killed writer of
    the same job has left is gone on with, and what is written stays for the next one should this one fail.
    """

    digest: str
    resume: bool


@dataclass(frozen=True)
class Member:
    """One of several processes that write one checkpoint: its number, and the tensors that it writes.

    Member 0 makes the directory, which the others open as `staging`, and commits.
    """

    number: int
    tensors: Collection[str]
    staging: Path | None = None


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
    a killed process left, and nothing else. `warnings` are what whoever started it should know.
    """

    def __init__(
        self,
        out: Path | str,
        shards: Sequence[ShardPlan],
        *,
        overwrite: bool = False,
        job: Job | None = None,
        member: Member | None = None,
    ) -> None:
        """Create and preallocate the files.

        With a `job` a journal is kept, after `vouch`, of what is finished. Raises OutputExists unless `out` is absent
        or an empty directory (with `overwrite`: or a checkpoint), DiskFull if the tensors do not fit, NotAllowed where
        nothing may be written.
        """
        # A link is followed: a rename would replace the link, not what it points to.
        self.out = Path(os.path.realpath(out))
        self._overwrite = overwrite
        self._job = job
        self._member = member
        self._keep = False
        self.warnings: list[str] = []
        self._journal: Journal | None = None
        self._noted: dict[str, list[Block]] = {}
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
        joined = None if member is None else member.staging
        try:
            with translate_os_errors("create the output", self.out):
                if joined is None:
                    self._begin({plan.file for plan in shards})
                else:
                    self._directory = joined
                    self._has_finished(joined)
                self._reserve(shards, headers)
        except BaseException:
            self.close()
            raise
        self._keep = self._is_resumable()

    @property
    def staging(self) -> Path:
        """The directory in which the output is built."""
        return self._open_directory()

    def recover(self, names: Collection[str], threads: int = 1) -> frozenset[str]:
        """Those of `names` that an earlier writer of the same job has finished, read again and found as it noted them.

        They count as written.
        """
        noted, self._noted = self._noted, {}
        checks = (
            partial(self._is_as_noted, name, noted[name]) for name in names if noted.get(name) and self._is_own(name)
        )
        found = frozenset(name for name in in_order(checks, threads) if name is not None)
        for name in found:
            self._count(self._places[name], self._places[name].nbytes)
        return found

    def vouch(self) -> None:
        """Tell that the inputs are sound, so that what is finished from now on may be gone on with."""
        if self._job is not None:
            number = 0 if self._member is None else self._member.number
            self._journal = Journal(self._open_directory(), self._job.digest, number)

    def discard(self) -> None:
        """Let nothing stay when the writer is closed."""
        self._keep = False

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
        if self._journal is not None:
            self._journal.note(tensor, offset, view)
        if self._count(place, len(view)) and self._journal is not None:
            self._journal.finish(tensor)

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

    def copy_part(self, tensor: str, offset: int, nbytes: int, source: Tensor) -> bool:
        """Write these bytes of a tensor from the same ones of another checkpoint, inside the kernel.

        False, and nothing of it counts as written, where that cannot be done, or what is written has to be noted.
        """
        place = self._places[tensor]
        if offset < 0 or offset + nbytes > min(place.nbytes, source.nbytes):
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not within {tensor!r} and its source")
        if self._journal is not None:
            return False
        if self._copied(place, source, offset, nbytes) < nbytes:
            return False
        self._count(place, nbytes)
        return True

    def add_file(self, relative: str, data: bytes) -> None:
        """Add a file such as `config.json` or `1_Pooling/config.json`. Raises BadCheckpoint where it may not lie."""
        with translate_os_errors("write the checkpoint", self.out):
            file = self._create(relative)
            os.ftruncate(file, 0)  # an earlier writer of the job may have come as far
            _write_all(file, memoryview(data), 0)

    def sync(self) -> None:
        """Make what this process has written durable. Raises RuntimeError where something of its own is missing."""
        own = self._places if self._member is None else self._member.tensors
        missing = [name for name in own if self._places[name].written < self._places[name].nbytes]
        if missing:
            raise RuntimeError(f"{len(missing)} tensors are not written: {', '.join(missing[:5])}")
        with translate_os_errors("write the checkpoint", self.out):
            for file in self._files.values():
                early = self._syncs.pop(file, None)
                if early is not None:
                    early.result()
                else:
                    os.fsync(file)

    def commit(self, seal: Seal | None = None) -> None:
        """Make the checkpoint durable and visible under its name. Raises OutputExists if another process was faster.

        The files that `seal` gives come last.
        """
        directory = self._open_directory()
        if len(set(self._weight_map.values())) > 1:
            sizes = {name: place.nbytes for name, place in self._places.items()}
            self.add_file(INDEX_FILE, index_json(self._weight_map, sizes))
        if seal is not None:
            for name, data in seal(directory, sorted(self._files)).items():
                self.add_file(name, data)
        self.sync()
        with translate_os_errors("write the checkpoint", self.out):
            self._keep = False  # without its journals nobody could go on with it
            for journal in journals_in(directory):
                journal.unlink()
            self._directory = publish(directory, self.out, overwrite=self._overwrite)
        self.close()

    def close(self) -> None:
        """Close the files, and remove them unless they were committed, or are kept for the next writer of the job."""
        self._syncing.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._journal is not None:
            self._journal.close()
        joined = self._member is not None and self._member.staging is not None
        if self._directory is not None and not self._keep and not joined:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _begin(self, shards: Collection[str]) -> None:
        """Make the directory, or take the one of the same job that a killed writer has left."""
        if self._job is not None and self._job.resume:
            adopted = adopt_stale(self.out, self._has_finished)
            if adopted is not None:
                self._directory, self._held = adopted
                self._keep = True
        # Who is refused removes nothing that another could go on with.
        remove_stale(self.out, keep=lambda path: bool(journals_in(path)))
        check_free(self.out, self._overwrite)
        remove_stale(self.out)
        if self._directory is not None:
            _remove_others(self._directory, shards)
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._directory, self._held = create_staging(self.out)
        if self._job is not None and self._job.resume and not self._is_resumable():
            self.warnings.append(_without_locks(self.out, self._directory))

    def _is_resumable(self) -> bool:
        """Whether the next writer of the job can go on with what this one leaves."""
        return self._job is not None and self._job.resume and self._held >= 0 and is_locked(self._held)

    def _has_finished(self, directory: Path) -> bool:
        """Whether an earlier writer of the job has finished tensors in a directory; what it noted is kept for later."""
        if self._job is not None and self._job.resume:
            self._noted = finished_in(directory, self._job.digest)
        return bool(self._noted)

    def _is_as_noted(self, name: str, blocks: Sequence[Block]) -> str | None:
        """The name of a tensor whose bytes are those that were noted; None for one that is to be written again."""
        place = self._places[name]
        due = 0
        for offset, length, digest in sorted(blocks):
            if offset != due or not 0 < length <= place.nbytes - offset:
                return None
            data = memoryview(bytearray(length))
            if os.preadv(place.file, [data], place.start + offset) != length or block_digest(data) != digest:
                return None
            due += length
        return name if due == place.nbytes else None

    def _open_directory(self) -> Path:
        if self._directory is None:
            raise ValueError("the writer is closed")
        return self._directory

    def _reserve(self, shards: Sequence[ShardPlan], headers: Sequence[bytes]) -> None:
        directory = self._open_directory()
        placed = [lay_out(plan.tensors) for plan in shards]
        sizes = [len(header) + (infos[-1].end if infos else 0) for header, infos in zip(headers, placed, strict=True)]
        free = shutil.disk_usage(directory).free + sum(_reserved(directory / plan.file) for plan in shards)
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
            self._missing[file] = sum(info.nbytes for info in infos if self._is_own(info.name))
            for info in infos:
                if info.name in self._places:
                    raise BadCheckpoint(f"tensor {info.name!r} is planned in two shards", tensor=info.name)
                self._places[info.name] = _Place(file, len(header) + info.start, info.nbytes)
                self._weight_map[info.name] = plan.file

    def _is_own(self, tensor: str) -> bool:
        return self._member is None or tensor in self._member.tensors

    def _create(self, relative: str) -> int:
        """Create a file of the output. Raises BadCheckpoint for a path that leads out of it, or is taken."""
        path = output_path(relative, self._files)
        place = self._open_directory() / path
        place.parent.mkdir(parents=True, exist_ok=True)
        self._files[path] = file = os.open(place, _FLAGS, 0o666)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise NotAllowed(f"{place} is not a file of its own", hint="remove it, and run this again", path=place)
        return file

    def _copy_range(self, place: _Place, source: Tensor, progress: Progress | None) -> int:
        """Copy all of a tensor inside the kernel as far as it goes; the bytes that were copied."""
        done = 0
        while done < place.nbytes:
            count = self._copied(place, source, done, min(_COPY_STEP, place.nbytes - done))
            if count == 0:
                break
            done += count
            if progress is not None:
                progress.advance(count)
        self._count(place, done)
        return done

    def _copied(self, place: _Place, source: Tensor, offset: int, nbytes: int) -> int:
        """Copy bytes of a tensor inside the kernel; how many it took."""
        origin = source.file_range()
        if origin is None or not hasattr(os, "copy_file_range"):
            return 0
        file, start = origin
        done = 0
        while done < nbytes:
            with translate_os_errors("write the checkpoint", self.out):
                try:
                    at = start + offset + done, place.start + offset + done
                    count = os.copy_file_range(file, place.file, nbytes - done, *at)
                except OSError as error:
                    if error.errno not in _NO_COPY_RANGE:
                        raise
                    count = 0
            if count == 0:
                break
            done += count
        return done

    def _count(self, place: _Place, count: int) -> bool:
        """Note that bytes were written, and begin to make a file durable once it has all of its own.

        Returns whether the tensor is complete with them.
        """
        with self._counting:
            place.written += count
            self._missing[place.file] -= count
            if count and self._missing[place.file] == 0:
                # The disk works on it while the other files are still computed.
                self._syncs[place.file] = self._syncing.submit(os.fsync, place.file)
            elif self._missing[place.file] < 0:  # something was written twice: the file is synced in the end
                self._syncs.pop(place.file, None)
            return place.written == place.nbytes


def _without_locks(out: Path, own: Path) -> str:
    """Why nothing is gone on with, and what lies about for that reason."""
    left = [path.name for path in left_beside(out) if path != own]
    told = f"; remove what others have left, once none of them is at work: {', '.join(left)}" if left else ""
    return (
        f"{out.parent} has no locks on directories, as NFS has none, so that a killed run cannot be told from one "
        f"that is at work: this one began anew, and none will go on with it{told}"
    )


def _remove_others(directory: Path, shards: Collection[str]) -> None:
    """Remove everything but the shards that are planned, and the journals: it would become a part of the output."""
    kept = {*(directory / shard for shard in shards), *journals_in(directory)}
    for path in directory.iterdir():
        if path not in kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _reserved(path: Path) -> int:
    """Bytes that a file of an earlier writer has already."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


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
