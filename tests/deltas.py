"""Small artifacts, made of their documents and of any bytes as packs; and damage done to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zstandard
from safetensors.numpy import save

from deltareg.digest import Digest, sha256
from deltareg.manifest import (
    CONFIG_TYPE,
    EMPTY_TYPE,
    INVENTORY_TYPE,
    MANIFEST_TYPE,
    PACK_TYPE,
    DeltaConfig,
    Descriptor,
    Exactness,
    Fingerprint,
    Inventory,
    Manifest,
    Norms,
    Parent,
    ReferrerManifest,
    Requirement,
    encode,
    parse,
)
from deltareg.names import parse_reference
from deltareg.store import Store
from deltareg.store.index import REF_NAME, write_index

__all__ = [
    "SCAN",
    "add_delta",
    "add_referrer",
    "blob_files",
    "descriptor",
    "flip",
    "noise",
    "pack_of",
    "publish",
    "publish_unread",
    "with_config",
]

SCAN = "application/vnd.acme.scan+json"
"""An artifact type that deltareg knows nothing of."""


def add_delta(
    store: Store,
    packs: Sequence[bytes] = (b"a pack",),
    *,
    description: str | None = None,
    requires: Sequence[Requirement] = (),
) -> bytes:
    """Store the blobs of an artifact and return its manifest."""
    parent = Parent(
        id="hf://acme/base",
        digest="blake3:" + "0" * 64,
        dtypes={"BF16": 1000},
        parameters=1000,
        size=2000,
        licence="apache-2.0",
    )
    config = DeltaConfig(
        fingerprint=Fingerprint(
            digest=sha256(b"structure"),
            space=sha256(b"space"),
            inventory=sha256(b"names and shapes"),
            model_type="bert",
        ),
        base=parent,
        post=parent,
        exactness=Exactness(),
        licence="apache-2.0",
        preset="fast",
        norms={"other": Norms(base=1, delta=0.1, parameters=1000)},
        requires=list(requires),
        producer="deltareg tests",
        description=description,
    )
    inventory = zstandard.ZstdCompressor().compress(encode(Inventory(tensors=[])))
    manifest = Manifest(
        config=_put(store, encode(config), CONFIG_TYPE),
        layers=[_put(store, inventory, INVENTORY_TYPE), *(_put(store, pack, PACK_TYPE) for pack in packs)],
    )
    return encode(manifest)


def pack_of(data: bytes) -> bytes:
    """A pack, which is a safetensors file, with one record whose bytes are `data`."""
    return save({"layer.0.weight": np.frombuffer(data, np.uint8)})


def publish(store: Store, name: str, packs: Sequence[bytes] = (b"a pack",)) -> Digest:
    """Store an artifact and give it a version's name."""
    return store.publish(parse_reference(name), add_delta(store, packs))


def add_referrer(
    store: Store,
    subject: Digest,
    layer: bytes = b"a scan",
    *,
    kind: str | None = SCAN,
    layer_type: str = "application/json",
) -> bytes:
    """Store the blobs of a referrer and return its manifest."""
    manifest = ReferrerManifest(
        artifact_type=kind,
        config=_put(store, b"{}", EMPTY_TYPE),
        layers=[_put(store, layer, layer_type)],
        subject=Descriptor(media_type=MANIFEST_TYPE, digest=subject, size=store.size(subject)),
    )
    return encode(manifest)


def with_config(store: Store, config: bytes, media_type: str = CONFIG_TYPE) -> bytes:
    """Store an artifact whose config is these bytes, whatever they are; return its manifest."""
    manifest = parse(Manifest, add_delta(store), what="test")
    return encode(manifest.model_copy(update={"config": _put(store, config, media_type)}))


def publish_unread(store: Store, name: str, config: bytes, media_type: str = CONFIG_TYPE) -> Digest:
    """Name an artifact whose config deltareg refuses, as another program or a newer version would."""
    manifest = with_config(store, config, media_type)
    named = descriptor(manifest, MANIFEST_TYPE).model_copy(update={"annotations": {REF_NAME: name}})
    write_index(
        store.index_path,
        store.snapshot().with_entry(parse_reference(name), named),
        temporary=store.scratch(),
    )
    return store.put(manifest)


def descriptor(data: bytes, media_type: str = PACK_TYPE) -> Descriptor:
    """What names `data` in a manifest."""
    return Descriptor(media_type=media_type, digest=sha256(data), size=len(data))


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that look random and are the same for the same seed."""
    block = b"".join(sha256(f"{seed} {number}".encode())[-32:].encode() for number in range(256))
    return (block * (size // len(block) + 1))[:size]


def blob_files(root: Path) -> list[Path]:
    """The files of a store's blobs."""
    return sorted((root / "blobs" / "sha256").iterdir())


def flip(path: Path, bit: int = 0) -> None:
    """Flip one bit of a file, in place: size and times stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _put(store: Store, data: bytes, media_type: str) -> Descriptor:
    store.put(data)
    return descriptor(data, media_type)
