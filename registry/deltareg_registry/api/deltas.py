"""Deltas by name: what there is, and what a name leads to."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from deltareg.digest import Digest, parse_digest
from deltareg.errors import InvalidArgument
from deltareg.manifest import DeltaConfig, Descriptor, Document, Manifest, parse
from deltareg.names import Reference, parse_reference
from deltareg.store import Entry, channels_by_digest, parse_manifest, version_among
from deltareg_registry.api.asking import PROBLEMS, Asking
from deltareg_registry.api.documents import Limit
from deltareg_registry.records.manifests import find_manifest
from deltareg_registry.records.names import (
    entries_of,
    entry_of,
    list_deltas,
    referrers_of,
    version_row,
)
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.state import state_of

__all__ = ["SIGNATURE_TYPE", "deltas_router"]

SIGNATURE_TYPE = "application/vnd.deltareg.signature.v1+json"
"""Artifact type of a signature, whose subject is the delta's manifest."""

_CONFIG_LIMIT = 16 << 20

deltas_router = APIRouter(prefix="/api/v1/deltas", tags=["deltas"], responses=PROBLEMS)


class DeltaSummary(Document):
    """One delta, with all of its versions."""

    name: str = Field(description="namespace/name")
    latest: str = Field(description="the version that latest means: no pre-release, and not yanked, if there is one")
    versions: int = Field(description="how many there are")
    updated: str = Field(description="when the last of them was published, RFC 3339")


class DeltaPage(Document):
    """Some of the deltas, by name."""

    deltas: list[DeltaSummary]
    next_cursor: str | None = Field(default=None, description="cursor of the next page; null after the last")


class NamedEntry(Document):
    """A version, or a channel that leads to one."""

    reference: str
    digest: str = Field(description="of the manifest")
    size: int = Field(description="bytes of the manifest")
    created: str = Field(description="when it was published, or moved last, RFC 3339")
    yanked: str | None = Field(default=None, description="why it was yanked; null where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; null where it was not")


class EntryList(Document):
    """All names of one delta."""

    entries: list[NamedEntry]


class Resolved(Document):
    """What a name leads to."""

    reference: str = Field(description="namespace/name:version")
    digest: str = Field(description="of the manifest")
    version: str


class SignatureList(Document):
    """The signatures of a version."""

    signatures: list[Descriptor]


class VersionDetails(Document):
    """One version."""

    reference: str
    digest: str = Field(description="of the manifest")
    manifest_size: int = Field(description="bytes of the manifest")
    size: int = Field(description="bytes of the artifact: manifest, config and layers")
    created: str = Field(description="RFC 3339")
    publisher: str | None = Field(default=None, description="the user who published it")
    yanked: str | None = Field(default=None, description="why it was yanked; absent where it was not")
    deprecated: str | None = Field(default=None, description="why it was deprecated; absent where it was not")
    channels: list[str] = Field(description="channels that lead to it")
    signatures: list[Descriptor]
    manifest: Manifest
    config: DeltaConfig


@deltas_router.get("")
def deltas(
    request: Request,
    asking: Asking,
    namespace: str | None = None,
    cursor: Annotated[str | None, Query(description="nextCursor of the page before")] = None,
    limit: Limit = 100,
) -> DeltaPage:
    """The deltas that whoever asks may read, by name."""
    if namespace is not None:
        parse_reference(f"{namespace}/x")
    with state_of(request).database.reading() as connection:
        page = list_deltas(connection, asking, namespace=namespace, cursor=cursor, limit=limit)
    found = [
        DeltaSummary(
            name=f"{delta.namespace}/{delta.name}", latest=delta.latest, versions=delta.versions, updated=delta.updated
        )
        for delta in page.deltas
    ]
    return DeltaPage(deltas=found, next_cursor=page.next_cursor)


@deltas_router.get("/{namespace}/{name}")
def entries(request: Request, asking: Asking, namespace: str, name: str) -> EntryList:
    """All versions and channels of a delta."""
    found = _names(request, Reference(namespace, name))
    return EntryList(
        entries=[
            NamedEntry(
                reference=str(entry.reference),
                digest=entry.digest,
                size=entry.size,
                created=entry.created,
                yanked=entry.yanked,
                deprecated=entry.deprecated,
            )
            for entry in found
        ]
    )


@deltas_router.get("/{namespace}/{name}/resolve")
def resolve(
    request: Request,
    asking: Asking,
    namespace: str,
    name: str,
    tag: Annotated[str | None, Query(description="a version, a channel, or latest, which is the default")] = None,
    digest: Annotated[str | None, Query(description="of a manifest")] = None,
) -> Resolved:
    """What a version, a channel, `latest` or a digest leads to. `latest` skips what is yanked."""
    if tag is not None and digest is not None:
        raise InvalidArgument("a tag and a digest were given", hint="give one of them")
    wanted = Reference(namespace, name, digest=None if digest is None else parse_digest(digest))
    if tag is not None:
        wanted = parse_reference(f"{namespace}/{name}:{tag}")
    found = _names(request, wanted)
    entry = entry_of(found, wanted)
    version = version_among(found, wanted if wanted.tag is not None else entry.reference, entry.digest)
    # An entry is a version, or a channel that leads to one.
    assert version is not None
    return Resolved(reference=str(version), digest=entry.digest, version=str(version.tag))


# Manifests, configs and descriptors leave out what is absent; so does all around them.
@deltas_router.get("/{namespace}/{name}/versions/{version}", response_model_exclude_none=True)
def version_details(request: Request, asking: Asking, namespace: str, name: str, version: str) -> VersionDetails:
    """All that is known of a version."""
    state = state_of(request)
    reference = parse_reference(f"{namespace}/{name}:{version}", version_required=True)
    with state.database.reading() as connection:
        repository = repository_id(connection, namespace, name)
        row = version_row(connection, repository, reference)
        data = find_manifest(connection, repository, Digest(row["digest"])).content
        named = [(entry.reference, entry.digest) for entry in entries_of(connection, repository, reference)]
        signed = referrers_of(connection, repository, row["digest"], SIGNATURE_TYPE)
    config = state.storage.read(Digest(row["config"]), limit=_CONFIG_LIMIT)
    return VersionDetails(
        reference=str(reference),
        digest=row["digest"],
        manifest_size=row["manifest_size"],
        size=row["size"],
        created=row["created"],
        publisher=row["publisher"],
        yanked=row["yanked"],
        deprecated=row["deprecated"],
        channels=channels_by_digest(named).get((reference.repository, row["digest"]), []),
        signatures=[_descriptor(one) for one in signed],
        manifest=parse_manifest(data, what=f"the manifest of {reference}"),
        config=parse(DeltaConfig, config, what=f"the config of {reference}"),
    )


@deltas_router.get("/{namespace}/{name}/versions/{version}/signatures", response_model_exclude_none=True)
def signatures(request: Request, asking: Asking, namespace: str, name: str, version: str) -> SignatureList:
    """The signatures of a version: manifests that name its own as their subject."""
    reference = parse_reference(f"{namespace}/{name}:{version}", version_required=True)
    with state_of(request).database.reading() as connection:
        repository = repository_id(connection, namespace, name)
        row = version_row(connection, repository, reference)
        found = referrers_of(connection, repository, row["digest"], SIGNATURE_TYPE)
    return SignatureList(signatures=[_descriptor(one) for one in found])


def _names(request: Request, wanted: Reference) -> list[Entry]:
    with state_of(request).database.reading() as connection:
        return entries_of(connection, repository_id(connection, wanted.namespace, wanted.name), wanted)


def _descriptor(row: Any) -> Descriptor:
    return Descriptor(
        media_type=row["media_type"],
        digest=row["digest"],
        size=row["size"],
        artifact_type=row["artifact_type"],
        annotations=row["annotations"] or None,
    )
