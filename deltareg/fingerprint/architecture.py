"""The fingerprint of a checkpoint, from its headers, `config.json` and tokenizer files alone."""

from __future__ import annotations

from collections.abc import Iterable

from deltareg.checkpoint import Checkpoint
from deltareg.digest import Digest, canonical_json, sha256
from deltareg.errors import BadCheckpoint
from deltareg.fingerprint.structure import space_digest, structure_digest, structure_of
from deltareg.fingerprint.tokenizer import Tokenizer, tokenizer_of
from deltareg.manifest import Fingerprint, TokenizerFingerprint

__all__ = ["fingerprint_of", "inventory_digest", "tokenizer_fingerprint"]


def fingerprint_of(checkpoint: Checkpoint, *, lenient: bool = False) -> Fingerprint:
    """The fingerprint of the parameter space that `checkpoint` lies in, and of its tokenizer.

    Raises BadCheckpoint for tokenizer files that cannot be read; with `lenient` such a tokenizer counts as none.
    """
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors.values()}
    structure = structure_of(checkpoint.config, shapes)
    try:
        tokenizer = tokenizer_of(checkpoint)
    except BadCheckpoint:
        if not lenient:
            raise
        tokenizer = None
    return Fingerprint(
        digest=structure_digest(structure, shapes),
        space=space_digest(structure, shapes),
        inventory=inventory_digest(shapes.items()),
        model_type=structure.model_type,
        structure=dict(structure.structure),
        behaviour=dict(structure.behaviour),
        tokenizer=tokenizer_fingerprint(tokenizer),
    )


def tokenizer_fingerprint(tokenizer: Tokenizer | None) -> TokenizerFingerprint | None:
    """What a fingerprint keeps of a tokenizer; None for none."""
    if tokenizer is None:
        return None
    return TokenizerFingerprint(
        core=tokenizer.core,
        added=tokenizer.added_digest,
        chat_template=tokenizer.chat_template,
        kind=tokenizer.kind,
        rows=tokenizer.rows,
    )


def inventory_digest(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> Digest:
    """The digest of tensor names and shapes, in whatever order they come; dtypes do not count."""
    return sha256(canonical_json([[name, list(shape)] for name, shape in sorted(tensors)]))
