"""Deltas of tensors given as arrays, and sketches put to deltas that are too small to have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

import deltareg
from deltareg import Registry
from deltareg.artifact import Artifact
from deltareg.codec import FRAME_LANES
from deltareg.manifest import Descriptor, encode
from deltareg.sketch.projection import Sketcher
from deltareg.sketch.sketches import PROJECTION_TYPE, pack_sketches
from deltareg.store import Store
from tests.codec.tensors import Raw, of, write_checkpoint

__all__ = ["Tensors", "checkpoint", "sketched", "take", "with_layers"]

Tensors = Mapping[str, np.ndarray]


def checkpoint(path: Path, tensors: Mapping[str, Raw | np.ndarray]) -> Path:
    typed = {
        name: value if isinstance(value, Raw) else of("F32", value.astype(np.float32).view(np.uint32))
        for name, value in tensors.items()
    }
    return write_checkpoint(path, typed)


def take(registry: Registry, base: Path, post: Path, name: str) -> tuple[str, Artifact]:
    deltareg.diff(base, post, registry, f"acme/{name}:1.0.0", threads=1)
    return name, registry.artifact(f"acme/{name}:1.0.0")


def with_layers(store: Store, artifact: Artifact, *layers: bytes) -> Artifact:
    """The artifact with these layers of projections."""
    named = [Descriptor(media_type=PROJECTION_TYPE, digest=store.put(data), size=len(data)) for data in layers]
    manifest = artifact.manifest.model_copy(update={"layers": [*artifact.manifest.layers, *named]})
    return Artifact.open(store, store.put(encode(manifest)))


def sketched(store: Store, artifact: Artifact, deltas: Tensors) -> Artifact:
    """The artifact with the projections of these differences."""
    sketcher = Sketcher()
    for name, delta in deltas.items():
        typed = delta.astype(np.float32)
        for number, start in enumerate(range(0, typed.size, FRAME_LANES)):
            sketcher.add(name, typed.size, number, typed[start : start + FRAME_LANES])
    return with_layers(store, artifact, pack_sketches(sketcher.finish(), artifact.inventory.tensors))
