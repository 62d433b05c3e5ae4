"""Checkpoints without files: tensors in memory, of models that are loaded already, or a mere list of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltareg.checkpoint.header import Header, lay_out
from deltareg.checkpoint.layout import Weights
from deltareg.checkpoint.locate import Located
from deltareg.checkpoint.reader import Checkpoint
from deltareg.checkpoint.source import ByteSource, bytes_of, too_large, truncated
from deltareg.errors import CheckpointNotFound

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["MemoryTensor", "checkpoint_of", "described_checkpoint"]

_FILE = "model.safetensors"

MemoryTensor = tuple[str, tuple[int, ...], "Buffer"]
"""A dtype as safetensors calls it, a shape, and the bytes."""


def checkpoint_of(label: str, tensors: Mapping[str, MemoryTensor], files: Mapping[str, bytes]) -> Checkpoint:
    """A checkpoint of these tensors, with these files beside them (`config.json`, a tokenizer), by relative path.

    The bytes are not copied: they are read where they lie, whenever a tensor is read. Raises UnsupportedFormat for a
    dtype that safetensors does not have.
    """
    infos = lay_out((name, dtype, shape) for name, (dtype, shape, _) in tensors.items())
    source = _MemorySource([tensors[info.name][2] for info in infos], [info.start for info in infos])
    located = Located(label, None, _MemoryFolder(label, files, source), Weights((_FILE,), None), None, None)
    return Checkpoint(located, [source], [Header(infos, {}, 0, source.size)])


def described_checkpoint(
    label: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], files: Mapping[str, bytes]
) -> Checkpoint:
    """A checkpoint of which dtypes and shapes are known, and these files; its weights are elsewhere.

    Reading a tensor raises CheckpointNotFound. Raises UnsupportedFormat for a dtype that safetensors does not have,
    BadCheckpoint for a `config.json` that is none.
    """
    infos = lay_out((name, dtype, shape) for name, (dtype, shape) in tensors.items())
    source = _NoSource(label, max((info.end for info in infos), default=0))
    located = Located(label, None, _MemoryFolder(label, files, source), Weights((_FILE,), None), None, None)
    return Checkpoint(located, [source], [Header(infos, {}, 0, source.size)])


class _NoSource:
    """Weights that are elsewhere."""

    def __init__(self, label: str, size: int) -> None:
        self.name = _FILE
        self.size = size
        self._label = label

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Raises CheckpointNotFound."""
        raise CheckpointNotFound(f"the weights of {self._label} are not here", path=self.name)

    def read(self, offset: int, length: int) -> bytes:
        """Raises CheckpointNotFound."""
        raise CheckpointNotFound(f"the weights of {self._label} are not here", path=self.name)

    def close(self) -> None:
        """Nothing is held."""


class _MemorySource:
    """Buffers as one file."""

    def __init__(self, buffers: Sequence[Buffer], starts: Sequence[int]) -> None:
        self.name = _FILE
        self._views = [bytes_of(buffer) for buffer in buffers]
        self._starts = starts
        self.size = starts[-1] + len(self._views[-1]) if starts else 0

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises BadHeader where they end."""
        view = bytes_of(buffer)
        if offset + len(view) > self.size:
            raise truncated(self.name, self.size, offset + len(view))
        done = 0
        number = bisect_right(self._starts, offset) - 1
        while done < len(view):
            at = offset + done - self._starts[number]
            part = self._views[number][at : at + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            number += 1

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises BadHeader where they end."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def close(self) -> None:
        """Let go of the buffers."""
        self._views = []


class _MemoryFolder:
    """Files that are in memory."""

    def __init__(self, label: str, files: Mapping[str, bytes], weights: ByteSource) -> None:
        self.label = label
        self._files = files
        self._weights = weights

    def names(self) -> Sequence[str]:
        """The files' names."""
        return sorted([*self._files, _FILE])

    def open(self, name: str) -> ByteSource:
        """The weights. Raises CheckpointNotFound for any other file."""
        if name != _FILE:
            raise CheckpointNotFound(f"{self.label} has no file {name}", path=name)
        return self._weights

    def read(self, name: str, limit: int) -> bytes:
        """One file as a whole."""
        if name not in self._files:
            raise CheckpointNotFound(f"{self.label} has no file {name}", path=name)
        data = self._files[name]
        if len(data) > limit:
            raise too_large(name, self.label, len(data), limit)
        return data
