"""What refers to a delta travels with it: signatures, and other artifacts of a bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltareg.digest import Digest, sha256
from deltareg.errors import BadManifest, DigestMismatch, NotFound, UnsupportedFormat
from deltareg.manifest import Descriptor, ReferrerManifest
from deltareg.names import Reference
from deltareg.progress import SILENT
from deltareg.remote import Remote, RemoteReferrers
from deltareg.signing import SIGNATURE_TYPE, ReferrerSource, StoreReferrers
from deltareg.store import Store, parse_referrer

__all__ = ["MOST_BYTES", "MOST_REFERRERS", "SIZE_LIMIT", "Carried", "fetch", "fetchable", "send", "sendable"]

MOST_REFERRERS = 100
"""Referrers of one delta that travel; signatures first. A remote may tell of any number."""

SIZE_LIMIT = 16 << 20
"""Bytes of the blobs of one referrer that travels."""

MOST_BYTES = 64 << 20
"""Bytes of all that travel with one delta."""


@dataclass(frozen=True)
class Carried:
    """A referrer that is to travel: the bytes of its manifest, and what they say."""

    data: bytes
    manifest: ReferrerManifest

    @property
    def digest(self) -> Digest:
        """The digest of its manifest."""
        return sha256(self.data)


@dataclass(frozen=True)
class Selection:
    """What travels, and what the user should know of what does not."""

    carried: Sequence[Carried] = ()
    warnings: Sequence[str] = ()


def sendable(store: Store, remote: Remote, reference: Reference, digest: Digest) -> Selection:
    """The referrers of a delta that a remote lacks. Raises RemoteUnavailable, NotAllowed."""
    return _selected(StoreReferrers(store), RemoteReferrers(remote), reference, digest)


def fetchable(store: Store, remote: Remote, reference: Reference, digest: Digest) -> Selection:
    """The referrers of a delta that are at a remote and not here. Raises RemoteUnavailable, NotAllowed."""
    return _selected(RemoteReferrers(remote), StoreReferrers(store), reference, digest)


def send(store: Store, remote: Remote, repository: str, carried: Sequence[Carried]) -> None:
    """Send referrers of a delta that the remote has. Raises RemoteUnavailable, NotAllowed, DiskFull, DigestMismatch."""
    for one in carried:
        absent = remote.missing(repository, [Digest(blob.digest) for blob in one.manifest.blobs])
        for blob in one.manifest.blobs:
            if blob.digest in absent:
                remote.put_blob(repository, blob, store.path(Digest(blob.digest)), SILENT)
        remote.put_referrer(repository, one.data)


def fetch(store: Store, remote: Remote, repository: str, carried: Sequence[Carried]) -> list[str]:
    """Store referrers of a delta that is here. Those that the remote does not give, or gives damaged, are told.

    Raises RemoteUnavailable, NotAllowed, DiskFull.
    """
    source = RemoteReferrers(remote)
    warnings: list[str] = []
    for one in carried:
        try:
            with store.hold():
                for blob in one.manifest.blobs:
                    if Digest(blob.digest) in store.missing([Digest(blob.digest)]):
                        store.put(source.read_blob(repository, blob, SIZE_LIMIT))
                store.put_referrer(repository, one.data)
        except (BadManifest, DigestMismatch, NotFound) as error:
            warnings.append(f"{_kind(one.manifest.kind)} {one.digest} was not taken along: {error.message}")
    return warnings


def _selected(source: ReferrerSource, goal: ReferrerSource, reference: Reference, digest: Digest) -> Selection:
    repository = reference.repository
    there = {one.digest for one in goal.referrers(repository, digest)}
    listed = [one for one in source.referrers(repository, digest) if one.digest not in there]
    listed.sort(key=lambda one: (one.artifact_type != SIGNATURE_TYPE, one.digest))
    carried: list[Carried] = []
    warnings: list[str] = []
    room = MOST_BYTES
    for descriptor in listed[:MOST_REFERRERS]:
        try:
            one = _carried(source, repository, digest, descriptor, min(room, SIZE_LIMIT))
        except (BadManifest, DigestMismatch, NotFound, UnsupportedFormat) as error:
            kind = _kind(descriptor.artifact_type)
            warnings.append(f"{kind} {descriptor.digest} of {reference} is left out: {error.message}")
            continue
        room -= one.manifest.size
        carried.append(one)
    if len(listed) > MOST_REFERRERS:
        told = f"{source.name} has {len(listed)} referrers of {reference} to carry"
        warnings.append(f"{told}: {MOST_REFERRERS} at most go along, signatures first")
    return Selection(carried, warnings)


def _carried(source: ReferrerSource, repository: str, digest: Digest, descriptor: Descriptor, limit: int) -> Carried:
    data = source.read_manifest(repository, Digest(descriptor.digest))
    manifest = parse_referrer(data, what=f"the referrer {descriptor.digest}")
    if manifest.subject.digest != digest:
        raise BadManifest(f"it refers to {manifest.subject.digest}")
    if manifest.size > limit:
        raise BadManifest(f"its blobs have {manifest.size} bytes; at most {limit} more go along")
    return Carried(data, manifest)


def _kind(artifact_type: str | None) -> str:
    return "the signature" if artifact_type == SIGNATURE_TYPE else f"the referrer ({artifact_type or 'of no type'})"
