"""Writing packs: records, frame by frame, into safetensors files of bounded size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from deltareg.artifact import PACK_LIMIT
from deltareg.checkpoint import encode_header
from deltareg.closing import Closing
from deltareg.errors import translate_os_errors
from deltareg.manifest import BLAKE3, PACK_TYPE, Descriptor
from deltareg.store.store import Store

__all__ = ["PackWriter"]

_BLOCK = 4 * 2**20
# The header is known only at the end; this is what its length and braces take, and each entry but for its name.
_HEADER_ROOM = 32
_ENTRY_ROOM = 128
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class PackWriter(Closing):
    """Lays records one after the other into packs of at most `limit` bytes, and stores each full one as a blob.

    A record that does not fit into what is left of a pack goes on in the next one, under the same name: the record is
    its entries, in the order of the packs. A context manager: leaving it without `finish` removes what is not stored.
    """

    def __init__(self, store: Store, *, limit: int = PACK_LIMIT) -> None:
        self.packs: list[Descriptor] = []
        self._store = store
        self._limit = limit
        self._path: Path | None = None
        self._file: int | None = None
        self._sizes: dict[str, int] = {}
        self._room = 0

    def begin(self, name: str) -> None:
        """The following bytes are the record of this tensor."""
        self._name = name
        self._homes: list[int] = []
        self._written = 0

    def add(self, data: bytes) -> None:
        """The record's next bytes: its head, or one frame, which stays in one pack. Raises DiskFull, NotAllowed."""
        if self._sizes and self._cost(data) > self._room:
            self._close_pack()
        if self._file is None:
            self._open_pack()
        assert self._file is not None
        self._room -= self._cost(data)
        with translate_os_errors("write a pack", self._store.root):
            _write_all(self._file, data)
        if self._name not in self._sizes:
            self._sizes[self._name] = 0
            self._homes.append(len(self.packs))
        self._sizes[self._name] += len(data)
        self._written += len(data)

    def _cost(self, data: bytes) -> int:
        """Bytes that `data` takes in the open pack, its entry in the header included."""
        # A character of the name is six bytes at most there, as an escape.
        return len(data) + (0 if self._name in self._sizes else _ENTRY_ROOM + 6 * len(self._name))

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
        try:
            if self._file is not None:
                os.close(self._file)
        finally:
            self._file = None
            if self._path is not None:
                self._path.unlink(missing_ok=True)
                self._path = None

    def _open_pack(self) -> None:
        self._path = self._store.scratch(".records")
        with translate_os_errors("write a pack", self._path):
            self._file = os.open(self._path, _FLAGS, 0o666)
        self._room = self._limit - _HEADER_ROOM

    def _close_pack(self) -> None:
        """Write the pack: its header, which only now is known, then the records from the scratch file."""
        assert self._file is not None
        header = encode_header([(name, "U8", (size,)) for name, size in self._sizes.items()])
        with translate_os_errors("write a pack", self._store.root), self._store.writer() as writer:
            writer.write(header)
            hasher = blake3(header)
            offset = 0
            while block := os.pread(self._file, _BLOCK, offset):
                writer.write(block)
                hasher.update(block)
                offset += len(block)
            digest, size = writer.commit()
        annotations = {BLAKE3: hasher.hexdigest()}
        self.packs.append(Descriptor(media_type=PACK_TYPE, digest=digest, size=size, annotations=annotations))
        self._sizes = {}
        self.close()


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
