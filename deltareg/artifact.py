"""An artifact opened for reading: its documents, its side files, and the records in its packs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

import zstandard

from deltareg.checkpoint import DTYPES, ByteSource, FileSource, Header, read_header
from deltareg.checkpoint.layout import side_files_of
from deltareg.closing import Closing
from deltareg.digest import Digest
from deltareg.errors import BadManifest, BadRecord, NotFound, UnsupportedFormat
from deltareg.manifest import (
    INVENTORY_TYPE,
    PACK_TYPE,
    SIDE_FILE_TYPE,
    DeltaConfig,
    Descriptor,
    Inventory,
    Manifest,
    TensorEntry,
    parse,
)

__all__ = ["PACK_LIMIT", "Artifact", "BlobSource", "Packs", "Part", "pack", "unpack"]

PACK_LIMIT = 64 * 2**20
"""Bytes that a pack has at most: small enough that storing the last one does not keep `diff` waiting."""

# Level 19 makes a tokenizer of 10 MB a fifth smaller than 9, in thirty times the time: longer than its model takes.
_LEVEL = 9
_MANIFEST_LIMIT = 4 * 2**20
_CONFIG_LIMIT = 16 * 2**20
_INVENTORY_LIMIT = 64 * 2**20
_SIDE_FILE_LIMIT = 512 * 2**20


_CONVERTIBLE = {"BF16", "F16", "F32", "F64"}


class BlobSource(Protocol):
    """Where the blobs of an artifact lie."""

    def path(self, digest: Digest) -> Path:
        """The file of a blob. Raises NotFound."""
        ...

    def read(self, digest: Digest, *, limit: int = ...) -> bytes:
        """A small blob, verified. Raises NotFound, DigestMismatch."""
        ...


@dataclass(frozen=True)
class Part:
    """A part of a record: `length` bytes of `source` from byte `start` on."""

    source: ByteSource
    start: int
    length: int


class Artifact:
    """One delta, as a store has it."""

    def __init__(self, blobs: BlobSource, digest: Digest, manifest: Manifest, manifest_size: int) -> None:
        self.digest = digest
        self.manifest = manifest
        self._blobs = blobs
        self._manifest_size = manifest_size

    @classmethod
    def open(cls, blobs: BlobSource, digest: Digest) -> Self:
        """Open the artifact whose manifest has this digest.

        Raises NotFound, DigestMismatch, BadManifest, UnsupportedFormat.
        """
        raw = blobs.read(digest, limit=_MANIFEST_LIMIT)
        return cls(blobs, digest, parse(Manifest, raw, what=f"manifest {digest}"), len(raw))

    @cached_property
    def config(self) -> DeltaConfig:
        """The delta's description. Raises DigestMismatch, BadManifest, UnsupportedFormat."""
        digest = Digest(self.manifest.config.digest)
        return parse(DeltaConfig, self._blobs.read(digest, limit=_CONFIG_LIMIT), what=f"config {digest}")

    @cached_property
    def inventory(self) -> Inventory:
        """Every tensor of base and post. Raises DigestMismatch, BadManifest, UnsupportedFormat."""
        layers = self.manifest.layers_of(INVENTORY_TYPE)
        if len(layers) != 1:
            raise BadManifest(f"manifest {self.digest} has {len(layers)} inventories instead of one")
        digest = Digest(layers[0].digest)
        packed = self._blobs.read(digest, limit=_INVENTORY_LIMIT)
        raw = unpack(packed, limit=_INVENTORY_LIMIT, what=f"inventory {digest}")
        inventory = parse(Inventory, raw, what=f"inventory {digest}")
        self._check(inventory)
        return inventory

    @property
    def packs(self) -> list[Descriptor]:
        """The packs, in order."""
        return self.manifest.layers_of(PACK_TYPE)

    @property
    def size(self) -> int:
        """Bytes of the manifest and of all that it names."""
        return self._manifest_size + sum(blob.size for blob in self.manifest.blobs)

    @property
    def has_packs(self) -> bool:
        """Whether the packs lie on this machine: of what is only looked at, they may not."""
        try:
            return all(self._blobs.path(Digest(pack.digest)) for pack in self.packs)
        except NotFound:
            return False

    def layer(self, media_type: str, *, limit: int) -> bytes | None:
        """The bytes of the one layer of a media type, of at most `limit` bytes; None where there is none.

        Raises NotFound, DigestMismatch, BadManifest.
        """
        layers = self.manifest.layers_of(media_type)
        if len(layers) > 1:
            raise BadManifest(f"manifest {self.digest} has {len(layers)} layers of {media_type} instead of one")
        return self._blobs.read(Digest(layers[0].digest), limit=limit) if layers else None

    def side_files(self) -> dict[str, bytes]:
        """The side files by relative POSIX path.

        Raises BadManifest for a path that leads out of a directory, and for a file that is no side file.
        """
        found: dict[str, bytes] = {}
        room = _SIDE_FILE_LIMIT
        for layer in self.manifest.layers_of(SIDE_FILE_TYPE):
            title = layer.title or ""
            path = PurePosixPath(title)
            outside = path.is_absolute() or not path.parts or ".." in path.parts or "\\" in title or "\0" in title
            # No artifact brings what it has no business with: a config, a model card, weights, code.
            if outside or not side_files_of([title]):
                raise BadManifest(f"manifest {self.digest} has a side file called {title!r}", path=title)
            packed = self._blobs.read(Digest(layer.digest), limit=_SIDE_FILE_LIMIT)
            found[str(path)] = unpack(packed, limit=room, what=f"side file {title}")
            room -= len(found[str(path)])
        return found

    def open_packs(self) -> Packs:
        """Open the packs for reading records. Raises NotFound, BadHeader."""
        return Packs([self._blobs.path(Digest(pack.digest)) for pack in self.packs])

    def _check(self, inventory: Inventory) -> None:
        names = [entry.name for entry in inventory.tensors]
        if len(set(names)) != len(names):
            raise BadManifest(f"the inventory of {self.digest} names a tensor twice")
        for entry in inventory.tensors:
            if not _is_consistent(entry, len(self.packs)):
                raise BadManifest(f"the inventory of {self.digest} contradicts itself at tensor {entry.name!r}")


class Packs(Closing):
    """The open packs of one artifact. A context manager."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._sources: list[FileSource] = []
        self._headers: list[dict[str, tuple[int, int]]] = []
        with ExitStack() as stack:
            stack.callback(self.close)
            for path in paths:
                source = FileSource(path)
                self._sources.append(source)
                self._headers.append(_ranges(read_header(source)))
            stack.pop_all()

    def parts(self, entry: TensorEntry) -> list[Part]:
        """The parts of a tensor's record, in order. Raises BadRecord where a pack lacks one."""
        found: list[Part] = []
        for number in entry.packs:
            place = self._headers[number].get(entry.name)
            if place is None:
                raise BadRecord(f"pack {self._sources[number].name} lacks the record of {entry.name!r}")
            found.append(Part(self._sources[number], place[0], place[1] - place[0]))
        if sum(part.length for part in found) != entry.size:
            raise BadRecord(f"the record of {entry.name!r} has another size than the inventory says")
        return found

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.close()


def _is_consistent(entry: TensorEntry, packs: int) -> bool:
    base, post = entry.base_dtype, entry.post_dtype
    # Plain comparisons: an inventory may have 100,000 entries, and generators would take a tenth of a second.
    if (base is not None and base not in DTYPES) or (post is not None and post not in DTYPES):
        raise UnsupportedFormat(f"tensor {entry.name!r} has an unknown dtype: {base} → {post}")
    if (entry.packs and max(entry.packs) >= packs) or (entry.kind in ("zero", "removed")) == bool(entry.packs):
        return False
    if entry.delta_dtype is not None and not _holds(entry.delta_dtype, entry):
        return False
    if entry.kind == "lowrank" or entry.rank is not None:
        # D1 is F32, so that post is F32, or the delta has that for a dtype of its own.
        return entry.kind == "lowrank" and bool(entry.rank) and base == post and "F32" in (post, entry.delta_dtype)
    if entry.error is not None and (base is None or post is None):
        return False
    if base is None or post is None:
        return entry.kind == ("full" if base is None else "removed") and base != post
    if entry.kind == "zero" and base != post:
        # Nothing is stored: the target itself is converted, which only numbers can be.
        return math.prod(entry.shape) == 0 or {base, post} <= _CONVERTIBLE
    return entry.kind != "removed"


def _holds(delta: str, entry: TensorEntry) -> bool:
    """Whether the record of a tensor may hold its D1 in the dtype `delta`, which is not post's own."""
    if delta not in DTYPES:
        raise UnsupportedFormat(f"the delta of tensor {entry.name!r} has an unknown dtype: {delta}")
    pairs = entry.base_dtype == entry.post_dtype == "C64"
    own = "F32" if pairs else entry.post_dtype
    adds = pairs or (entry.base_dtype in _CONVERTIBLE and entry.post_dtype in _CONVERTIBLE)
    return adds and bool(entry.packs) and entry.kind != "full" and delta in _CONVERTIBLE and delta != own


def _ranges(header: Header) -> dict[str, tuple[int, int]]:
    return {info.name: (info.start, info.end) for info in header.tensors}


def pack(raw: bytes) -> bytes:
    """A document or a side file as its layer stores it: one zstd frame with its content size."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(raw)


def unpack(data: bytes, *, limit: int, what: str) -> bytes:
    """The inverse of `pack`. Raises BadManifest, also where more than `limit` bytes would come out."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit:
            raise BadManifest(f"{what} says that it decodes to {size} bytes; at most {limit} are allowed")
        raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadManifest(f"{what} is not a zstd frame: {error}", cause=str(error)) from error
    if len(raw) != size:
        raise BadManifest(f"{what} decodes to {len(raw)} bytes instead of {size}")
    return raw
