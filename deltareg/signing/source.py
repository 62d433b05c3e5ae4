"""Where signatures lie: in a store, or at a remote; and how few bytes of them are believed."""

from __future__ import annotations

from typing import Protocol

from deltareg.digest import Digest, parse_digest
from deltareg.errors import BadManifest, SignatureInvalid
from deltareg.manifest import Descriptor
from deltareg.signing.bundle import BUNDLE_LIMIT
from deltareg.store import MANIFEST_LIMIT, REFERRER_LIMIT, Store, parse_referrer

__all__ = ["ReferrerSource", "StoreReferrers", "bundle_in"]


class ReferrerSource(Protocol):
    """What tells of the referrers of a manifest. What it reads was verified against its digest."""

    @property
    def name(self) -> str:
        """A path or a URL, for messages."""
        ...

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The referrers of a manifest; none for an unknown one."""
        ...

    def read_manifest(self, repository: str, digest: Digest) -> bytes:
        """A manifest. Raises NotFound, DigestMismatch, BadManifest."""
        ...

    def read_blob(self, repository: str, blob: Descriptor, limit: int) -> bytes:
        """A blob of at most `limit` bytes. Raises NotFound, DigestMismatch, BadManifest."""
        ...


class StoreReferrers:
    """The referrers in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """The store's path."""
        return str(self._store.root)

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The referrers of a manifest."""
        return self._store.referrers(repository, digest, artifact_type)

    def read_manifest(self, repository: str, digest: Digest) -> bytes:
        """A manifest."""
        return self._store.read(digest, limit=MANIFEST_LIMIT)

    def read_blob(self, repository: str, blob: Descriptor, limit: int) -> bytes:
        """A blob."""
        return self._store.read(parse_digest(blob.digest), limit=min(limit, blob.size))


def bundle_in(source: ReferrerSource, repository: str, digest: Digest, signature: Digest) -> bytes:
    """The bundle of a signature, which is a referrer of the manifest `digest`.

    Raises SignatureInvalid where the referrer is not what a signature is; NotFound, DigestMismatch.
    """
    raw = source.read_manifest(repository, signature)
    try:
        manifest = parse_referrer(raw, what=f"the signature {signature}")
        if manifest.subject.digest != digest:
            raise SignatureInvalid(f"the signature {signature} belongs to {manifest.subject.digest}, not to {digest}")
        if len(manifest.layers) != 1 or manifest.layers[0].size > BUNDLE_LIMIT or len(raw) > REFERRER_LIMIT:
            raise SignatureInvalid(
                f"the signature {signature} is malformed: it has to have one layer, of at most {BUNDLE_LIMIT} bytes"
            )
        return source.read_blob(repository, manifest.layers[0], BUNDLE_LIMIT)
    except BadManifest as error:
        raise SignatureInvalid(f"the signature {signature} is malformed: {error.message}", cause=error.cause) from error
