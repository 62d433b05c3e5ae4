"""Writing packs: records, frame by frame, into safetensors files of bounded size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from deltareg.artifact import PACK_LIMIT
from deltareg.checkpoint import encode_header
from deltareg.digest import Digest
from deltareg.errors import translate_os_errors
from deltareg.manifest import PACK_TYPE, Descriptor
from deltareg.store.store import Store

__all__ = ["PackWriter"]

_BLOCK = 4 * 2**20
# Room for the header: it grows with each entry and is known only at the end.
_ENTRY_ROOM = 256


class PackWriter:
    """Lays records one after the other into packs of at most `limit` bytes, and stores each full one as a blob.

    A record that does not fit into what is left of a pack goes on in the next one, under the same name: the record is
    its entries, in the order of the packs. A context manager: leaving it without `finish` removes what is not stored.
    """

    def __init__(self, store: Store, *, limit: int = PACK_LIMIT) -> None:
        self.packs: list[Descriptor] = []
        self._store = store
        self._limit = limit
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._sizes: dict[str, int] = {}
        self._room = 0

    def begin(self, name: str) -> None:
        """The following bytes are the record of this tensor."""
        self._name = name
        self._homes: list[int] = []
        self._written = 0

    def add(self, data: bytes) -> None:
        """The record's next bytes: its head, or one frame, which stays in one pack. Raises DiskFull, NotAllowed."""
        cost = len(data) + (0 if self._name in self._sizes else _ENTRY_ROOM + 2 * len(self._name.encode()))
        if self._sizes and cost > self._room:
            self._close_pack()
        if self._file is None:
            self._open_pack()
        assert self._file is not None
        with translate_os_errors("write a pack", self._store.root):
            self._file.write(data)
        if self._name not in self._sizes:
            self._sizes[self._name] = 0
            self._homes.append(len(self.packs))
        self._sizes[self._name] += len(data)
        self._written += len(data)
        self._room -= cost

    def end(self) -> tuple[list[int], int]:
        """The record is complete; returns the numbers of its packs and its bytes."""
        return self._homes, self._written

    def finish(self) -> Sequence[Descriptor]:
        """Store the last pack; returns all of them, in order."""
        if self._sizes:
            self._close_pack()
        return self.packs

    def close(self) -> None:
        """Remove the pack that is not stored."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_pack(self) -> None:
        self._path = self._store.scratch(".records")
        with translate_os_errors("write a pack", self._path):
            self._file = open(self._path, "x+b")  # noqa: SIM115 - closed by close()
        self._room = self._limit

    def _close_pack(self) -> None:
        """Write the pack: its header, which only now is known, then the records from the scratch file."""
        assert self._file is not None
        header = encode_header([(name, "U8", (size,)) for name, size in self._sizes.items()])
        with translate_os_errors("write a pack", self._store.root):
            self._file.flush()
            descriptor = self._store_pack(header, self._file)
        self.packs.append(descriptor)
        self._sizes = {}
        self.close()

    def _store_pack(self, header: bytes, records: BinaryIO) -> Descriptor:
        path = self._store.scratch(".pack")
        try:
            hasher = hashlib.sha256(header)
            size = len(header)
            with open(path, "xb", buffering=0) as out:
                out.write(header)
                offset = 0
                while block := os.pread(records.fileno(), _BLOCK, offset):
                    hasher.update(block)
                    _write_all(out.fileno(), block)
                    offset += len(block)
                size += offset
            digest = Digest("sha256:" + hasher.hexdigest())
            self._store.adopt(path, digest)
        finally:
            path.unlink(missing_ok=True)
        return Descriptor(media_type=PACK_TYPE, digest=digest, size=size)


def _write_all(file: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]
