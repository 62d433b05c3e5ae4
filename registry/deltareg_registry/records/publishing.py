"""Publishing a version: everything is checked, and then it is there, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from deltareg.catalog.rows import columns_of
from deltareg.checkpoint import read_header
from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import BadManifest, BadName, DigestMismatch, NotFound
from deltareg.manifest import (
    CONFIG_TYPE,
    INVENTORY_TYPE,
    MANIFEST_TYPE,
    PACK_TYPE,
    DeltaConfig,
    Descriptor,
    Manifest,
    parse,
)
from deltareg.names import Reference, is_licence
from deltareg.store import parse_manifest
from deltareg_registry.access.principal import Principal
from deltareg_registry.database import Database, now
from deltareg_registry.database.tables import versions
from deltareg_registry.records.artifacts import parse_artifact
from deltareg_registry.records.blobs import sizes_of, touch
from deltareg_registry.records.events import announce
from deltareg_registry.records.manifests import keep_manifest
from deltareg_registry.records.namespaces import locked_repository, make_repository
from deltareg_registry.records.searchable import make_searchable
from deltareg_registry.records.tags import check_free
from deltareg_registry.storage import Storage
from deltareg_registry.storage.source import StorageSource

__all__ = ["Published", "publish"]

_CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True)
class Published:
    """What became of a publish: `created` is False where the version had these very bytes before."""

    digest: Digest
    created: bool


@dataclass(frozen=True)
class _Candidate:
    """A manifest that was looked through, and may be published if its version is free."""

    reference: Reference
    data: bytes
    digest: Digest
    manifest: Manifest
    config: DeltaConfig


def publish(
    database: Database,
    storage: Storage,
    principal: Principal,
    reference: Reference,
    data: bytes,
    *,
    address: str | None = None,
) -> Published:
    """Name a delta's manifest, all of whose blobs are in the repository, by a version.

    The same bytes again change nothing. Raises VersionExists for other bytes, also where the version was removed;
    BadName where `reference` is no version; BadManifest, UnsupportedFormat, BadHeader, DigestMismatch where the delta
    is not what a delta has to be; NotFound where blobs are missing.
    """
    if reference.version is None:
        raise BadName(f"{reference} does not name a version", hint="to publish, write namespace/name:1.2.3")
    manifest = parse_manifest(data, what=f"the manifest of {reference}")
    with database.writing() as connection:
        repository = make_repository(connection, reference.namespace, reference.name)
        _check_blobs(connection, repository, reference, manifest.blobs)
        # From here on the collector spares them for its grace period.
        touch(connection, (parse_digest(blob.digest) for blob in manifest.blobs))
    candidate = _Candidate(reference, data, sha256(data), manifest, _examined(storage, reference, manifest))
    with database.writing() as connection:
        return _name(connection, principal, candidate, address)


def _examined(storage: Storage, reference: Reference, manifest: Manifest) -> DeltaConfig:
    """The config of a delta whose documents and packs are what they have to be. No transaction is open meanwhile."""
    if manifest.config.media_type != CONFIG_TYPE:
        raise BadManifest(f"{reference} has a config of another type: {manifest.config.media_type}")
    if len(manifest.layers_of(INVENTORY_TYPE)) != 1:
        raise BadManifest(f"{reference} has {len(manifest.layers_of(INVENTORY_TYPE))} inventories instead of one")
    data = storage.read(Digest(manifest.config.digest), limit=_CONFIG_LIMIT)
    config = parse(DeltaConfig, data, what=f"the config of {reference}")
    if config.licence is None or not is_licence(config.licence):
        raise BadManifest(
            f"{reference} names no licence", hint="say under which it is shared: deltareg diff --licence apache-2.0"
        )
    for pack in manifest.layers_of(PACK_TYPE):
        # A reader believes the header: a hostile one is stopped here, once for everybody.
        read_header(StorageSource(storage, pack))
    return config


def _name(connection: Connection, principal: Principal, candidate: _Candidate, address: str | None) -> Published:
    reference, digest = candidate.reference, candidate.digest
    # One publisher of a repository at a time.
    repository = locked_repository(connection, reference.namespace, reference.name)
    _check_blobs(connection, repository, reference, candidate.manifest.blobs, hold=True)
    check_free(connection, repository, reference, digest)
    same = (versions.c.repository == repository, versions.c.version == reference.version)
    found = connection.execute(select(versions.c.digest).where(*same)).scalar_one_or_none()
    if found is not None:
        return Published(digest, created=False)
    keep_manifest(connection, repository, parse_artifact(candidate.data, MANIFEST_TYPE))
    row = _row(candidate, repository, principal)
    number: int = connection.execute(insert(versions).values(row).returning(versions.c.id)).scalar_one()
    make_searchable(connection, number, row)
    announce(connection, principal, "version.publish", reference, {"digest": digest}, address=address)
    return Published(digest, created=True)


def _row(candidate: _Candidate, repository: int, principal: Principal) -> dict[str, object]:
    reference = candidate.reference
    return {
        "repository": repository,
        "namespace": reference.namespace,
        "name": reference.name,
        "version": reference.version,
        "digest": candidate.digest,
        "manifest_size": len(candidate.data),
        "created": now(),
        "publisher": principal.user,
        "config": candidate.manifest.config.digest,
        "size": len(candidate.data) + sum(blob.size for blob in candidate.manifest.blobs),
        "base_digest": candidate.config.base.digest,
        **columns_of(candidate.config),
    }


def _check_blobs(
    connection: Connection,
    repository: int,
    reference: Reference,
    wanted: Iterable[Descriptor],
    *,
    hold: bool = False,
) -> None:
    blobs = list(wanted)
    sizes = sizes_of(connection, repository, (parse_digest(blob.digest) for blob in blobs), hold=hold)
    absent = [blob.digest for blob in blobs if blob.digest not in sizes]
    if absent:
        raise NotFound(
            f"{reference} cannot be published: {len(absent)} of its blobs are missing: {', '.join(absent[:3])}",
            hint="run the command again",
            missing=absent[:1000],
        )
    for blob in blobs:
        found = sizes[Digest(blob.digest)]
        if found != blob.size:
            raise DigestMismatch(
                f"{blob.digest} has {found} bytes, not the {blob.size} that the manifest of {reference} says",
                hint="ask its publisher to make it anew",
                digest=blob.digest,
            )
