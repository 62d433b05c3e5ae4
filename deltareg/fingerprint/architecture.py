"""The fingerprint of a checkpoint, from its headers and `config.json` alone."""

from __future__ import annotations

from collections.abc import Iterable

from deltareg.checkpoint import Checkpoint
from deltareg.digest import Digest, canonical_json, sha256
from deltareg.manifest import Fingerprint

__all__ = ["fingerprint_of", "inventory_digest"]


def fingerprint_of(checkpoint: Checkpoint) -> Fingerprint:
    """The fingerprint of the parameter space that `checkpoint` lies in."""
    config = checkpoint.config or {}
    model_type = config.get("model_type")
    return Fingerprint(
        inventory=inventory_digest((tensor.name, tensor.shape) for tensor in checkpoint.tensors.values()),
        model_type=model_type if isinstance(model_type, str) else None,
    )


def inventory_digest(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Digest:
    """The digest of tensor names and shapes, in whatever order they come; dtypes do not count."""
    return sha256(canonical_json([[name, list(shape)] for name, shape in sorted(tensors)]))
