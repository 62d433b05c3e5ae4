"""What a writer has finished, noted beside it, so that a later one can go on where it was killed.

A journal is a file of JSON lines in the directory in which an output is built: first the digest of the job, then a line
for each tensor that was written as a whole, with the digests of its blocks. What stands in it is believed of no tensor:
its bytes are read again and compared. A line that a kill cut off is no line.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from blake3 import blake3

from deltareg.errors import translate_os_errors

__all__ = ["Block", "Journal", "block_digest", "finished_in", "finished_tensors", "journals_in"]

_PREFIX = ".journal-"
_FORMAT = 1

Block = tuple[int, int, str]
"""A part of a tensor that was written at once: its first byte, its length, its BLAKE3 in hexadecimal digits."""


def block_digest(data: memoryview) -> str:
    """The digest of a block."""
    return blake3(data).hexdigest(16)


class Journal:
    """Notes what is finished. Used from many threads, for what is computed from inputs that were verified."""

    def __init__(self, directory: Path, job: str, member: int = 0) -> None:
        """Begin, or go on with, the journal of one process in `directory`; `member` is its number among several."""
        self._path = directory / f"{_PREFIX}{member}"
        with translate_os_errors("keep a journal", self._path):
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._lock = threading.Lock()
        self._blocks: dict[str, list[Block]] = {}
        self._add({"format": _FORMAT, "job": job})

    def note(self, tensor: str, offset: int, data: memoryview) -> None:
        """A block of a tensor was written."""
        block = (offset, len(data), block_digest(data))
        with self._lock:
            self._blocks.setdefault(tensor, []).append(block)

    def finish(self, tensor: str) -> None:
        """All of a tensor was written; where parts of it were not noted, it is not finished for anybody else."""
        with self._lock:
            blocks = self._blocks.pop(tensor, [])
        self._add({"tensor": tensor, "blocks": sorted(blocks)})

    def close(self) -> None:
        """Close the file; what it says stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _add(self, line: Mapping[str, Any]) -> None:
        # The line break comes first as well: it ends a line that a kill has cut off.
        data = f"\n{json.dumps(line)}\n".encode()
        with translate_os_errors("keep a journal", self._path):
            os.write(self._file, data)


def journals_in(directory: Path) -> list[Path]:
    """The journals that this user's processes have left in a directory."""
    return sorted(path for path in directory.iterdir() if path.name.startswith(_PREFIX) and _is_ours(path))


def _is_ours(path: Path) -> bool:
    """Whether it is a file of this user: what anybody else has laid there may be a link, or a pipe that never ends."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def finished_in(directory: Path, job: str) -> dict[str, list[Block]]:
    """The tensors that the journals in a directory call finished, with their blocks."""
    found: dict[str, list[Block]] = {}
    for journal in journals_in(directory):
        found |= finished_tensors(journal, job)
    return found


def finished_tensors(journal: Path, job: str) -> dict[str, list[Block]]:
    """The tensors that a journal calls finished, with their blocks; none where it is of another job.

    No line of it is trusted: one that is not as `Journal` writes it is passed over.
    """
    found: dict[str, list[Block]] = {}
    with translate_os_errors("read the journal", journal):
        lines = journal.read_bytes().splitlines()
    ours = False
    for line in lines:
        value = _parse(line)
        if "job" in value:
            ours = value["job"] == job and value.get("format") == _FORMAT
        elif ours and isinstance(value.get("tensor"), str):
            found[value["tensor"]] = list(_blocks(value.get("blocks")))
    return found


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _blocks(value: object) -> Iterator[Block]:
    for block in cast("list[object]", value) if isinstance(value, list) else []:
        match block:
            case [int(offset), int(length), str(digest)]:
                yield offset, length, digest
            case _:
                return
