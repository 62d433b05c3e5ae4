"""Digests of the files of an output, as its lock holds them."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from blake3 import blake3

from deltareg.digest import canonical_json
from deltareg.errors import OutputDiffers, translate_os_errors
from deltareg.progress import SILENT, Progress
from deltareg.threads import in_order

__all__ = ["file_digests", "output_digest"]

_BLOCK = 4 * 2**20
# A smaller file is hashed by one thread before a second one has begun.
_WORTH_THREADS = 4 * _BLOCK


def file_digests(root: Path, names: Iterable[str], threads: int, progress: Progress = SILENT) -> dict[str, str]:
    """The BLAKE3 digests of files by their POSIX paths below `root`, as `blake3:…`, sorted by path.

    Each thread holds 4 MiB of a file. Raises OutputDiffers for what is no regular file (a pipe is never waited for) or
    lies outside of `root`, by a link too; NotAllowed.
    """
    files = sorted(set(names))
    sizes = [_size(root, name) for name in files]
    large = sum(size >= _WORTH_THREADS for size in sizes)
    share = max(1, threads // max(1, large))
    tasks = (partial(_digest, root, name, share, progress) for name in files)
    with progress.step("hash", sum(sizes)), closing(in_order(tasks, threads)) as digests:
        return dict(zip(files, digests, strict=True))


def output_digest(files: Mapping[str, tuple[int, str]]) -> str:
    """The digest of an output, of the sizes and digests of its files by path."""
    rows = [[path, size, digest] for path, (size, digest) in sorted(files.items())]
    return "blake3:" + blake3(canonical_json(rows)).hexdigest()


def _size(root: Path, name: str) -> int:
    with _opened(root, name) as file:
        return os.fstat(file).st_size


def _digest(root: Path, name: str, threads: int, progress: Progress) -> str:
    hasher = blake3(max_threads=threads)
    block = memoryview(bytearray(_BLOCK))
    with _opened(root, name) as file, translate_os_errors("read", root / name):
        while count := os.readv(file, [block]):
            hasher.update(block[:count])
            progress.advance(count)
    return "blake3:" + hasher.hexdigest()


@contextmanager
def _opened(root: Path, name: str) -> Generator[int]:
    """A regular file below `root`, for reading. Raises OutputDiffers."""
    with translate_os_errors("read", root / name):
        place = root if "\0" in name else Path(os.path.realpath(root / name))
        if place == root or not place.is_relative_to(os.path.realpath(root)):
            raise OutputDiffers(f"{name!r} leads out of {root}", hint=_HINT, files=[name])
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        file = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OutputDiffers(f"{name!r} in {root} is no regular file", hint=_HINT, files=[name])
        yield file
    finally:
        os.close(file)


_HINT = "an output holds nothing but files of its own: build it again, or copy it with its links followed"
