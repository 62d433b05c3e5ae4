"""Blobs by digest, in a directory or under a prefix of a bucket."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import obstore.exceptions
from obstore.store import LocalStore

from deltareg.checkpoint.bucket import BucketName, open_store, parse_bucket_name
from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, DigestMismatch, NotFound, translate_os_errors
from deltareg_registry.storage.errors import translated
from deltareg_registry.storage.file_uploads import FileUploads
from deltareg_registry.storage.object_uploads import ObjectUploads
from deltareg_registry.storage.uploads import Uploads

__all__ = ["Storage", "open_storage"]

_SIGNED = timedelta(minutes=15)
_LIST_BATCH = 500
_HEX = re.compile("[0-9a-f]{64}")


class Storage:
    """The blobs of a registry, below `root` in files or in a bucket. Its methods may be called from any thread."""

    def __init__(self, store: Any, bucket: BucketName | None = None, root: Path | None = None) -> None:
        self.store = store
        self.bucket = bucket
        self.root = root
        self.label = str(root) if bucket is None else bucket.text
        self.uploads = self._uploads()

    def key(self, digest: Digest) -> str:
        """Where a blob lies: 256 folders, so that none of them grows too long."""
        name = parse_digest(digest).removeprefix("sha256:")
        return self.placed(f"blobs/sha256/{name[:2]}/{name}")

    def path(self, digest: Digest) -> Path | None:
        """The file of a blob; None where blobs are no files."""
        return None if self.root is None else self.root / self.key(digest)

    def placed(self, path: str) -> str:
        """The key of a path below the storage's place."""
        return path if self.bucket is None else self.bucket.key(path)

    def check(self) -> None:
        """Raise NotFound, NotAllowed or BucketUnavailable unless the storage answers, and files may be written."""
        with translated(self.bucket, self.label):
            if self.root is None:
                # Listed, because a bucket that is gone answers like an object that is.
                listing: Any = obstore.list  # type: ignore[reportUnknownMemberType]
                for _ in listing(self.store, self.placed("readiness/"), chunk_size=1):
                    break
            elif not self.root.is_dir():
                raise FileNotFoundError(self.label)
            elif not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.label)

    def size(self, digest: Digest) -> int:
        """Bytes of a blob. Raises NotFound, BucketUnavailable."""
        with translated(self.bucket, str(digest)):
            return obstore.head(self.store, self.key(digest))["size"]

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """A small blob, verified. Raises NotFound, DigestMismatch, BucketUnavailable; BadManifest above `limit`."""
        with translated(self.bucket, str(digest)):
            found = obstore.get(self.store, self.key(digest))
            size = found.meta["size"]
            if size > limit:
                raise BadManifest(f"{digest} has {size} bytes; at most {limit} are allowed")
            data = bytes(found.bytes())
        if sha256(data) != digest:
            raise DigestMismatch(f"the stored bytes of {digest} are damaged", hint="deltareg-registry fsck")
        return data

    def read_range(self, digest: Digest, start: int, length: int) -> bytes:
        """`length` bytes of a blob from `start` on, unverified. Raises NotFound, BucketUnavailable."""
        with translated(self.bucket, str(digest)):
            return bytes(obstore.get_range(self.store, self.key(digest), start=start, length=length))

    def signed(self, digest: Digest) -> str | None:
        """A URL at which everybody can fetch a blob for a while; None where the store cannot sign one."""
        if self.bucket is None:
            return None
        try:
            return obstore.sign(self.store, "GET", self.key(digest), _SIGNED)
        except (obstore.exceptions.BaseError, ValueError, TypeError):
            return None

    def put_stream(self, digest: Digest, size: int, pieces: Iterable[bytes]) -> None:
        """Store a blob from its bytes, piece by piece; it is visible once they were verified and kept.

        Raises DigestMismatch, DiskFull, NotAllowed, BucketUnavailable.
        """
        try:
            self.uploads.store(digest, size, pieces)
        except DigestMismatch as error:
            raise DigestMismatch(
                f"the bytes of {digest} are damaged where they came from", hint="deltareg-registry fsck"
            ) from error

    def delete(self, digests: Sequence[Digest]) -> None:
        """Remove blobs; those that are not there are none the worse. Raises BucketUnavailable, NotAllowed."""
        for digest in digests:
            with suppress(NotFound), translated(self.bucket, str(digest)):
                if self.root is not None:
                    (self.root / self.key(digest)).unlink(missing_ok=True)
                else:
                    obstore.delete(self.store, self.key(digest))

    def listed(self, *, before: datetime | None = None) -> Iterator[list[Digest]]:
        """The blobs that lie there, some at a time; only those written `before` a time."""
        found: list[Digest] = []
        with translated(self.bucket, "the blobs"):
            for name, written in self._files() if self.root is not None else self._objects():
                if _HEX.fullmatch(name) and (before is None or written < before):
                    found.append(Digest(f"sha256:{name}"))
                if len(found) == _LIST_BATCH:
                    yield found
                    found = []
        if found:
            yield found

    def _files(self) -> Iterator[tuple[str, datetime]]:
        assert self.root is not None
        for folder, _, names in os.walk(self.root / "blobs"):
            for name in names:
                # It may be gone by now.
                with suppress(FileNotFoundError):
                    yield name, datetime.fromtimestamp(os.stat(os.path.join(folder, name)).st_mtime, UTC)

    def _objects(self) -> Iterator[tuple[str, datetime]]:
        listing: Any = obstore.list  # type: ignore[reportUnknownMemberType]
        for batch in listing(self.store, self.placed("blobs/sha256/"), chunk_size=_LIST_BATCH):
            for meta in batch:
                yield meta["path"].rpartition("/")[2], meta["last_modified"]

    def _uploads(self) -> Uploads:
        if self.bucket is not None:
            return ObjectUploads(self.store, self.bucket, self.key)
        assert self.root is not None
        root = self.root
        return FileUploads(root, lambda digest: root / self.key(digest))


def open_storage(location: str | None, data: Path) -> Storage:
    """The storage at an object store's URL (`s3://bucket/prefix`, `gs://`, `az://`), else in files below `data`.

    Credentials, region and endpoint come from the environment, as the vendors' own tools read them. Raises BadName,
    NotAllowed, DiskFull, DeltaregError.
    """
    if location is not None:
        bucket = parse_bucket_name(location)
        return Storage(open_store(bucket), bucket=bucket)
    root = data / "storage"
    with translate_os_errors("make the storage", root):
        root.mkdir(parents=True, exist_ok=True)
    return Storage(LocalStore(root), root=root)
