"""What a remote sends is not trusted: its bytes are taken once they have the digest that was asked for."""

from __future__ import annotations

from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, DigestMismatch
from deltareg.manifest import Descriptor
from deltareg.remote.protocol import Remote
from deltareg.store import MANIFEST_LIMIT

__all__ = ["RemoteReferrers", "read_blob", "read_manifest"]


class RemoteReferrers:
    """The referrers at a remote, as `deltareg.signing` reads them: each verified against its digest."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    @property
    def name(self) -> str:
        """The remote's URL."""
        return self._remote.url

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The referrers of a manifest."""
        return self._remote.referrers(repository, digest, artifact_type)

    def read_manifest(self, repository: str, digest: Digest) -> bytes:
        """A manifest."""
        return read_manifest(self._remote, repository, digest)

    def read_blob(self, repository: str, blob: Descriptor, limit: int) -> bytes:
        """A blob of at most `limit` bytes."""
        return read_blob(self._remote, repository, blob, limit)


def read_manifest(remote: Remote, repository: str, digest: Digest) -> bytes:
    """The verified bytes of a manifest. Raises NotFound, DigestMismatch; BadManifest for more than 4 MiB."""
    data = _verified(remote, digest, remote.get_manifest(repository, digest), "a manifest that is")
    if len(data) > MANIFEST_LIMIT:
        raise BadManifest(f"the manifest {digest} has {len(data)} bytes; at most {MANIFEST_LIMIT} are allowed")
    return data


def read_blob(remote: Remote, repository: str, blob: Descriptor, limit: int) -> bytes:
    """The verified bytes of a small blob. Raises NotFound, DigestMismatch; BadManifest for more than `limit` bytes."""
    if blob.size > limit:
        raise BadManifest(f"{blob.digest} has {blob.size} bytes; at most {limit} are allowed")
    pieces: list[bytes] = []
    length = 0
    for piece in remote.get_blob(repository, blob, 0):
        pieces.append(piece)
        length += len(piece)
        if length > blob.size:
            break
    return _verified(remote, parse_digest(blob.digest), b"".join(pieces), "bytes that are")


def _verified(remote: Remote, digest: Digest, data: bytes, what: str) -> bytes:
    if sha256(data) != digest:
        raise DigestMismatch(
            f"{remote.url} sent {what} not {digest}",
            cause="at least one bit differs",
            hint="ask the owner of the remote to check it",
            digest=digest,
        )
    return data
