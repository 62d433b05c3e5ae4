"""Where candidates come from: the local registry, or the one remote that a name is bound to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from deltareg.artifact import Artifact
from deltareg.catalog import Registry
from deltareg.digest import Digest, parse_digest
from deltareg.errors import DigestMismatch, InvalidArgument, NotFound
from deltareg.manifest import Conflict, Descriptor, Exactness, Requirement
from deltareg.names import LOCAL, Reference, parse_reference
from deltareg.remote import Network, Remote, RemoteReferrers, open_remote, read_blob, read_manifest
from deltareg.signatures import learn_signers
from deltareg.signing import ReferrerSource, StoreReferrers, Verified
from deltareg.spelling import did_you_mean
from deltareg.store import Entry, Store, channels_by_digest

__all__ = ["LOCAL", "Candidate", "Details", "RegistrySource", "RemoteSource", "Source", "Sources"]

# What is looked at before anything is chosen: documents, samples, tokenizers, and no packs.
_METADATA_LIMIT = 512 * 2**20


@dataclass(frozen=True)
class Candidate:
    """One published version: `remote` is the name of where it is, `created` an RFC 3339 time or empty."""

    reference: Reference
    digest: Digest
    remote: str
    created: str = ""
    yanked: str | None = None
    channels: tuple[str, ...] = ()
    deprecated: str | None = None

    @property
    def repository(self) -> str:
        """`namespace/name`."""
        return self.reference.repository

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.reference.tag)

    def __str__(self) -> str:
        return f"{self.repository} {self.version}"


@dataclass(frozen=True)
class Details:
    """What a candidate says of itself; `size` is that of the artifact in bytes."""

    licence: str | None = None
    exactness: Exactness = field(default_factory=Exactness)
    requires: tuple[Requirement, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    size: int = 0


class Source(Protocol):
    """A registry to choose from."""

    name: str

    def candidates(self, repository: str) -> list[Candidate]:
        """Every published version, in no order; none for an unknown name. Raises RemoteUnavailable, NotAllowed."""
        ...

    def details(self, candidate: Candidate) -> Details:
        """What a candidate says of itself. Raises NotFound, DigestMismatch, BadManifest, UnsupportedFormat."""
        ...

    def artifact(self, candidate: Candidate) -> Artifact:
        """A candidate to be checked: its documents, samples and side files, but not its packs. Raises as `details`."""
        ...


class RegistrySource:
    """The registry of this machine."""

    name = LOCAL

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def candidates(self, repository: str) -> list[Candidate]:
        """Every version that is stored here."""
        try:
            rows = self._registry.list(repository)
        except NotFound:
            return []
        return [
            Candidate(
                reference=parse_reference(row.reference),
                digest=Digest(row.digest),
                remote=self.name,
                created=row.created,
                yanked=row.yanked,
                channels=tuple(row.channels),
                deprecated=row.deprecated,
            )
            for row in rows
        ]

    def details(self, candidate: Candidate) -> Details:
        """What a candidate says of itself."""
        return _details(self.artifact(candidate))

    def artifact(self, candidate: Candidate) -> Artifact:
        """A candidate, whole."""
        return Artifact.open(self._registry.store, candidate.digest)


class RemoteSource:
    """A remote. With `keeps` documents that are looked at stay in the local store, where a pull finds them."""

    def __init__(self, name: str, remote: Remote, store: Store, *, keeps: bool = True) -> None:
        self.name = name
        self.remote = remote
        self._store = store
        self._keeps = keeps
        self._blobs: dict[str, _RemoteBlobs] = {}
        self._listed: dict[str, list[Candidate]] = {}

    def candidates(self, repository: str) -> list[Candidate]:
        """Every version that the remote has: asked once."""
        if repository not in self._listed:
            self._listed[repository] = _versions(self.remote.list(repository), self.name)
        return self._listed[repository]

    def details(self, candidate: Candidate) -> Details:
        """What a candidate says of itself: its manifest and its config are fetched."""
        return _details(self.artifact(candidate))

    def artifact(self, candidate: Candidate) -> Artifact:
        """A candidate whose documents are fetched when they are looked at."""
        repository = candidate.repository
        if repository not in self._blobs:
            self._blobs[repository] = _RemoteBlobs(self.remote, repository, self._store, self._keeps)
        blobs = self._blobs[repository]
        artifact = Artifact.open(blobs, candidate.digest)
        blobs.learn(artifact.manifest.blobs)
        return artifact


class _RemoteBlobs:
    """Small blobs of one repository of a remote, each verified. Packs are not among them."""

    def __init__(self, remote: Remote, repository: str, store: Store, keeps: bool) -> None:
        self._remote = remote
        self._repository = repository
        self._store = store
        self._keeps = keeps
        self._read: dict[Digest, bytes] = {}
        self._known: dict[str, Descriptor] = {}

    def learn(self, blobs: list[Descriptor]) -> None:
        """Let the blobs of a manifest be read."""
        self._known.update({blob.digest: blob for blob in blobs})

    def path(self, digest: Digest) -> Path:
        """The file of a blob that was pulled before."""
        return self._store.path(digest)

    def read(self, digest: Digest, *, limit: int = _METADATA_LIMIT) -> bytes:
        """A blob of at most `limit` bytes, from the local store or else from the remote."""
        if digest in self._read:
            return self._read[digest]
        try:
            return self._store.read(digest, limit=limit)
        except (NotFound, DigestMismatch):
            data = self._fetch(digest, limit)
        if self._keeps:
            self._store.put(data)
        else:
            self._read[digest] = data
        return data

    def _fetch(self, digest: Digest, limit: int) -> bytes:
        blob = self._known.get(digest)
        if blob is None:
            return read_manifest(self._remote, self._repository, digest)
        return read_blob(self._remote, self._repository, blob, limit)


@dataclass
class Sources:
    """Which registry a name is looked up in: one, and no other.

    `urls` are the remotes by name; `bound` gives the remote of a namespace or of a namespace/name. A name that is bound
    nowhere belongs to `default`, and where there is none to this machine. `offline` asks no remote: what was pulled
    before is what there is. With `keeps` the documents that are looked at stay in the local store, where a pull finds
    them.
    """

    registry: Registry
    urls: Mapping[str, str] = field(default_factory=dict[str, str])
    bound: Mapping[str, str] = field(default_factory=dict[str, str])
    default: str | None = None
    offline: bool = False
    keeps: bool = True
    network: Network = field(default_factory=Network)
    _opened: dict[str, Source] = field(default_factory=dict[str, Source], init=False, repr=False)
    _asked: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]], init=False, repr=False)

    def remote_of(self, repository: str, wanted: str | None = None) -> str:
        """The name of the remote that a name is bound to; `wanted` is what the recipe says of it."""
        return wanted or self._bound_to(repository) or self.default or LOCAL

    def required_from(self, repository: str, by: str) -> str:
        """The name of the remote of what a delta of the remote `by` requires."""
        return self._bound_to(repository) or by

    def _bound_to(self, repository: str) -> str | None:
        return self.bound.get(repository) or self.bound.get(repository.partition("/")[0])

    def named(self, name: str) -> Source:
        """The registry of that name. Raises InvalidArgument for an unknown one."""
        if name not in self._opened:
            if name == LOCAL or self.offline:
                self._opened[name] = _named_source(self.registry, name)
            else:
                self._opened[name] = RemoteSource(name, self.remote(name), self.registry.store, keeps=self.keeps)
        return self._opened[name]

    def check_signed(self, reference: Reference, digest: Digest, name: str, *, ask: bool = True) -> list[Verified]:
        """Refuse a delta that a policy forbids: neither here nor at the remote `name` is a signature that suffices.

        With `ask` the remote is asked for its own policy first, once for a namespace. Raises SignatureMissing,
        SignatureUntrusted, SignatureInvalid, SignersChanged, RemoteUnavailable; BadManifest for a policy that is none.
        """
        place = (name, reference.namespace)
        if ask and name != LOCAL and not self.offline and place not in self._asked:
            learn_signers(self.registry, self.remote(name), reference.namespace, keep=self.keeps)
            self._asked.add(place)
        return self.registry.check_policies(reference, digest, self.referrers(name))

    def referrers(self, name: str) -> Iterable[ReferrerSource]:
        """Where signatures of what comes from the remote `name` are looked for, as often as it is gone through."""
        return _Referrers(self, name)

    def remote(self, name: str) -> Remote:
        """The remote of that name. Raises InvalidArgument for an unknown one."""
        if name not in self.urls:
            known = ", ".join([*self.urls, LOCAL])
            raise InvalidArgument(
                f"no remote is called {name!r}{did_you_mean(name, [*self.urls, LOCAL])}",
                cause=f"there are {known}",
                # A default remote that is given by its path is called by that, and is known by it on one machine alone.
                hint="give the remote a name (deltareg remote add NAME URL --default), then deltareg lock"
                if "/" in name
                else f"deltareg remote add {name} URL",
            )
        return open_remote(self.urls[name], self.network)


@dataclass(frozen=True)
class _Referrers:
    """This machine first: the remote is asked only where that does not do."""

    sources: Sources
    name: str

    def __iter__(self) -> Iterator[ReferrerSource]:
        yield StoreReferrers(self.sources.registry.store)
        if self.name != LOCAL and not self.sources.offline:
            yield RemoteReferrers(self.sources.remote(self.name))


def _named_source(registry: Registry, name: str) -> RegistrySource:
    source = RegistrySource(registry)
    source.name = name
    return source


def _versions(entries: list[Entry], remote: str) -> list[Candidate]:
    """The versions among the names of a repository, each with the channels that point to it."""
    channels = channels_by_digest((entry.reference, entry.digest) for entry in entries)
    return [
        Candidate(
            reference=entry.reference,
            digest=parse_digest(entry.digest),
            remote=remote,
            created=entry.created,
            yanked=entry.yanked,
            channels=tuple(channels.get((entry.reference.repository, entry.digest), [])),
            deprecated=entry.deprecated,
        )
        for entry in entries
        if entry.reference.version is not None
    ]


def _details(artifact: Artifact) -> Details:
    config = artifact.config
    return Details(
        licence=config.licence,
        exactness=config.exactness,
        requires=tuple(config.requires),
        conflicts=tuple(config.conflicts),
        size=artifact.size,
    )
