"""Any OCI registry as a remote: versions and channels are tags, and what is said of a version is a tag beside it.

`_yanked.1.0.0` names a small manifest that says why 1.0.0 is yanked; `_deprecated.1.0.0` likewise. So one request tells
which versions are yanked, and `oras` or `skopeo` copy that along.
"""

from __future__ import annotations

import builtins
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, BadName, NotAllowed, NotFound
from deltareg.manifest import DELTA_TYPE, Descriptor, encode, parse
from deltareg.names import (
    LATEST,
    Reference,
    as_reason,
    is_channel,
    is_version,
    latest_of,
    parse_reason,
    parse_reference,
)
from deltareg.progress import Progress
from deltareg.remote.authorization import RegistryAuthorization
from deltareg.remote.credentials import Credentials, Secret, check_plain, key_of
from deltareg.remote.docker import find_docker_secret
from deltareg.remote.http import HttpClient
from deltareg.remote.network import Address, Network, parse_address
from deltareg.remote.oci import EMPTY, AnyManifest, OciClient, in_parallel
from deltareg.remote.protocol import Capabilities, RemoteEntry
from deltareg.store import channel_moved, parse_manifest, parse_referrer, version_exists
from deltareg.store.index import CREATED
from deltareg.store.writer import mismatch

__all__ = ["MARK_TYPE", "REASON", "OciRemote", "registry_secret"]

MARK_TYPE = "application/vnd.deltareg.mark.v1+json"
"""The artifact type of what is said of a version."""
REASON = "vnd.deltareg.reason"
"""The annotation that says why; a mark without it says nothing, where a registry lets no tag be removed."""
_MARKED = "vnd.deltareg.marked"
_NONCE = "vnd.deltareg.nonce"

_Mark = Literal["yanked", "deprecated"]


@dataclass(frozen=True)
class _Named:
    """What a tag names."""

    digest: Digest
    size: int
    document: AnyManifest

    @property
    def is_delta(self) -> bool:
        return self.document.artifact_type == DELTA_TYPE

    @property
    def reason(self) -> str | None:
        """Why, if this is a mark that says so."""
        text = (self.document.annotations or {}).get(REASON)
        return None if self.document.artifact_type != MARK_TYPE or text is None else as_reason(text)


class OciRemote:
    """A registry at `oci://host[:port]/prefix`; `oci+http://` is one without TLS. Nothing is asked of it yet.

    OCI knows no compare-and-set: of two who publish one version at the same moment, the later one wins.
    """

    def __init__(self, url: str, network: Network | None = None, *, client: OciClient | None = None) -> None:
        address = parse_address(url)
        self.url = address.url
        self._client = client or _client_of(address, network or Network())

    def capabilities(self) -> Capabilities:
        """What it can do. Whether this user may push, a registry tells only who tries."""
        self._client.ping()
        return Capabilities(writable=True, resumable=True, conditional_put=False, search=False)

    # --- blobs ---

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that are not there."""
        return self._client.missing(repository, digests)

    def put_blob(self, repository: str, descriptor: Descriptor, source: Path, progress: Progress) -> int:
        """Send a blob from a file, going on where an earlier try was cut off."""
        return self._client.put_blob(repository, descriptor, source, progress)

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on."""
        return self._client.get_blob(repository, descriptor, offset)

    # --- manifests ---

    def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
        """Publish a manifest under a version."""
        if not if_absent:
            raise NotAllowed(f"{self.url} keeps versions as they are", hint="publish under a new version number")
        document = parse_manifest(manifest, what=f"the manifest of {reference}")
        version = _version(reference, "to publish, write namespace/name:1.2.3")
        digest = sha256(manifest)
        found = self._client.digest(reference.repository, version)
        if found is not None and found != digest:
            raise version_exists(reference, found, f" at {self.url}")
        self._check_blobs(reference.repository, reference, document.blobs)
        if found is None:
            self._client.put_manifest(reference.repository, version, manifest)
        return digest

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        """The bytes of a manifest."""
        data = self._client.manifest(repository, parse_digest(digest))
        if data is None:
            raise NotFound(f"{digest} is not in {repository} at {self.url}", hint="deltareg list --remote")
        return data

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store the manifest of a referrer."""
        # Registries refuse blobs that they lack in words of their own; without one of them they do not tell which.
        document = parse_referrer(manifest, what=f"the manifest of a referrer in {repository}")
        self._check_blobs(repository, f"what refers to {document.subject.digest}", document.blobs)
        return self._client.put_referrer(repository, manifest)

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> builtins.list[Descriptor]:
        """The referrers of a manifest."""
        return self._client.referrers(repository, digest, artifact_type)

    # --- names ---

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a name means."""
        repository, tag = reference.repository, reference.tag or LATEST
        if reference.digest is not None:
            found = self._client.digest(repository, reference.digest)
        elif tag != LATEST:
            found = self._digest_of(repository, tag)
        else:
            latest = self._latest(repository)
            found = None if latest is None else self._client.digest(repository, latest)
        if found is None:
            raise self._unknown(reference)
        return found

    def list(self, repository: str | None = None) -> builtins.list[RemoteEntry]:
        """The names of one repository, or all."""
        repositories = self._repositories() if repository is None else [repository]
        tags = dict(zip(repositories, in_parallel(self._client.tags, repositories), strict=True))
        names = [(one, tag) for one in repositories for tag in tags[one] if _is_name(tag)]
        found = in_parallel(lambda name: self._named(*name), names)
        marks = [(one, tag) for one in repositories for tag in tags[one] if _marked_by(tag)]
        said = dict(zip(marks, in_parallel(lambda mark: self._reason(*mark), marks), strict=True))
        return sorted(
            RemoteEntry(
                reference=parse_reference(f"{one}:{tag}"),
                digest=named.digest,
                size=named.size,
                created=(named.document.annotations or {}).get(CREATED, ""),
                yanked=said.get((one, f"_yanked.{tag}")),
                deprecated=said.get((one, f"_deprecated.{tag}")),
            )
            for (one, tag), named in zip(names, found, strict=True)
            if named is not None and named.is_delta
        )

    def yank(self, reference: Reference, reason: str) -> None:
        """Yank a version."""
        self._mark(reference, "yanked", parse_reason(reason))

    def unyank(self, reference: Reference) -> None:
        """Take back that a version was yanked."""
        self._mark(reference, "yanked", None)

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Advise against a version."""
        self._mark(reference, "deprecated", parse_reason(reason))

    def undeprecate(self, reference: Reference) -> None:
        """Take back that a version was deprecated."""
        self._mark(reference, "deprecated", None)

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Let a channel name a version, if it still points to `expected`. Who moves it meanwhile is not noticed."""
        reference = parse_reference(f"{repository}:{channel}")
        if reference.version is not None or channel == LATEST:
            raise BadName(f"{channel!r} cannot be set", hint="a channel is a lower-case word other than latest")
        now = self._digest_of(repository, channel)
        if now == digest:
            return
        if now != expected:
            raise channel_moved(reference, now, expected)
        wanted = Reference(reference.namespace, reference.name, digest=parse_digest(digest))
        versions = [tag for tag in self._client.tags(repository) if is_version(tag)]
        if digest not in in_parallel(partial(self._client.digest, repository), versions):
            raise self._unknown(wanted)
        self._client.put_manifest(repository, channel, self.get_manifest(repository, digest))

    def remove_channel(self, repository: str, channel: str) -> None:
        """Drop a channel."""
        reference = parse_reference(f"{repository}:{channel}")
        if reference.version is not None or channel == LATEST:
            raise BadName(f"{channel!r} is no channel", hint="a channel is a lower-case word, such as prod")
        if self._digest_of(repository, channel) is None:
            raise self._unknown(reference)
        self._remove_tag(repository, channel)

    # --- inside ---

    def _repositories(self) -> builtins.list[str]:
        try:
            names = self._client.repositories()
        except (NotFound, NotAllowed) as error:
            raise NotAllowed(
                f"{self.url} does not tell what repositories it has",
                cause=error.cause,
                hint="name one: deltareg list namespace/name --remote",
            ) from error
        return [name for name in names if _is_repository(name)]

    def _named(self, repository: str, tag: str) -> _Named | None:
        data = self._client.manifest(repository, tag)
        if data is None:
            return None
        try:
            document = parse(AnyManifest, data, what=f"the manifest {repository}:{tag} at {self.url}")
        except BadManifest:
            return None  # another program's: what is asked for by name is told what is wrong with it
        return _Named(sha256(data), len(data), document)

    def _digest_of(self, repository: str, tag: str) -> Digest | None:
        """What a tag names; a channel that could not be removed names a mark, which is nothing."""
        if is_version(tag):
            return self._client.digest(repository, tag)
        named = self._named(repository, tag)
        return None if named is None or named.document.artifact_type == MARK_TYPE else named.digest

    def _latest(self, repository: str) -> str | None:
        tags = self._client.tags(repository)
        versions = [tag for tag in tags if is_version(tag)]
        marked = [tag for version in versions if (tag := f"_yanked.{version}") in tags]
        reasons = in_parallel(partial(self._reason, repository), marked)
        yanked = {tag.removeprefix("_yanked.") for tag, why in zip(marked, reasons, strict=True) if why is not None}
        return latest_of(versions, yanked)

    def _reason(self, repository: str, tag: str) -> str | None:
        named = self._named(repository, tag)
        return None if named is None else named.reason

    def _mark(self, reference: Reference, mark: _Mark, reason: str | None) -> None:
        hint = f"only versions are {mark}: namespace/name:1.2.3"
        version, repository = _version(reference, hint), reference.repository
        if self._client.digest(repository, version) is None:
            raise self._unknown(reference)
        tag = f"_{mark}.{version}"
        if self._reason(repository, tag) == reason:
            return
        if reason is None:
            self._remove_tag(repository, tag)
        else:
            self._put_mark(repository, tag, {REASON: reason})

    def _put_mark(self, repository: str, tag: str, said: dict[str, str]) -> Digest:
        self._client.put_bytes(repository, b"{}")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # No two marks alike: where one is dropped by its digest, no other one may go with it.
        annotations = {CREATED: now, _MARKED: tag, _NONCE: secrets.token_hex(8), **said}
        data = encode(AnyManifest(artifact_type=MARK_TYPE, config=EMPTY, layers=[EMPTY], annotations=annotations))
        self._client.put_manifest(repository, tag, data)
        return sha256(data)

    def _remove_tag(self, repository: str, tag: str) -> None:
        """Let a tag name a mark that says nothing, and drop that mark by its digest.

        Not the tag itself: some registries drop what a tag names then, with every other tag of it, and a channel names
        a version. Where nothing may be deleted, the mark stays, and means the same.
        """
        digest = self._put_mark(repository, tag, {})
        self._client.delete_manifest(repository, digest)

    def _check_blobs(self, repository: str, what: Reference | str, blobs: Iterable[Descriptor]) -> None:
        wanted = builtins.list(blobs)
        sizes = in_parallel(lambda blob: self._client.blob_size(repository, parse_digest(blob.digest)), wanted)
        absent = [blob.digest for blob, size in zip(wanted, sizes, strict=True) if size is None]
        if absent:
            raise NotFound(
                f"{what} cannot be published: {len(absent)} of its blobs are missing: {', '.join(absent[:3])}",
                hint="run the command again",
                missing=absent,
            )
        for blob, size in zip(wanted, sizes, strict=True):
            if size is not None and size >= 0 and size != blob.size:
                raise mismatch(blob.digest, self.url, expected=blob.size, found=size)

    def _unknown(self, reference: Reference) -> NotFound:
        tags = sorted(tag for tag in self._client.tags(reference.repository) if _is_name(tag))
        cause = f"{reference.repository} has {', '.join(tags[-20:])}" if tags else "there is nothing of that name"
        message, hint = f"{reference} is not in {self.url}", "deltareg list --remote"
        return NotFound(message, cause=cause, hint=hint, reference=str(reference))


def registry_secret(address: Address, kept: Credentials) -> Secret | None:
    """The secret for an OCI registry: what `deltareg login` kept, else what docker or podman keep.

    Raises NotAllowed where that of docker or podman would travel without TLS: only a login of our own says that it may.
    """
    found = kept.find(key_of(address))
    if found is None:
        found = find_docker_secret(address.host, address.path, os.environ)
        if found is not None:
            check_plain(address, "what docker or podman keep")
    return found


def _client_of(address: Address, network: Network) -> OciClient:
    kept = Credentials()
    authorization = RegistryAuthorization(address, network, lambda: registry_secret(address, kept))
    http = HttpClient(address.origin, network, authorization=authorization, login=address.url)
    return OciClient(http, prefix=address.path)


def _version(reference: Reference, hint: str) -> str:
    if reference.version is None:
        raise BadName(f"{reference} does not name a version", hint=hint)
    return reference.version


def _is_name(tag: str) -> bool:
    return is_version(tag) or (is_channel(tag) and tag != LATEST)


def _marked_by(tag: str) -> str | None:
    """The version that a mark's tag is about."""
    for mark in ("_yanked.", "_deprecated."):
        if tag.startswith(mark) and is_version(tag[len(mark) :]):
            return tag[len(mark) :]
    return None


def _is_repository(name: str) -> bool:
    try:
        reference = parse_reference(name)
    except BadName:
        return False
    return str(reference) == name and reference.tag is None
