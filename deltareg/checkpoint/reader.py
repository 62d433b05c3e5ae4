"""A checkpoint opened for reading: tensors by name, read at byte offsets, never whole unless asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, cast

from deltareg.checkpoint.header import Header, TensorInfo, read_header
from deltareg.checkpoint.hub import Hub
from deltareg.checkpoint.layout import ShardIndex, licence_of, side_files_of
from deltareg.checkpoint.locate import Located, locate
from deltareg.checkpoint.quantised import present
from deltareg.checkpoint.source import ByteSource, FileSource, Folder, bytes_of
from deltareg.closing import Closing
from deltareg.errors import BadCheckpoint, CheckpointNotFound, UsageError

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["Checkpoint", "Shard", "Tensor"]

_SIDE_FILE_LIMIT = 512 * 2**20
_CONFIG_LIMIT = 10 * 2**20
_README_LIMIT = 10 * 2**20
_REQUESTS = 8
_FAULTS_SHOWN = 10


class Tensor:
    """One tensor of a checkpoint, its bytes still on disk."""

    __slots__ = ("_info", "_source", "shard")

    def __init__(self, info: TensorInfo, source: ByteSource, shard: str) -> None:
        self._info = info
        self._source = source
        self.shard = shard

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self._info.name

    @property
    def dtype(self) -> str:
        """The data type, as safetensors calls it."""
        return self._info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; () for a scalar."""
        return self._info.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self._info.nbytes

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self._info.elements

    @property
    def start(self) -> int:
        """Where the data starts in the shard, in bytes."""
        return self._info.start

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on. Thread-safe. Raises BadHeader where the file ends."""
        view = bytes_of(buffer)
        self._check_range(offset, len(view))
        self._source.read_into(self._info.start + offset, view)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes of the tensor from `offset` on, all that follow by default. Thread-safe."""
        count = self.nbytes - offset if length is None else length
        self._check_range(offset, count)
        return self._source.read(self._info.start + offset, count)

    def file_range(self) -> tuple[int, int] | None:
        """The open file descriptor and the byte in it at which the data starts; None where it is no local file."""
        return (self._source.fileno(), self._info.start) if isinstance(self._source, FileSource) else None

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + length} are not within {self.name!r} of {self.nbytes} bytes")

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {list(self.shape)}, {self.shard!r})"


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint; `size` in bytes."""

    file: str
    metadata: dict[str, str]
    tensors: tuple[str, ...]
    size: int


class Checkpoint(Closing):
    """A model's weights and the files beside them, opened for reading.

    with Checkpoint.open("models/base") as base:
        first = base.tensors["embed.weight"].read(0, 4096)
    """

    def __init__(self, located: Located, sources: Sequence[ByteSource], headers: Sequence[Header]) -> None:
        self.id = located.id
        self.revision = located.revision
        self._located = located
        self._sources = sources
        names = located.folder.names()
        config = _read_config(located.folder) if "config.json" in names else None
        stored = [(info, source) for source, header in zip(sources, headers, strict=True) for info in header.tensors]
        presented = present(located.folder.label, config, stored)
        tensors = {info.name: (info, source) for info, source in presented.tensors}
        self.shards = tuple(
            Shard(file, header.metadata, tuple(one.name for one in header.tensors if one.name in tensors), header.size)
            for file, header in zip(located.weights.files, headers, strict=True)
        )
        self.tensors: Mapping[str, Tensor] = MappingProxyType(
            {name: Tensor(*tensors[name], shard.file) for shard in self.shards for name in shard.tensors}
        )
        self.config: Mapping[str, Any] | None = presented.config
        self.dequantised = presented.dequantised
        """Tensors that are scaled 8-bit floats in the files, and are read as bfloat16; `config` says so too."""
        self.licence: str | None = _read_licence(located.folder) if "README.md" in names else None
        self.side_files = tuple(Path(name) for name in side_files_of(names))

    @classmethod
    def open(
        cls,
        name: str | os.PathLike[str],
        *,
        offline: bool = False,
        headers_only: bool = False,
        hub: Hub | None = None,
        as_adapter: bool = False,
    ) -> Self:
        """Open a directory, a safetensors file, `hf://org/name[@revision]`, or `s3://bucket/prefix` (`gs://`, `az://`).

        With `headers_only` a model that is not in the local cache is not downloaded: its headers are read from the hub
        by byte ranges, and so is what is read of its tensors later. What lies in an object store is always read so.
        With `as_adapter` an adapter's weights are taken before a model's that lie beside them.
        Raises CheckpointNotFound, BadCheckpoint, BadHeader, PickleRefused, QuantisedRefused, UnsupportedFormat,
        HubUnavailable, BucketUnavailable, NotAllowed, UsageError.
        """
        located = locate(name, offline=offline, headers_only=headers_only, hub=hub, as_adapter=as_adapter)
        sources: list[ByteSource] = []
        try:
            headers = _read_headers(located, sources)
            _refuse_disagreement(located, headers)
            return cls(located, sources, headers)
        except BaseException:
            for source in sources:
                source.close()
            raise

    @property
    def is_local(self) -> bool:
        """Whether the checkpoint lies on this machine, so that it has a `path` and a `root`."""
        return self._located.path is not None

    @property
    def label(self) -> str:
        """The place of the files, as errors call it: a path, or a name in full."""
        return self._located.folder.label

    @property
    def path(self) -> Path:
        """The directory, or the single file. Raises UsageError for a checkpoint that is not on this machine."""
        return self._local(self._located.path)

    @property
    def root(self) -> Path:
        """The directory that holds `config.json` and the side files. Raises UsageError as `path` does."""
        return self._local(self._located.root)

    @property
    def stamps(self) -> list[tuple[str, int, str]]:
        """Of each file with weights its name, its size, and what changes when it is written to, as far as is known."""
        return [(source.name, source.size, str(getattr(source, "stamp", ""))) for source in self._sources]

    def read_file(self, relative: str | os.PathLike[str]) -> bytes:
        """A small file beside the weights, such as one of `side_files`. Raises BadCheckpoint beyond 512 MiB."""
        return self._located.folder.read(Path(relative).as_posix(), _SIDE_FILE_LIMIT)

    def close(self) -> None:
        """Close the shards. Tensors cannot be read any more."""
        for source in self._sources:
            source.close()

    def __repr__(self) -> str:
        return f"Checkpoint({self.id!r}, {len(self.tensors)} tensors in {len(self.shards)} shards)"

    def _local(self, path: Path | None) -> Path:
        if path is None:
            raise UsageError(f"{self.id} is read from {self.label} and is not on this machine")
        return path


def _read_headers(located: Located, sources: list[ByteSource]) -> list[Header]:
    """Open all shards, which `sources` then holds, and read their headers."""
    folder, files = located.folder, located.weights.files
    if located.path is not None:
        sources.extend(folder.open(file) for file in files)
    else:
        with ThreadPoolExecutor(_REQUESTS) as pool:
            sources.extend(pool.map(folder.open, files))
    return [read_header(source) for source in sources]


def _refuse_disagreement(located: Located, headers: Sequence[Header]) -> None:
    """Raise BadCheckpoint with every fault in which shards and index, or two shards, do not agree."""
    homes: dict[str, str] = {}
    faults: list[str] = []
    for file, header in zip(located.weights.files, headers, strict=True):
        for info in header.tensors:
            other = homes.setdefault(info.name, file)
            if other != file:
                faults.append(f"tensor {info.name!r} is in two shards, {other} and {file}")
    if located.weights.index is not None:
        faults.extend(_index_faults(located.weights.index, homes))
    if faults:
        more = f"; and {len(faults) - _FAULTS_SHOWN} more faults" if len(faults) > _FAULTS_SHOWN else ""
        raise BadCheckpoint(
            f"the files of {located.folder.label} do not agree: {'; '.join(faults[:_FAULTS_SHOWN])}{more}",
            faults=faults,
        )


def _index_faults(index: ShardIndex, homes: Mapping[str, str]) -> Iterator[str]:
    for name, shard in index.weight_map.items():
        if name not in homes:
            yield f"{index.file} has tensor {name!r} in {shard}, which lacks it"
        elif homes[name] != shard:
            yield f"{index.file} has tensor {name!r} in {shard}, but it is in {homes[name]}"
    for name, home in homes.items():
        if name not in index.weight_map:
            yield f"{index.file} lacks tensor {name!r} of {home}"


def _read_config(folder: Folder) -> dict[str, Any]:
    raw = folder.read("config.json", _CONFIG_LIMIT)
    try:
        # Infinity and NaN, which transformers writes into some configs, are kept as text: they are no JSON.
        config = json.loads(raw.decode("utf-8"), object_pairs_hook=_refuse_duplicates, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"config.json of {folder.label} is not valid JSON: {error}", cause=str(error), file="config.json"
        ) from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"config.json of {folder.label} is no JSON object", file="config.json")
    return cast("dict[str, Any]", config)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _read_licence(folder: Folder) -> str | None:
    try:
        return licence_of(folder.read("README.md", _README_LIMIT).decode("utf-8", errors="replace"))
    except (BadCheckpoint, CheckpointNotFound):  # a model card out of order does not make the weights unreadable
        return None
