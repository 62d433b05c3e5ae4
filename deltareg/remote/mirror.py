"""Static mirrors: a registry's directory behind any web server, or in a bucket. They can only be read."""

from __future__ import annotations

import builtins
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from deltareg.checkpoint.bucket import BucketName, library, open_store, parse_bucket_name, status_of, translated
from deltareg.digest import Digest, parse_digest, parse_json, sha256
from deltareg.errors import BadManifest, CheckpointNotFound, NotAllowed, NotFound, RemoteUnavailable, UnsupportedFormat
from deltareg.manifest import Descriptor
from deltareg.names import Reference
from deltareg.progress import Progress
from deltareg.remote.bandwidth import Bandwidth
from deltareg.remote.bodies import Download
from deltareg.remote.http import HttpClient
from deltareg.remote.network import Network
from deltareg.remote.oci import in_parallel
from deltareg.remote.protocol import Capabilities, RemoteEntry
from deltareg.store import LAYOUT, MANIFEST_LIMIT, Snapshot, parse_index
from deltareg.store.changes import find
from deltareg.store.referrers import referrers_among
from deltareg.store.writer import mismatch

__all__ = ["BucketMirror", "HttpMirror"]

_INDEX = "index.json"
_LAYOUT = "oci-layout"
_LAYOUT_LIMIT = 4096
_INDEX_LIMIT = 1 << 28
_STEP = 4 << 20
"""Bytes of an object that are asked for at a time, and held."""


class _Mirror(ABC):
    """An OCI image layout whose files are fetched one by one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._stamp: str | None = None

    # --- what a kind of mirror has to do ---

    @abstractmethod
    def _changed(self, name: str, stamp: str | None, limit: int) -> tuple[bytes, str | None] | None:
        """A file and the stamp of its content; None if it still has the `stamp`. Raises NotFound."""

    @abstractmethod
    def _size(self, name: str) -> int | None:
        """The size of a file, None where there is none."""

    @abstractmethod
    def _pieces(self, name: str, blob: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob's file from `offset` on. Raises NotFound, DigestMismatch for another size."""

    # --- what all can ---

    def capabilities(self) -> Capabilities:
        """What it can do: be read."""
        data = self._file(_LAYOUT, _LAYOUT_LIMIT)
        if parse_json(data, what=f"{self.url}/{_LAYOUT}") != LAYOUT:
            raise UnsupportedFormat(
                f"{self.url}/{_LAYOUT} does not say image layout version 1.0.0, the only one that this deltareg reads",
                hint="install a newer deltareg",
            )
        return Capabilities(writable=False, resumable=False, conditional_put=False, search=False)

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are not there."""
        wanted = sorted({parse_digest(digest) for digest in digests})
        sizes = in_parallel(lambda digest: self._size(_blob_name(digest)), wanted)
        return {digest for digest, size in zip(wanted, sizes, strict=True) if size is None}

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on."""
        return self._pieces(_blob_name(parse_digest(descriptor.digest)), descriptor, offset)

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        """The bytes of a manifest."""
        return self.read(digest, limit=MANIFEST_LIMIT)

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """The bytes of a small blob, verified. Raises NotFound, DigestMismatch, BadManifest for more than `limit`."""
        name = _blob_name(parse_digest(digest))
        data = self._file(name, limit)
        if sha256(data) != digest:
            raise mismatch(digest, f"{self.url}/{name}")
        return data

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> builtins.list[Descriptor]:
        """The referrers of a manifest."""
        return referrers_among(self, self._names().untagged, parse_digest(digest), artifact_type)

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a name means."""
        return find(self._names(), reference, self.url).digest

    def list(self, repository: str | None = None) -> builtins.list[RemoteEntry]:
        """The names of one repository, or all."""
        names = self._names()
        return sorted(names.entries.values() if repository is None else names.entries_of(repository))

    # --- what none can ---

    def put_blob(self, repository: str, descriptor: Descriptor, source: Path, progress: Progress) -> int:
        """Refused, as is all that writes. Raises NotAllowed."""
        parse_digest(descriptor.digest)
        self._refuse()

    def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
        """Refused."""
        self._refuse()

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Refused."""
        self._refuse()

    def yank(self, reference: Reference, reason: str) -> None:
        """Refused."""
        self._refuse()

    def unyank(self, reference: Reference) -> None:
        """Refused."""
        self._refuse()

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Refused."""
        self._refuse()

    def undeprecate(self, reference: Reference) -> None:
        """Refused."""
        self._refuse()

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Refused."""
        self._refuse()

    def remove_channel(self, repository: str, channel: str) -> None:
        """Refused."""
        self._refuse()

    # --- inside ---

    def _refuse(self) -> NoReturn:
        raise NotAllowed(
            f"{self.url} is a static mirror, which can only be read",
            hint="write to the registry that it is a copy of",
        )

    def _names(self) -> Snapshot:
        """The names as they are now; read again only where they have changed."""
        with self._lock:
            try:
                found = self._changed(_INDEX, self._stamp if self._snapshot else None, _INDEX_LIMIT)
            except NotFound as error:
                raise RemoteUnavailable(
                    f"there is no registry at {self.url}: {_INDEX} is missing",
                    cause=error.cause,
                    hint="check the URL of the remote: it is that of the directory in which oci-layout lies",
                ) from error
            if found is not None:
                self._snapshot = parse_index(found[0], what=f"{self.url}/{_INDEX}")
                self._stamp = found[1]
            if self._snapshot is None:
                raise BadManifest(f"{self.url}/{_INDEX} is said not to have changed before it was ever read")
            return self._snapshot

    def _file(self, name: str, limit: int) -> bytes:
        found = self._changed(name, None, limit)
        if found is None:
            raise BadManifest(f"{self.url}/{name} is said not to have changed before it was ever read")
        return found[0]


class HttpMirror(_Mirror):
    """A mirror behind a web server, which `http` asks. Byte ranges and ETags are used where the server has them."""

    def __init__(self, url: str, http: HttpClient) -> None:
        super().__init__(url)
        self._http = http

    def _changed(self, name: str, stamp: str | None, limit: int) -> tuple[bytes, str | None] | None:
        headers = {} if stamp is None else {"If-None-Match": stamp}
        answer = self._http.ask("GET", name, headers=headers, accept=(304,) if headers else (), limit=limit)
        return None if answer.status == 304 else (answer.body, answer.headers.get("etag"))

    def _size(self, name: str) -> int | None:
        answer = self._http.ask("HEAD", name, accept=(404, 410))
        if answer.status >= 400:
            return None
        text = answer.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else -1

    def _pieces(self, name: str, blob: Descriptor, offset: int) -> Iterator[bytes]:
        return self._http.download(Download(name, blob.size, blob.digest), offset)


class BucketMirror(_Mirror):
    """A mirror in an object store: `s3://bucket/prefix`, `gs://…`, `az://…`; credentials come from the environment."""

    def __init__(self, url: str, network: Network | None = None) -> None:
        self._name: BucketName = parse_bucket_name(url)
        super().__init__(self._name.text)
        self._bandwidth: Bandwidth = (network or Network()).bandwidth
        self._opened: Any = None

    def _changed(self, name: str, stamp: str | None, limit: int) -> tuple[bytes, str | None] | None:
        options = {} if stamp is None else {"if_none_match": stamp}
        try:
            with translated(self._name, name):
                try:
                    result = library().get(self._store(), self._name.key(name), options=options)
                except library(".exceptions").NotModifiedError:
                    return None
                if result.meta["size"] > limit:
                    raise BadManifest(f"{self.url}/{name} has more than {limit} bytes")
                data = bytes(result.bytes())
        except CheckpointNotFound as error:
            raise _absent(error) from None
        self._bandwidth.take(len(data))
        return data, result.meta["e_tag"]

    def _size(self, name: str) -> int | None:
        try:
            with translated(self._name, name):
                return library().head(self._store(), self._name.key(name))["size"]
        except CheckpointNotFound:
            return None

    def _pieces(self, name: str, blob: Descriptor, offset: int) -> Iterator[bytes]:
        position = offset
        while position < blob.size:
            end = min(position + _STEP, blob.size)
            try:
                with translated(self._name, name):
                    piece, size = self._range(name, position, end)
            except CheckpointNotFound as error:
                raise _absent(error) from None
            if size != blob.size:
                raise mismatch(blob.digest, f"{self.url}/{name}", expected=blob.size, found=size)
            if not piece:
                raise mismatch(blob.digest, f"{self.url}/{name}", expected=blob.size, found=position)
            self._bandwidth.take(len(piece))
            position += len(piece)
            yield piece
        if blob.size == 0 and self._size(name) is None:
            raise NotFound(f"{blob.digest} is not in {self.url}", hint="check the name")

    def _range(self, name: str, begin: int, end: int) -> tuple[bytes, int]:
        """Some bytes of an object, and how many it has."""
        key = self._name.key(name)
        try:
            result = library().get(self._store(), key, options={"range": (begin, end)})
            return bytes(result.bytes()), result.meta["size"]
        except library(".exceptions").GenericError as error:
            if status_of(error) != 416:  # an object that ends before has no such range
                raise
        return b"", library().head(self._store(), key)["size"]

    def _store(self) -> Any:
        # Two threads may open it at once, of which one is dropped: nothing is asked by that.
        if self._opened is None:
            self._opened = open_store(self._name)
        return self._opened


def _absent(error: CheckpointNotFound) -> NotFound:
    return NotFound(error.message, cause=error.cause, hint=error.hint)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/')}"
