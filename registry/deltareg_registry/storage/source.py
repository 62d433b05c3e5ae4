"""A blob in the storage, read at offsets as files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltareg.checkpoint.source import bytes_of, truncated
from deltareg.digest import parse_digest
from deltareg.manifest import Descriptor
from deltareg_registry.storage.storage import Storage

if TYPE_CHECKING:
    from deltareg.checkpoint.source import Buffer

__all__ = ["StorageSource"]


class StorageSource:
    """The bytes of a blob, of which the storage is known to have as many as its descriptor says."""

    def __init__(self, storage: Storage, blob: Descriptor) -> None:
        self.name = blob.title or blob.digest
        self.size = blob.size
        self._storage = storage
        self._digest = parse_digest(blob.digest)

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on. Raises BadHeader where they end."""
        if offset + length > self.size:
            raise truncated(self.name, self.size, offset + length)
        return self._storage.read_range(self._digest, offset, length) if length else b""

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the bytes from `offset` on. Raises BadHeader where they end."""
        view = bytes_of(buffer)
        view[:] = self.read(offset, len(view))

    def close(self) -> None:
        """Nothing is held."""
