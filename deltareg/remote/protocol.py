"""What every remote can do. A new kind is one class, a line in the table, and a subclass of the contract suite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeGuard

from pydantic import Field

from deltareg.digest import Digest
from deltareg.manifest import Descriptor, Document
from deltareg.names import Reference
from deltareg.progress import Progress
from deltareg.store import Entry

if TYPE_CHECKING:
    from deltareg.catalog.search import Query, SearchReport

__all__ = [
    "PROTOCOL_VERSION",
    "Capabilities",
    "FilesRemote",
    "Remote",
    "RemoteEntry",
    "RemovingRemote",
    "SearchableRemote",
    "SignersRemote",
    "is_removing",
    "is_searchable",
    "takes_files",
    "tells_signers",
]

PROTOCOL_VERSION = 1

RemoteEntry = Entry
"""One name of a remote."""


class Capabilities(Document):
    """What a remote can do beyond the least."""

    protocol_version: int = PROTOCOL_VERSION
    writable: bool = Field(description="this user may push")
    resumable: bool = Field(description="a blob that was cut off is sent on from there")
    conditional_put: bool = Field(description="of two writers of one version exactly one wins")
    search: bool = Field(description="finds deltas by base, not only by name")
    removal: bool = Field(default=False, description="versions can be removed")
    vacant: bool = Field(default=False, description="no registry yet: the first push makes one")


class Remote(Protocol):
    """A registry reached by URL. Its methods may be called from several threads at once.

    Blobs and manifests belong to a repository, `namespace/name`, where the remote tells them apart; where it does not,
    they are found under any. Every method raises RemoteUnavailable where the remote does not answer, NotAllowed where
    it refuses, and no OSError.
    What a remote returns is not trusted: `transfer` checks sizes and digests itself.
    """

    url: str

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that have to be sent to `namespace/name`.

        The others stay there long enough for a push to end.
        """
        ...

    def put_blob(self, repository: str, descriptor: Descriptor, source: Path, progress: Progress) -> int:
        """Send a blob from a file; return the bytes that were sent, fewer where an earlier try was cut off.

        Verified before it is visible; sending it again is no error. `progress` advances by the blob's size in all, and
        an exception from it ends the sending. Raises DigestMismatch where `source` is not what the descriptor says,
        DiskFull.
        """
        ...

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on, in pieces of at most a few MiB. Raises NotFound."""
        ...

    def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
        """Publish a manifest, all of whose blobs are there, under a version; return its digest.

        The same bytes again are no error. Raises VersionExists for other bytes; NotFound where blobs are missing;
        NotAllowed without `if_absent` where the remote keeps versions immutable.
        """
        ...

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        """The bytes of a manifest. Raises NotFound."""
        ...

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store the manifest of a referrer, whose blobs and subject are there; return its digest.

        The same bytes again are no error. Raises BadManifest for what has no subject; NotFound where blobs are
        missing, and, where the remote looks for it, where the subject is.
        """
        ...

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The referrers of a manifest: artifacts whose OCI `subject` it is, all or those of one artifact type.

        None for an unknown digest. At most some thousands: a remote that tells of more is not listened to any longer.
        """
        ...

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a version, a channel, `latest` (skips what is yanked) or a digest names. Raises NotFound."""
        ...

    def list(self, repository: str | None = None) -> list[RemoteEntry]:
        """The names of one repository, or all."""
        ...

    def yank(self, reference: Reference, reason: str) -> None:
        """Yank a version, or give another reason: `latest` skips it, its bytes stay.

        Raises NotFound; BadName where `reference` is no version; InvalidArgument for what is no reason.
        """
        ...

    def unyank(self, reference: Reference) -> None:
        """Take back that a version was yanked. Raises NotFound; BadName where `reference` is no version."""
        ...

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Advise against a version, or give another reason: it resolves as before, and whoever uses it is warned.

        Raises NotFound; BadName where `reference` is no version; InvalidArgument for what is no reason.
        """
        ...

    def undeprecate(self, reference: Reference) -> None:
        """Take back that a version was deprecated. Raises NotFound; BadName where `reference` is no version."""
        ...

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Let a channel name a published version, if it still points to `expected` (None: to nothing).

        Raises ChannelMoved where it does not, NotFound where no version has the digest, BadName for what is no channel.
        """
        ...

    def remove_channel(self, repository: str, channel: str) -> None:
        """Drop a channel. Raises NotFound; BadName for what is no channel."""
        ...


class SearchableRemote(Remote, Protocol):
    """A remote that finds deltas by itself. `deltareg.remote.search` searches in those that do not."""

    def search(self, query: Query) -> SearchReport:
        """The published versions that `query` asks for, best fit first, then newest first."""
        ...


class FilesRemote(Remote, Protocol):
    """A remote where people look who know no deltas, and that shows them files beside a version."""

    def put_files(self, reference: Reference, files: Mapping[str, Path]) -> None:
        """Send files, by name, that are to lie beside a version while it is the latest one.

        They are seen once the version is published; `put_manifest` has to follow.
        """
        ...


class SignersRemote(Remote, Protocol):
    """A remote whose owners say who has to sign what is in a namespace."""

    def signers(self, namespace: str) -> list[str]:
        """PEM texts of public keys, one of which has to have signed; none where it asks for nothing. Not trusted.

        Raises BadManifest for an answer that is none.
        """
        ...


class RemovingRemote(Remote, Protocol):
    """A remote whose versions can be removed."""

    def remove(self, reference: Reference) -> None:
        """Drop a version; it is never free for other bytes.

        Raises NotFound; BadName where `reference` is no version; NotAllowed while a channel points to it.
        """
        ...


def takes_files(remote: Remote) -> TypeGuard[FilesRemote]:
    """Whether a remote shows files beside versions."""
    return callable(getattr(remote, "put_files", None))


def tells_signers(remote: Remote) -> TypeGuard[SignersRemote]:
    """Whether a remote says who has to sign. May ask it of which kind it is."""
    return callable(getattr(remote, "signers", None))


def is_removing(remote: Remote) -> TypeGuard[RemovingRemote]:
    """Whether versions of a remote can be removed. Asks it."""
    return remote.capabilities().removal


def is_searchable(remote: Remote) -> TypeGuard[SearchableRemote]:
    """Whether a remote finds deltas by itself. Asks it."""
    return remote.capabilities().search
