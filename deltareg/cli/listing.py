"""What `list` and `show` tell, as documents."""

from __future__ import annotations

from deltareg.catalog import Registry
from deltareg.cli.reports import DeltaDetails, DeltaList
from deltareg.cli.session import home_of, open_registry, remote_cache
from deltareg.config import Settings
from deltareg.errors import NotFound
from deltareg.names import parse_reference
from deltareg.remote import Remote
from deltareg.remote.search import RemoteCatalog
from deltareg.signatures import signatures_of

__all__ = ["details_of", "local_deltas", "remote_deltas"]

_MOST_READ = 200
"""Versions whose documents are read for a list: two requests each."""


def local_deltas(settings: Settings, repository: str | None) -> DeltaList:
    """The versions in the local registry. Raises NotFound for an unknown repository; nothing stored yet is no error."""
    try:
        rows = open_registry(settings).list(repository)
    except NotFound:
        if repository is not None:
            raise
        rows = []
    return DeltaList(registry=str(home_of(settings)), deltas=rows)


def remote_deltas(settings: Settings, remote: Remote, repository: str | None) -> DeltaList:
    """The versions at a remote; what their documents tell, where they were read before or are few.

    Raises NotFound for an unknown repository.
    """
    wanted = None if repository is None else parse_reference(repository).repository
    rows = RemoteCatalog(remote, remote_cache(settings)).rows(wanted, most=_MOST_READ)
    if wanted is not None and not rows:
        raise NotFound(
            f"{wanted} is not in {remote.url}", hint=f"deltareg list --remote {remote.url}", reference=wanted
        )
    return DeltaList(registry=remote.url, deltas=rows)


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
        deprecated=registry.deprecated(entry.reference),
        manifest=artifact.manifest,
        config=artifact.config,
        signatures=signatures_of(registry, entry.reference),
        tensors=artifact.inventory.tensors if tensors else None,
    )
