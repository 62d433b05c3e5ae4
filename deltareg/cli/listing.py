"""What `list` and `show` tell, as documents."""

from __future__ import annotations

from deltareg.catalog import CatalogRow, Registry
from deltareg.cli.reports import DeltaDetails, DeltaList
from deltareg.cli.session import home_of, open_registry
from deltareg.config import Settings
from deltareg.errors import NotFound
from deltareg.names import parse_reference, version_key
from deltareg.remote import Remote, RemoteEntry
from deltareg.signatures import signatures_of

__all__ = ["details_of", "local_deltas", "remote_deltas"]


def local_deltas(settings: Settings, repository: str | None) -> DeltaList:
    """The versions in the local registry. Raises NotFound for an unknown repository; nothing stored yet is no error."""
    try:
        rows = open_registry(settings).list(repository)
    except NotFound:
        if repository is not None:
            raise
        rows = []
    return DeltaList(registry=str(home_of(settings)), deltas=rows)


def remote_deltas(remote: Remote, repository: str | None) -> DeltaList:
    """The versions at a remote, with what its names tell. Raises NotFound for an unknown repository."""
    wanted = None if repository is None else parse_reference(repository).repository
    entries = remote.list(wanted)
    if wanted is not None and not entries:
        raise NotFound(
            f"{wanted} is not in {remote.url}", hint=f"deltareg list --remote {remote.url}", reference=wanted
        )
    versions = [entry for entry in entries if entry.reference.version is not None]
    versions.sort(key=lambda entry: (entry.reference.repository, version_key(str(entry.reference.tag))))
    return DeltaList(registry=remote.url, deltas=[_row(entry, entries) for entry in versions])


def details_of(registry: Registry, reference: str, *, tensors: bool) -> DeltaDetails:
    """One delta's documents, verified. Raises NotFound, DigestMismatch, BadManifest."""
    entry = registry.store.entry(parse_reference(reference))
    artifact = registry.artifact(entry.reference)
    return DeltaDetails(
        reference=str(entry.reference),
        digest=entry.digest,
        size=artifact.size,
        created=entry.created,
        yanked=registry.yanked(entry.reference),
        manifest=artifact.manifest,
        config=artifact.config,
        signatures=signatures_of(registry, entry.reference),
        tensors=artifact.inventory.tensors if tensors else None,
    )


def _row(version: RemoteEntry, entries: list[RemoteEntry]) -> CatalogRow:
    channels = [
        str(other.reference.tag)
        for other in entries
        if other.reference.version is None
        and (other.reference.repository, other.digest) == (version.reference.repository, version.digest)
    ]
    return CatalogRow(
        reference=str(version.reference),
        digest=version.digest,
        created=version.created,
        manifest_size=version.size,
        channels=sorted(channels),
        yanked=version.yanked,
    )
