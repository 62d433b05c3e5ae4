"""Deltas in a server, put there without HTTP."""

from __future__ import annotations

from deltareg.digest import Digest, sha256
from deltareg.manifest import Manifest, parse
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg_registry.access.principal import Principal
from deltareg_registry.records.blobs import add_blob
from deltareg_registry.records.namespaces import make_namespace, make_repository
from deltareg_registry.records.publishing import publish
from deltareg_registry.state import State
from tests import deltas
from tests.deltas import add_delta

__all__ = ["OWNER", "pack_of", "publish_delta", "put_blobs"]

OWNER = Principal("owner", admin=True, token="test")


def pack_of(text: str) -> bytes:
    """A pack with one record, whose bytes are `text`."""
    return deltas.pack_of(text.encode())


def put_blobs(state: State, name: str, local: Store, manifest: bytes) -> None:
    """Put the blobs of an artifact into a repository of the server."""
    reference = parse_reference(name)
    with state.database.writing() as connection:
        make_namespace(connection, reference.namespace, OWNER, public=False)
        repository = make_repository(connection, reference.namespace, reference.name)
        for blob in parse(Manifest, manifest, what="test").blobs:
            data = local.read(Digest(blob.digest))
            assert state.storage.put(data) == sha256(data)
            add_blob(connection, repository, Digest(blob.digest), len(data))


def publish_delta(state: State, name: str, local: Store, text: str = "a record") -> Digest:
    """Publish a small delta under a version."""
    manifest = add_delta(local, [pack_of(text)])
    put_blobs(state, name, local, manifest)
    return publish(state.database, state.storage, OWNER, parse_reference(name), manifest).digest
