"""Uploads in an object store: each request puts pieces, which become one object when the upload ends.

An object cannot grow, and a multipart upload belongs to the process that began it; any process can read pieces.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import obstore

from deltareg.checkpoint.bucket import BucketName, listed
from deltareg.digest import Digest
from deltareg.errors import InvalidArgument
from deltareg_registry.storage.errors import translated
from deltareg_registry.storage.uploads import Progress, Run, other_digest

__all__ = ["ObjectUploads"]

# The least that S3 takes as a part.
PIECE = 5 << 20
# Some thousand short requests are a client's own affair; more would make the row of the upload long.
_RUNS = 4096
# S3 takes at most 10,000 parts.
_PARTS = 9000
_CONCURRENCY = 2
_AHEAD = 1


class ObjectUploads:
    """Uploads below a prefix of a bucket; `place` says which key a blob has."""

    def __init__(self, store: Any, bucket: BucketName, place: Callable[[Digest], str]) -> None:
        self._store = store
        self._bucket = bucket
        self._place = place

    @contextmanager
    def exclusive(self, identity: str) -> Generator[None]:
        """Nothing: two requests write pieces of different names, and the database takes those of one of them."""
        yield

    @contextmanager
    def writer(self, identity: str, progress: Progress) -> Generator[_ObjectWriter]:
        """Go on with pieces of a new name."""
        yield _ObjectWriter(self._store, self._bucket, self._prefix(identity), progress)

    def finish(self, identity: str, progress: Progress, digest: Digest) -> None:
        """Compose the object of the pieces; one whose bytes are not what was said is never completed."""
        self.store(digest, progress.size, self._pieces(identity, progress))

    def store(self, digest: Digest, size: int, pieces: Iterable[bytes]) -> None:
        """Put the object at once: a multipart upload whose bytes are not what was said is aborted."""
        key = self._place(digest)
        with translated(self._bucket, str(digest)):
            if size <= PIECE:
                data = b"".join(pieces)
                _check(hashlib.sha256(data).hexdigest(), digest)
                obstore.put(self._store, key, data)
                return
            chunk = max(PIECE, -(-size // _PARTS))
            composed = _verified(pieces, digest)
            obstore.put(self._store, key, composed, chunk_size=chunk, max_concurrency=_CONCURRENCY)

    def remove(self, identity: str) -> None:
        """Remove every piece, also those that no progress tells of."""
        keys = [meta["path"] for meta in listed(self._store, self._below(identity))]
        with translated(self._bucket, "the upload"):
            for start in range(0, len(keys), 1000):
                obstore.delete(self._store, keys[start : start + 1000])

    def identities(self, before: float) -> list[str]:
        """The uploads all of whose pieces were put before a time."""
        newest: dict[str, float] = {}
        root = self._below("")
        for meta in listed(self._store, root):
            name = root.relative(meta["path"]).partition("/")[0]
            newest[name] = max(newest.get(name, 0.0), meta["last_modified"].timestamp())
        return [name for name, time in newest.items() if time < before]

    def _below(self, identity: str) -> BucketName:
        return BucketName(self._bucket.scheme, self._bucket.bucket, self._prefix(identity).removesuffix("/"))

    def _prefix(self, identity: str) -> str:
        return self._bucket.key(f"uploads/{identity}")

    def _pieces(self, identity: str, progress: Progress) -> Iterator[bytes]:
        """The pieces in order, a few of them fetched ahead."""
        keys = (
            f"{self._prefix(identity)}/{run.label}-{number:06}"
            for run, first in _with_starts(progress)
            for number in range(first, first + run.count)
        )
        with ThreadPoolExecutor(_AHEAD) as pool:
            waiting: list[Future[bytes]] = []
            for key in keys:
                waiting.append(pool.submit(self._get, key))
                if len(waiting) > _AHEAD:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _get(self, key: str) -> bytes:
        with translated(self._bucket, "a piece of the upload"):
            return bytes(obstore.get(self._store, key).bytes())


class _ObjectWriter:
    """Puts the pieces of one request."""

    piece = PIECE

    def __init__(self, store: Any, bucket: BucketName, prefix: str, progress: Progress) -> None:
        self._store = store
        self._bucket = bucket
        self._prefix = prefix
        self._label = secrets.token_hex(4)
        self._number = 0
        self.progress = progress

    def write(self, data: Sequence[bytes | memoryview]) -> None:
        """Put one piece."""
        piece = b"".join(data)
        if len(self.progress.runs) >= _RUNS:
            raise InvalidArgument("the upload came in too many requests", hint="send it again in larger chunks")
        key = f"{self._prefix}/{self._label}-{self._number:06}"
        with translated(self._bucket, "a piece of the upload"):
            obstore.put(self._store, key, piece, use_multipart=False)
        self._number += 1
        self.progress = self.progress.with_piece(self._label, len(piece))


def _with_starts(progress: Progress) -> Iterator[tuple[Run, int]]:
    """Each run with the number of its first piece: a writer counts on where its pieces change their size."""
    counts: dict[str, int] = {}
    for run in progress.runs:
        first = counts.get(run.label, 0)
        yield run, first
        counts[run.label] = first + run.count


def _verified(pieces: Iterable[bytes], digest: Digest) -> Iterator[bytes]:
    state = hashlib.sha256()
    # One piece waits: an error after the last one would come too late to keep the object from being completed.
    held: bytes | None = None
    for data in pieces:
        if held is not None:
            yield held
        state.update(data)
        held = data
    _check(state.hexdigest(), digest)
    if held is not None:
        yield held


def _check(found: str, digest: Digest) -> None:
    if f"sha256:{found}" != digest:
        raise other_digest(f"sha256:{found}", digest)
