"""Deltas of the registry, opened as `deltareg` opens those of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import literal, select

from deltareg.artifact import Artifact
from deltareg.digest import Digest
from deltareg.errors import NotFound
from deltareg.names import Reference, parse_reference
from deltareg.store import parse_manifest, version_among
from deltareg_registry.access.principal import Principal
from deltareg_registry.records.manifests import find_manifest
from deltareg_registry.records.names import entries_of, entry_of
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.records.readable import readable
from deltareg_registry.state import State
from deltareg_registry.storage import Storage

__all__ = ["open_delta"]

_BLOB_LIMIT = 256 << 20


@dataclass(frozen=True)
class _StoredBlobs:
    """The blobs of the storage as an artifact reads them: small ones, and no packs."""

    storage: Storage

    def path(self, digest: Digest) -> Path:
        """Raises NotFound: packs are read by who applies them."""
        raise NotFound(f"{digest} is no file here")

    def read(self, digest: Digest, *, limit: int = _BLOB_LIMIT) -> bytes:
        """A small blob, verified. Raises NotFound, DigestMismatch, BadManifest."""
        return self.storage.read(digest, limit=limit)


def open_delta(state: State, principal: Principal, name: str) -> tuple[Reference, Artifact]:
    """The version that a name leads to, and its artifact. Raises BadName; NotFound, also for what one may not read."""
    wanted = parse_reference(name)
    with state.database.reading() as connection:
        if not connection.execute(select(readable(principal, literal(wanted.namespace)))).scalar():
            raise NotFound(f"{wanted.repository} is not in the registry", hint="deltareg login URL")
        repository = repository_id(connection, wanted.namespace, wanted.name)
        entries = entries_of(connection, repository, wanted)
        entry = entry_of(entries, wanted)
        data = find_manifest(connection, repository, entry.digest).content
    version = version_among(entries, entry.reference, entry.digest) or entry.reference
    manifest = parse_manifest(data, what=f"the manifest of {version}")
    return version, Artifact(_StoredBlobs(state.storage), entry.digest, manifest, len(data))
