"""Referrers: manifests about a delta's manifest, such as its signatures. They have no name, and stand in the index.

`index.json` lists them as `oras` does: by digest, without a reference name. An annotation tells their subject, so that
asking for the referrers of one delta opens no other file; of entries that another program wrote the manifest tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Protocol

from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, DeltaregError, NotAllowed, RemoteUnavailable
from deltareg.manifest import MANIFEST_TYPE, Descriptor, Index, ReferrerManifest, parse
from deltareg.store.index import REF_NAME

__all__ = [
    "REFERRERS_LIMIT",
    "REFERRER_LIMIT",
    "SUBJECT",
    "Readable",
    "entry_of",
    "is_untagged",
    "parse_referrer",
    "referrers_among",
    "subject_of",
    "with_referrer",
    "without",
]

SUBJECT = "vnd.deltareg.subject"
"""The annotation of a referrer in the index: the digest of its subject."""

REFERRER_LIMIT = 256 * 1024
"""Bytes of the largest manifest of a referrer that is stored."""

REFERRERS_LIMIT = 1000
"""Referrers that one manifest has at most: whoever may write must not be able to fill the index with one delta."""


class Readable(Protocol):
    """Where the manifests of referrers are: a store, or a remote that keeps an index as stores do."""

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """The verified bytes of a manifest of at most `limit` bytes. Raises a DeltaregError."""
        ...


def parse_referrer(data: bytes, *, what: str) -> ReferrerManifest:
    """Read the manifest of a referrer that may come from anywhere.

    Raises BadManifest where it is larger than 256 KiB, breaks the schema, or gives one digest two sizes.
    """
    if len(data) > REFERRER_LIMIT:
        raise BadManifest(f"{what} has {len(data)} bytes; at most {REFERRER_LIMIT} are allowed")
    document = parse(ReferrerManifest, data, what=what)
    sizes: dict[str, int] = {}
    for blob in [document.config, *document.layers]:
        if sizes.setdefault(blob.digest, blob.size) != blob.size:
            raise BadManifest(f"{what} gives {blob.digest} two sizes: {sizes[blob.digest]} and {blob.size}")
    return document


def is_untagged(descriptor: Descriptor) -> bool:
    """Whether an entry of the index is a manifest without a name, which may be a referrer."""
    return descriptor.media_type == MANIFEST_TYPE and REF_NAME not in (descriptor.annotations or {})


def subject_of(blobs: Readable, descriptor: Descriptor) -> Digest | None:
    """The subject of an untagged entry of the index; None where there is none, or damage. Raises RemoteUnavailable."""
    told = (descriptor.annotations or {}).get(SUBJECT)
    try:
        if told is not None:
            return parse_digest(told)
        digest = parse_digest(descriptor.digest)
        manifest = parse_referrer(blobs.read(digest, limit=REFERRER_LIMIT), what=digest)
        return parse_digest(manifest.subject.digest)
    except RemoteUnavailable:
        # Or a signature that cannot be read now would count as one that is missing.
        raise
    except DeltaregError:
        # Another program's, which need not be one of ours; `fsck` tells what is wrong with those that are.
        return None


def referrers_among(
    blobs: Readable, untagged: Iterable[Descriptor], digest: Digest, artifact_type: str | None
) -> list[Descriptor]:
    """The referrers of a manifest, by their digests, without the store's own annotation. Raises RemoteUnavailable."""
    found: dict[str, Descriptor] = {}
    for descriptor in untagged:
        if artifact_type is not None and descriptor.artifact_type not in (None, artifact_type):
            continue
        if not is_untagged(descriptor) or subject_of(blobs, descriptor) != digest:
            continue
        known = _as_told(blobs, descriptor)
        if artifact_type in (None, known.artifact_type):
            found[known.digest] = known
    return [found[key] for key in sorted(found)]


def _as_told(blobs: Readable, descriptor: Descriptor) -> Descriptor:
    annotations = {key: text for key, text in (descriptor.annotations or {}).items() if key != SUBJECT}
    kind = descriptor.artifact_type
    if kind is None:
        try:
            kind = parse_referrer(blobs.read(Digest(descriptor.digest), limit=REFERRER_LIMIT), what="a referrer").kind
        except RemoteUnavailable:
            raise
        except DeltaregError:
            kind = None
    return descriptor.model_copy(update={"artifact_type": kind, "annotations": annotations or None})


def entry_of(data: bytes, manifest: ReferrerManifest) -> Descriptor:
    """The entry of a referrer in the index."""
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=sha256(data),
        size=len(data),
        artifact_type=manifest.kind,
        annotations={SUBJECT: manifest.subject.digest},
    )


def with_referrer(index: Index, entry: Descriptor) -> Index:
    """The index with one more referrer. Raises NotAllowed where its subject has too many."""
    subject = (entry.annotations or {})[SUBJECT]
    others = [one for one in index.manifests if not (is_untagged(one) and one.digest == entry.digest)]
    count = sum((one.annotations or {}).get(SUBJECT) == subject for one in others)
    if count >= REFERRERS_LIMIT:
        raise NotAllowed(
            f"{subject} has {count} referrers already; no more are stored",
            hint="remove those that nobody needs with the version, or sign another version",
            digest=subject,
        )
    return index.model_copy(update={"manifests": [*others, entry]})


def without(index: Index, gone: Set[str]) -> Index:
    """The index without the untagged entries of these digests."""
    kept = [one for one in index.manifests if not (is_untagged(one) and one.digest in gone)]
    return index.model_copy(update={"manifests": kept})
