"""Writing a checkpoint to an object store: uploads that nobody sees until the commit completes them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltareg.checkpoint.bucket import BucketName, library, listed, open_store, status_of, translated
from deltareg.checkpoint.header import encode_header, lay_out
from deltareg.checkpoint.layout import INDEX_FILE, belongs, index_json, output_path
from deltareg.checkpoint.reader import Tensor
from deltareg.checkpoint.source import bytes_of
from deltareg.checkpoint.upload import Upload, Uploads
from deltareg.checkpoint.writer import Seal, ShardPlan
from deltareg.closing import Closing
from deltareg.errors import BadCheckpoint, DeltaregError, OutputExists
from deltareg.progress import Progress

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["BucketWriter", "check_place", "sending_bytes"]

_BLOCK = 4 * 2**20
_PART = 8 * 2**20
_MOST_PARTS = 9_999  # S3 and GCS take 10,000, and what is left over is one
_IN_FLIGHT = 6
# Of shards that are larger than a part two are sent at a time: the end of one, and the beginning of the next.
_SENT_AT_A_TIME = 2
# What was sent is not always given back: measured with glibc, 132 MB for 56 MB of parts.
_KEPT_BY_ALLOCATOR = 2
_REQUESTS = 8
_SHOWN = 5
_CONFIG = "config.json"


@dataclass
class _Place:
    """Where a tensor lies in the output, and how much of it has been written."""

    file: str
    start: int
    nbytes: int
    written: int = 0


class BucketWriter(Closing):
    """Writes one checkpoint below a prefix, with the methods of `CheckpointWriter`.

    The shards are multipart uploads, which show nothing before they are completed. `commit` completes them; the files
    by which readers find the weights come last: the index, or the only shard, then `config.json`. Without it, and on
    every exception, the uploads are aborted. Only a killed process leaves parts, which no listing shows: the bucket's
    lifecycle rule for incomplete uploads removes them.
    """

    def __init__(
        self, out: BucketName, shards: Sequence[ShardPlan], *, overwrite: bool = False, memory: int | None = None
    ) -> None:
        """Begin the uploads; `memory` bounds the bytes that wait for their turn.

        Raises OutputExists unless nothing is there (with `overwrite`: nothing but a checkpoint), NotAllowed,
        CheckpointNotFound for a bucket that does not exist, BucketUnavailable.
        """
        self.out = out
        self._overwrite = overwrite
        self._places: dict[str, _Place] = {}
        self._counting = threading.Lock()
        self._small: dict[str, bytes] = {}
        self._shards: dict[str, _Object] = {}
        self._weight_map: dict[str, str] = {}
        headers = [encode_header(plan.tensors, plan.metadata) for plan in shards]
        self._store = open_store(out)
        self._before = _found(self._store, out, overwrite)
        self._uploads = Uploads() if memory is None else Uploads(memory)
        self.warnings: list[str] = []
        self._open = True
        try:
            for plan, header in zip(shards, headers, strict=True):
                self._begin(plan, header)
        except BaseException:
            self.close()
            raise

    def write(self, tensor: str, offset: int, data: Buffer) -> None:
        """Write `data` at a byte offset of a tensor, once. May be called from many threads. Waits for the network."""
        self._refuse_closed()
        place = self._places[tensor]
        view = bytes_of(data)
        if offset < 0 or offset + len(view) > place.nbytes:
            raise ValueError(
                f"bytes {offset} to {offset + len(view)} are not within {tensor!r} of {place.nbytes} bytes"
            )
        self._uploads.give(self._shards[place.file].upload, place.start + offset, view)
        with self._counting:
            place.written += len(view)

    def copy(self, tensor: str, source: Tensor, progress: Progress | None = None) -> None:
        """Write all of a tensor from another checkpoint."""
        nbytes = self._places[tensor].nbytes
        if source.nbytes != nbytes:
            raise ValueError(f"{tensor!r} has {nbytes} bytes, its source {source.nbytes}")
        buffer = memoryview(bytearray(min(_BLOCK, nbytes)))
        for done in range(0, nbytes, _BLOCK):
            block = buffer[: nbytes - done]
            source.read_into(done, block)
            self.write(tensor, done, block)
            if progress is not None:
                progress.advance(len(block))

    def copy_part(self, tensor: str, offset: int, nbytes: int, source: Tensor) -> bool:
        """As `CheckpointWriter.copy_part`; nothing is copied on its way to an object store."""
        return False

    def add_file(self, relative: str, data: bytes) -> None:
        """Add a file such as `config.json` or `1_Pooling/config.json`. Raises BadCheckpoint where it may not lie."""
        self._refuse_closed()
        self._small[output_path(relative, {*self._small, *self._shards})] = data

    def commit(self, seal: Seal | None = None) -> None:
        """Complete the checkpoint under its name. Raises OutputExists if another process was faster.

        The files that `seal` gives are added.
        """
        self._refuse_closed()
        missing = [name for name, place in self._places.items() if place.written < place.nbytes]
        if missing or any(shard.upload.sent != shard.upload.size for shard in self._shards.values()):
            raise RuntimeError(f"{len(missing)} tensors are not written: {', '.join(missing[:5])}")
        if len(set(self._weight_map.values())) > 1:
            sizes = {name: place.nbytes for name, place in self._places.items()}
            self.add_file(INDEX_FILE, index_json(self._weight_map, sizes))
        if seal is not None:
            for name, data in seal(None, sorted([*self._small, *self._shards])).items():
                self.add_file(name, data)
        _Publication(self._store, self.out, self._before, overwrite=self._overwrite).publish(self._small, self._shards)
        self.close()

    def recover(self, names: Collection[str], threads: int = 1) -> frozenset[str]:
        """Nothing: of a killed upload nothing can be read again."""
        return frozenset()

    def vouch(self) -> None:
        """Nobody goes on with what is written."""

    def discard(self) -> None:
        """Nothing stays in any case."""

    def sync(self) -> None:
        """What an object store has taken is durable."""

    def close(self) -> None:
        """Abort the uploads that were not completed."""
        if not self._open:
            return
        self._open = False
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(_Object.abort, self._shards.values()))
        self._uploads.close()

    def _refuse_closed(self) -> None:
        if not self._open:
            raise ValueError("the writer is closed")

    def _begin(self, plan: ShardPlan, header: bytes) -> None:
        file = output_path(plan.file, self._shards)
        infos = lay_out(plan.tensors)
        for info in infos:
            if info.name in self._places:
                raise BadCheckpoint(f"tensor {info.name!r} is planned in two shards", tensor=info.name)
            self._places[info.name] = _Place(file, len(header) + info.start, info.nbytes)
            self._weight_map[info.name] = file
        self._shards[file] = _Object(self._store, self.out, file, len(header) + (infos[-1].end if infos else 0))
        self._uploads.give(self._shards[file].upload, 0, header)


class _Object:
    """A shard on its way: parts of a size that leaves next to nothing over, which would be held until the commit.

    One that is smaller than a part is held as a whole, and put in one request.
    """

    def __init__(self, store: Any, out: BucketName, file: str, size: int) -> None:
        self.file = file
        self._out = out
        self._done = False
        part = _part_size(size) or size + 1
        self._writer = library().open_writer(store, out.key(file), buffer_size=part, max_concurrency=_IN_FLIGHT)
        self.upload = Upload(file, size, self._send)

    def _send(self, data: bytes) -> None:
        with translated(self._out, self.file):
            self._writer.write(data)

    def complete(self) -> None:
        """Make the object visible; where that fails, obstore aborts it."""
        self._done = True
        with translated(self._out, self.file):
            self._writer.close()

    def abort(self) -> None:
        """Remove what was sent, as far as the store can be reached."""
        if not self._done:
            self._done = True
            with suppress(Exception):
                self._writer.__exit__(InterruptedError, None, None)


def _part_size(size: int) -> int:
    """The size of the parts of an object, 0 for one that is put as a whole."""
    parts = min(size // _PART, _MOST_PARTS)
    return size // parts if parts else 0


def sending_bytes(sizes: Sequence[int]) -> int:
    """About how many bytes of shards of these sizes are on their way at most, beside those that wait for their turn."""
    wholes = sum(size for size in sizes if not _part_size(size))
    parts = sorted((min(size, (_IN_FLIGHT + 1) * _part_size(size)) for size in sizes if _part_size(size)), reverse=True)
    return wholes + _KEPT_BY_ALLOCATOR * sum(parts[:_SENT_AT_A_TIME])


class _Publication:
    """The steps that make an output visible, and what is done where one fails.

    A store has no transaction. So the first file is put on condition that nobody else has: it claims the place. Where
    an old checkpoint is overwritten whose shards have the same names, its index and the shard that is completed last
    are removed first: until the last shard is there the set has a gap, and nobody takes the mixture for a checkpoint.
    """

    def __init__(self, store: Any, out: BucketName, before: Mapping[str, Any], *, overwrite: bool) -> None:
        self._store = store
        self._out = out
        self._before = dict(before)
        self._overwrite = overwrite
        self._written: list[str] = []

    def publish(self, small: Mapping[str, bytes], shards: Mapping[str, _Object]) -> None:
        """Do all of it. Raises OutputExists if another process was faster."""
        self._refuse_changes()
        stale = self._before.keys() - small.keys() - shards.keys()
        try:
            for name in sorted(small.keys() - {INDEX_FILE, _CONFIG}, key=lambda name: (name != "README.md", name)):
                self._put(name, small[name])
            self._complete(list(shards.values()))
            for name in (INDEX_FILE, _CONFIG):
                if name in small:
                    self._put(name, small[name])
        except BaseException as error:
            self._undo(error)
            raise
        self._delete(stale)

    def _refuse_changes(self) -> None:
        now = _found(self._store, self._out, self._overwrite)
        if {name: meta["e_tag"] for name, meta in now.items()} != {
            name: meta["e_tag"] for name, meta in self._before.items()
        }:
            raise _exists(self._out, "another process wrote it meanwhile")

    def _put(self, name: str, data: bytes) -> None:
        put, key, exceptions = library().put, self._out.key(name), library(".exceptions")
        with translated(self._out, name):
            try:
                put(self._store, key, data, mode=self._condition(name))
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                raise _exists(self._out, "another process wrote it meanwhile") from None
            except (exceptions.BaseError, NotImplementedError) as error:
                self._written.append(name)  # it may have arrived all the same
                if status_of(error) != 501 and not isinstance(
                    error, (NotImplementedError, exceptions.NotSupportedError)
                ):
                    raise
                put(self._store, key, data, use_multipart=False)  # the store knows no conditions
        self._written.append(name)

    def _condition(self, name: str) -> str | dict[str, str]:
        """Nobody else may have put the object, or another one than was found."""
        meta = self._before.get(name)
        if meta is None:
            return "create"
        found = {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}
        return found or "overwrite"

    def _complete(self, shards: Sequence[_Object]) -> None:
        *others, last = sorted(shards, key=lambda shard: shard.file)
        if others and any(shard.file in self._before for shard in shards):
            self._delete([name for name in self._before if name.endswith(".index.json")] + [last.file])
        self._written.extend(shard.file for shard in shards)
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(_Object.complete, others))
        last.complete()

    def _undo(self, error: BaseException) -> None:
        """Remove what was made visible, but for what stands in the place of an old file."""
        with suppress(DeltaregError):
            self._delete(name for name in self._written if name not in self._before)
        if isinstance(error, DeltaregError) and set(self._written) & self._before.keys():
            error.hint = f"{self._out.text} is neither the old checkpoint nor the new one now: run this again"

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with translated(self._out, name), suppress(FileNotFoundError):
                library().delete(self._store, self._out.key(name))
            self._before.pop(name, None)


def check_place(out: BucketName, overwrite: bool) -> None:
    """Raise OutputExists unless nothing lies at `out`; with `overwrite` it may be a checkpoint, and nothing else."""
    _found(open_store(out), out, overwrite)


def _found(store: Any, out: BucketName, overwrite: bool) -> dict[str, dict[str, Any]]:
    """The objects of the checkpoint that lies at `out`, by path. Raises OutputExists as `check_place` does."""
    if out.prefix:
        with translated(out), suppress(FileNotFoundError):
            if library().head(store, out.prefix)["size"]:  # a directory's mark has none
                raise _exists(out, "it is an object")
    found: dict[str, dict[str, Any]] = {}
    strangers: list[str] = []
    for meta in listed(store, out):
        name = out.relative(meta["path"])
        if not name:  # the mark of the directory itself
            continue
        if not overwrite:
            raise _exists(out, f"there are objects below it, such as {name}")
        if belongs(name):
            found[name] = meta
        else:
            strangers.append(name)
            if len(strangers) > _SHOWN:  # there may be millions
                break
    # Overwriting removes all that is there: only for what is a checkpoint and nothing else.
    if strangers or (found and not any(name.endswith(".safetensors") for name in found)):
        shown = sorted(strangers or found)
        more = ", …" if len(shown) > _SHOWN else ""
        told = ", ".join(shown[:_SHOWN]) + more
        raise _exists(out, f"it holds other things than a checkpoint, and is not overwritten: {told}")
    return found


def _exists(out: BucketName, cause: str) -> OutputExists:
    return OutputExists(
        f"the output exists already: {out.text}", cause=cause, hint="choose another output", path=out.text
    )
