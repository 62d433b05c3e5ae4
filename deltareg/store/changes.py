"""What each change of names makes of an index: the rules alone, without a disk or a network.

`where` completes the sentence "… is not in". A change that is none gives None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadName, ChannelMoved, NotAllowed, NotFound, UnsupportedFormat, VersionExists
from deltareg.manifest import (
    CONFIG_TYPE,
    DELTA_TYPE,
    MANIFEST_TYPE,
    DeltaConfig,
    Descriptor,
    Index,
    ReferrerManifest,
    parse,
)
from deltareg.names import LATEST, Reference, parse_reference
from deltareg.store.index import CREATED, REF_NAME, YANKED, Entry, Snapshot, latest_tag
from deltareg.store.referrers import entry_of, with_referrer

__all__ = [
    "blobs_missing",
    "channel_moved",
    "check_free",
    "check_version",
    "config_of",
    "find",
    "marked",
    "published",
    "version_exists",
    "with_channel",
    "with_referrer_of",
    "without_channel",
    "without_name",
]


def find(snapshot: Snapshot, reference: Reference, where: str) -> Entry:
    """The entry that a version, a channel, `latest` (also: no tag) or a digest leads to.

    Raises NotFound, which lists what there is.
    """
    siblings = snapshot.entries_of(reference.repository)
    if reference.digest is not None:
        found = next((entry for entry in siblings if entry.digest == reference.digest), None)
    else:
        tag = reference.tag or LATEST
        if tag == LATEST:
            tag = latest_tag(siblings) or tag
        found = next((entry for entry in siblings if entry.reference.tag == tag), None)
    if found is None:
        raise _unknown(snapshot, reference, where)
    return found


def check_version(reference: Reference) -> None:
    """Raise BadName where a reference is no version, as publishing needs it."""
    if reference.version is None:
        raise BadName(f"{reference} does not name a version", hint="to publish, write namespace/name:1.2.3")


def check_free(snapshot: Snapshot, reference: Reference, digest: Digest, where: str = "") -> None:
    """Raise VersionExists where the version has, or had before it was removed, other bytes."""
    entry = snapshot.entry(reference)
    other = entry.digest if entry is not None else snapshot.removed.get(str(reference))
    if other is not None and other != digest:
        raise version_exists(reference, other, where if entry is not None else f"{where} and was removed")


def published(
    snapshot: Snapshot,
    reference: Reference,
    digest: Digest,
    size: int,
    marks: Mapping[str, str] | None = None,
    where: str = "",
) -> Index | None:
    """The index with a version, `marks` being annotations that it has from the start. Raises VersionExists."""
    check_free(snapshot, reference, digest, where)
    if snapshot.entry(reference) is not None:
        return None
    return snapshot.with_entry(reference, _named(reference, digest, size, marks))


def marked(snapshot: Snapshot, reference: Reference, mark: str, reason: str | None, where: str) -> Index | None:
    """The index with a version marked, `YANKED` or `DEPRECATED`; with None for a reason, no longer.

    Raises BadName where `reference` is no version, NotFound.
    """
    if reference.version is None:
        done = "yanked" if mark == YANKED else "deprecated"
        raise BadName(f"{reference} does not name a version", hint=f"only versions are {done}: namespace/name:1.2.3")
    entry = snapshot.entry(reference)
    if entry is None:
        raise _unknown(snapshot, reference, where)
    now = entry.yanked if mark == YANKED else entry.deprecated
    return None if now == reason else snapshot.with_mark(reference, mark, reason)


def with_referrer_of(snapshot: Snapshot, repository: str, manifest: bytes, document: ReferrerManifest) -> Index | None:
    """The index with one more referrer of a version of `repository`.

    Raises NotFound where no version is its subject, NotAllowed where that has too many.
    """
    subject = parse_digest(document.subject.digest)
    if not any(entry.digest == subject for entry in snapshot.entries_of(repository)):
        raise NotFound(
            f"{repository} has no version with the digest {subject}, which {sha256(manifest)} refers to",
            hint=f"deltareg list {repository}",
            digest=subject,
        )
    entry = entry_of(manifest, document)
    return None if entry in snapshot.untagged else with_referrer(snapshot.index, entry)


def with_channel(
    snapshot: Snapshot, repository: str, channel: str, digest: Digest, expected: Digest | None, where: str
) -> Index | None:
    """The index with a channel that names a published version, if it pointed to `expected` (None: to nothing).

    Raises ChannelMoved where it did not, NotFound where no version has the digest, BadName for a name that is no
    channel or is computed, as `latest` is.
    """
    reference = parse_reference(f"{repository}:{channel}")
    if reference.version is not None or channel == LATEST:
        raise BadName(f"{channel!r} cannot be set", hint="a channel is a lower-case word other than latest")
    found = snapshot.entry(reference)
    now = None if found is None else found.digest
    if now == digest:
        return None
    if now != expected:
        raise channel_moved(reference, now, expected)
    versions = [
        entry
        for entry in snapshot.entries_of(repository)
        if entry.digest == digest and entry.reference.version is not None
    ]
    if not versions:
        raise _unknown(snapshot, Reference(reference.namespace, reference.name, digest=digest), where)
    return snapshot.with_entry(reference, _named(reference, digest, versions[0].size))


def without_channel(snapshot: Snapshot, repository: str, channel: str, where: str) -> Index:
    """The index without a channel. Raises NotFound, BadName for what is no channel."""
    reference = parse_reference(f"{repository}:{channel}")
    if reference.version is not None:
        raise BadName(f"{channel!r} is no channel", hint="a channel is a lower-case word, such as prod")
    return without_name(snapshot, reference, where)


def without_name(snapshot: Snapshot, reference: Reference, where: str) -> Index:
    """The index without a version or a channel; that a version was removed is remembered.

    Raises NotFound, NotAllowed while a channel points to the version, BadName for `latest` and digests.
    """
    if reference.tag is None or reference.tag == LATEST:
        raise BadName(f"{reference} is no stored name", hint="name a version or a channel: namespace/name:1.2.3")
    entry = snapshot.entry(reference)
    if entry is None:
        raise _unknown(snapshot, reference, where)
    others = [other for other in snapshot.entries_of(reference.repository) if other.digest == entry.digest]
    versions = [other for other in others if other.reference.version is not None]
    channels = [str(other.reference) for other in others if other.reference.version is None]
    if versions == [entry] and channels:
        raise NotAllowed(
            f"{reference} cannot be removed while {', '.join(channels)} points to it",
            hint="move or remove the channel first",
        )
    return snapshot.without_entry(reference, entry.digest)


def config_of(reference: Reference, config: Descriptor, data: bytes) -> DeltaConfig:
    """The config of a version that is published.

    Raises UnsupportedFormat and BadManifest for one that could not be read later: what its delta is stacked on would be
    unknown then.
    """
    if config.media_type != CONFIG_TYPE:
        raise UnsupportedFormat(
            f"{reference} has a config of the unknown type {config.media_type}", hint="install a newer deltareg"
        )
    return parse(DeltaConfig, data, what=f"the config of {reference}")


def blobs_missing(what: Reference | str, absent: Sequence[str]) -> NotFound:
    """The error of what cannot be published, since blobs of it are missing."""
    return NotFound(
        f"{what} cannot be published: {len(absent)} of its blobs are missing: {', '.join(absent[:3])}",
        hint="run the command again",
        missing=list(absent),
    )


def version_exists(reference: Reference, found: str, where: str = "") -> VersionExists:
    """The error of a version that has other bytes already: `found` is their digest, `where` completes the message."""
    return VersionExists(
        f"{reference} was published already{where}, with other bytes: {found}",
        cause="versions never change and are never used again",
        hint="publish under a new version number",
        reference=str(reference),
        found=found,
    )


def channel_moved(channel: Reference, found: Digest | None, expected: Digest | None) -> ChannelMoved:
    """The error of a channel that points elsewhere than whoever moves it thinks."""
    return ChannelMoved(
        f"{channel} points to {found or 'nothing'}, not to {expected or 'nothing'}",
        hint=f"deltareg channel list {channel.repository}",
        found=found,
        expected=expected,
    )


def _unknown(snapshot: Snapshot, reference: Reference, where: str) -> NotFound:
    siblings = [str(entry.reference.tag) for entry in sorted(snapshot.entries_of(reference.repository))]
    if siblings:
        cause = f"{reference.repository} has {', '.join(siblings[-20:])}"
    else:
        names = sorted(snapshot.repositories)
        cause = f"there are {', '.join(names[:20])}" if names else "the registry is empty"
    return NotFound(f"{reference} is not in {where}", cause=cause, hint="deltareg list", reference=str(reference))


def _named(reference: Reference, digest: Digest, size: int, marks: Mapping[str, str] | None = None) -> Descriptor:
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Descriptor(
        media_type=MANIFEST_TYPE,
        digest=digest,
        size=size,
        artifact_type=DELTA_TYPE,
        annotations={REF_NAME: str(reference), CREATED: created, **(marks or {})},
    )
