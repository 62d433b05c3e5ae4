"""Deltas in a server, put there without HTTP."""

from __future__ import annotations

import numpy as np

from deltareg import Registry
from deltareg.digest import Digest, sha256
from deltareg.manifest import Descriptor, Manifest, encode, parse
from deltareg.names import parse_reference
from deltareg.sketch.projection import Sketcher
from deltareg.sketch.sketches import PROJECTION_TYPE, pack_sketches
from deltareg.store import Store
from deltareg_registry.access.principal import Principal
from deltareg_registry.records.blobs import add_blob
from deltareg_registry.records.namespaces import make_namespace, make_repository
from deltareg_registry.records.publishing import publish
from deltareg_registry.state import State
from tests import deltas
from tests.deltas import add_delta

__all__ = ["OWNER", "pack_of", "publish_delta", "put_blobs", "put_delta", "store_blob", "with_sketches"]

OWNER = Principal("owner", admin=True, token="test")


def pack_of(text: str) -> bytes:
    """A pack with one record, whose bytes are `text`."""
    return deltas.pack_of(text.encode())


def store_blob(state: State, data: bytes) -> Digest:
    """Put bytes into the storage, of which the database knows nothing."""
    digest = sha256(data)
    state.storage.put_stream(digest, len(data), [data])
    return digest


def put_blobs(state: State, name: str, local: Store, manifest: bytes) -> None:
    """Put the blobs of an artifact into a repository of the server."""
    reference = parse_reference(name)
    with state.database.writing() as connection:
        make_namespace(connection, reference.namespace, OWNER, public=False)
        repository = make_repository(connection, reference.namespace, reference.name)
        for blob in parse(Manifest, manifest, what="test").blobs:
            data = local.read(Digest(blob.digest))
            store_blob(state, data)
            add_blob(connection, repository, Digest(blob.digest), len(data))


def publish_delta(state: State, name: str, local: Store, text: str = "a record") -> Digest:
    """Publish a small delta under a version."""
    manifest = add_delta(local, [pack_of(text)])
    put_blobs(state, name, local, manifest)
    return publish(state.database, state.storage, OWNER, parse_reference(name), manifest).digest


def put_delta(state: State, registry: Registry, name: str, manifest: bytes) -> None:
    """Publish a delta of a registry, whose manifest is given."""
    put_blobs(state, name, registry.store, manifest)
    publish(state.database, state.storage, OWNER, parse_reference(name), manifest)


def with_sketches(registry: Registry, name: str, seed: int) -> bytes:
    """The manifest of a delta with made-up sketches of its larger tensors."""
    artifact = registry.artifact(name)
    draw, common = np.random.default_rng(seed), np.random.default_rng(0)
    sketcher = Sketcher()
    for entry in artifact.inventory.tensors:
        size = int(np.prod(entry.shape))
        if size >= 1 << 13 and entry.post_dtype == "BF16":
            values = (common.standard_normal(size) + draw.standard_normal(size)).astype(np.float32)
            sketcher.add(entry.name, size, 0, (values.view(np.uint32) >> 16).astype(np.uint16))
    data = pack_sketches(sketcher.finish(), artifact.inventory.tensors)
    layer = Descriptor(media_type=PROJECTION_TYPE, digest=registry.store.put(data), size=len(data))
    manifest = encode(artifact.manifest.model_copy(update={"layers": [*artifact.manifest.layers, layer]}))
    registry.store.put(manifest)
    return manifest
